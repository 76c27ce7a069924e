"""``tta-bench profile``: what a step of each method costs, beside what it cannot cost less than."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Optional

import typer

from benchmarks.cli_errors import user_errors
from benchmarks.cli_options import Amp, AsJson, Checkpoint, Compiled, DataDir, Device, Layout
from benchmarks.errors import UsageError
from benchmarks.words import read_methods, read_options, read_split


def profile(
    method: Annotated[
        list[str], typer.Option("--method", "-m", help="Method(s) or a pattern: '*', 'norm*'.")
    ],
    backbone: Annotated[
        str, typer.Option(help="Embedded name, timm:NAME, cifar-resnet32, …")
    ] = "fashion-resnet",
    checkpoint: Checkpoint = None,
    stream: Annotated[
        str,
        typer.Option("--stream", "-s", help="Where the images come from: one with corruptions."),
    ] = "fashion-mnist-c",
    data_dir: DataDir = None,
    severity: Annotated[int, typer.Option(help="Of its corruptions.", min=1, max=5)] = 5,
    batch_size: Annotated[int, typer.Option(help="Images a step.", min=2)] = 200,
    rounds: Annotated[int, typer.Option(help="Measured steps of each method.", min=1)] = 10,
    layout: Layout = "auto",
    amp: Amp = None,
    compiled: Compiled = False,
    plain: Annotated[
        bool,
        typer.Option(
            "--plain",
            help="Also time the step as reference implementations run it: default layout, "
            "float32, not compiled.",
        ),
    ] = False,
    set_: Annotated[
        Optional[list[str]], typer.Option("--set", help="Method option key=value; repeat.")
    ] = None,
    device: Device = "cpu",
    threads: Annotated[int, typer.Option(help="Intra-op threads; 0: torch's choice.", min=0)] = 0,
    out: Annotated[Optional[Path], typer.Option(help="Write the table as FILE.csv.")] = None,
    as_json: AsJson = False,
) -> None:
    """Price the step of each method against its own forwards and backwards.

    Each method runs in a process of its own. In every round a bare model of the same sizes is
    timed before and after the adapter's step, so a busy machine slows both; 'ratio' is the median
    of step over the forwards and backwards that the method made, priced bare.

    Try:

      tta-bench profile -m 'tent,eata,cotta' --batch-size 64 --rounds 5

      tta-bench profile -m '*' --backbone cifar-resnet32 --checkpoint FILE --out cost.csv

      tta-bench profile -m eata --backbone efficientnet-lite0 -s imagenet-c --data-dir data
    """
    with user_errors():
        import tta
        from benchmarks.profile_table import apart, profile_table
        from benchmarks.profile_types import Request
        from benchmarks.protocols import presets
        from benchmarks.spec import parse_options

        if checkpoint is not None and not checkpoint.is_file():
            raise UsageError(f"checkpoint {checkpoint} is not a file")
        if out is not None and out.suffix != ".csv":
            raise UsageError(f"--out {out}: the table is written as FILE.csv")
        methods, by_pattern = read_methods(read_split(method))
        options = read_options(set_ or [], methods)
        configs = {}
        for name in methods:
            kind = tta.adapter_config(name)
            preset = presets().get(name, {}).get(stream, {})
            configs[name] = kind.create(preset | parse_options(kind, options[name]))
        requests = [
            Request(
                method=name,
                backbone=backbone,
                checkpoint=checkpoint,
                stream=stream,
                data_dir=data_dir,
                severity=severity,
                batch_size=batch_size,
                rounds=rounds,
                layout=layout,
                amp=amp,
                compiled=compiled,
                plain=plain,
                options=configs[name].to_dict(),
                device=device,
                threads=threads,
            )
            for name in methods
        ]
        rows = apart(requests, skip=by_pattern, out=out)
        if as_json:
            typer.echo(json.dumps(rows, indent=2))
            return
        profile_table(rows)
