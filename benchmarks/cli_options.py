"""Options that several commands of ``tta-bench`` take."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Optional

import typer

from benchmarks.errors import UsageError

Names = Annotated[
    list[str],
    typer.Option(
        "--method",
        "-m",
        help="Method(s): repeat, separate by commas, or a pattern: '*', 'norm*'. On a learning "
        "stream strategies and an adapter joined by '+', or an Avalanche path.",
    ),
]
StreamName = Annotated[
    str,
    typer.Option(
        "--stream", "-s", help="See 'tta-bench list streams' and 'list learning-streams'."
    ),
]
Backbone = Annotated[
    Optional[str], typer.Option(help="Embedded name, timm:NAME, cifar-resnet20, small-cnn, …")
]
Checkpoint = Annotated[
    Optional[Path], typer.Option(help="Weights file of the backbone (safetensors or torch).")
]
Device = Annotated[str, typer.Option(help="Torch device: cpu, cuda, cuda:1, mps.")]
Layout = Annotated[
    Literal["auto", "own", "channels-last", "contiguous"],
    typer.Option(
        help="Memory layout of the model; auto: the faster one, measured once a backbone and "
        "machine; own: as it is loaded."
    ),
]
Amp = Annotated[
    Optional[Literal["bf16"]], typer.Option(help="Compute the network under bfloat16 autocast.")
]
Compiled = Annotated[
    bool, typer.Option("--compile", help="Compile the network first; takes a minute or more.")
]
Setting = Annotated[
    Optional[str],
    typer.Option(help="Order and reset policy: continual, reset, … see 'tta-bench list settings'."),
]
SettingOptions = Annotated[
    Optional[list[str]],
    typer.Option("--setting-set", help="Option of the setting, key=value; repeat."),
]
Order = Annotated[
    Optional[str], typer.Option(help="Order of the corruptions: default, rotta, cotta0 …")
]
Severity = Annotated[Optional[str], typer.Option(help="1 to 5, one or several: 5 or 5,3.")]
Corruption = Annotated[
    Optional[str], typer.Option("--corruptions", help="Names, separated by commas, in order.")
]
NumExamples = Annotated[
    Optional[int],
    typer.Option(help="First N images a domain, or training images a task; all by default."),
]
BatchSize = Annotated[Optional[int], typer.Option(help="Images a step; the protocol's by default.")]
Subset = Annotated[Optional[str], typer.Option(help="ImageNet streams: full or robustbench-5k.")]
DataDir = Annotated[
    Optional[Path], typer.Option(help="Folder of the data; embedded streams need none.")
]
SourceOptions = Annotated[
    Optional[list[str]],
    typer.Option("--source-set", help="Option of the stream's source, key=value; repeat."),
]
OpenSet = Annotated[
    Optional[str],
    typer.Option(help="Mix in unknown classes: held-out:0,3,7, stream:NAME or noise."),
]
OpenRatio = Annotated[
    Optional[float], typer.Option(help="Unknown images for each known one; 1 by default.")
]
Norm = Annotated[
    Optional[str],
    typer.Option(help="Put this layer in place of every BatchNorm: unmix-tns, iabn or robust."),
]
NormOptions = Annotated[
    Optional[list[str]], typer.Option("--norm-set", help="Option of that layer, key=value; repeat.")
]
Window = Annotated[
    int, typer.Option(help="Sliding window of images for smaller batches, as batch size 1.", min=1)
]
SourceImages = Annotated[
    int, typer.Option(help="Clean images for methods that need source data, at most.", min=1)
]
SourceDir = Annotated[
    Optional[Path],
    typer.Option(help="Folder of training images for those methods; --data-dir by default."),
]
Guard = Annotated[
    Optional[str],
    typer.Option(help="Guard against collapse: rollback, fallback, freeze, or watch."),
]
GuardOptions = Annotated[
    Optional[list[str]], typer.Option("--guard-set", help="Option of the guard, key=value; repeat.")
]
Estimate = Annotated[
    bool,
    typer.Option("--estimate", help="Estimate the accuracy without labels; alone, act on nothing."),
]
Budget = Annotated[
    Optional[list[str]],
    typer.Option(help="update_every=N, max_selected=N or max_step_seconds=S; repeat."),
]
Mean = Annotated[
    Optional[str],
    typer.Option(help="Channel means in the model, 0.5,0.5,0.5; the backbone's own by default."),
]
Std = Annotated[
    Optional[str],
    typer.Option(help="Channel deviations in the model; the backbone's own by default."),
]
NumTasks = Annotated[
    Optional[int], typer.Option(help="Learning streams: number of tasks; the stream's by default.")
]
EvalEvery = Annotated[
    Optional[int],
    typer.Option(help="Learning streams: training steps between looks at all tests; 0: at ends."),
]
Carry = Annotated[
    Optional[bool],
    typer.Option(
        "--carry/--no-carry",
        help="Learning streams: go on learning from the weights that an adapter left.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")]


def guard_options(
    action: str | None, pairs: Mapping[str, Any] | None, estimate: bool
) -> dict[str, Any] | None:
    """``--guard``, ``--guard-set`` and ``--estimate`` as options of a guard; ``None``: no guard.

    Raises:
        UsageError: For options of a guard that is not asked for.
    """
    if action is None and not estimate:
        if pairs:
            raise UsageError("--guard-set has no effect without a guard: add --guard rollback")
        return None
    made: dict[str, Any] = {**(pairs or {}), "action": action or "watch"}
    return made | {"estimate": True} if estimate else made


def source_options(
    subset: str | None, pairs: Mapping[str, str] | None
) -> dict[str, int | str | None] | None:
    """``--subset`` and ``--source-set`` as options of a source; whole numbers as such."""
    made: dict[str, int | str | None] = {} if subset is None else {"subset": subset}
    for key, value in (pairs or {}).items():
        made[key] = int(value) if value.isdecimal() else value
    return made or None
