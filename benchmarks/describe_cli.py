"""``tta-bench describe``: the plan of a stream, the options of a method."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from benchmarks.cli_errors import user_errors
from benchmarks.cli_options import (
    AsJson,
    BatchSize,
    Corruption,
    DataDir,
    NumExamples,
    NumTasks,
    OpenRatio,
    OpenSet,
    Order,
    Setting,
    SettingOptions,
    Severity,
    SourceOptions,
    Subset,
    source_options,
)
from benchmarks.errors import UsageError
from benchmarks.words import read_integers, read_pairs, read_split


def describe(
    stream: Annotated[
        Optional[str], typer.Option("--stream", "-s", help="Stream whose plan to print.")
    ] = None,
    method: Annotated[
        Optional[str], typer.Option("--method", "-m", help="Method whose options to print.")
    ] = None,
    setting: Setting = None,
    setting_set: SettingOptions = None,
    order: Order = None,
    severity: Severity = None,
    corruptions: Corruption = None,
    num_examples: NumExamples = None,
    batch_size: BatchSize = None,
    num_tasks: NumTasks = None,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    data_dir: DataDir = None,
    subset: Subset = None,
    source_set: SourceOptions = None,
    open_set: OpenSet = None,
    open_ratio: OpenRatio = None,
    picture: Annotated[
        Optional[Path], typer.Option(help="Write FILE.png: domains and labels over the steps.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Print a stream's plan (order, domains, resets, labels, hash) or a method's options."""
    with user_errors():
        from benchmarks import console

        if (stream is None) == (method is None):
            raise UsageError("name either --stream or --method")
        if method is not None:
            from benchmarks.learning_console import is_learner, show_learner

            (show_learner if is_learner(method) else console.show_method)(method, as_json)
            return
        assert stream is not None
        import streams
        from benchmarks.learning_cli import is_learning, refuse

        if is_learning(stream):
            from benchmarks.learning_console import show_learning_stream

            said: dict[str, Any] = {
                "--order": order,
                "--severity": severity,
                "--corruptions": corruptions,
            }
            said |= {"--batch-size": batch_size, "--subset": subset, "--open-set": open_set}
            said |= {"--open-ratio": open_ratio, "--picture": picture}
            refuse(said, "has no effect on the plan of a learning stream")
            plan = streams.create_learning(
                stream,
                setting=setting or "sequential",
                num_tasks=num_tasks,
                num_examples=num_examples,
                seed=seed,
                data_dir=data_dir,
                options=read_pairs(source_set, "--source-set"),
                setting_options=read_pairs(setting_set),
            )
            show_learning_stream(plan.describe(), as_json)
            return
        refuse({"--num-tasks": num_tasks}, "is for learning streams")
        from benchmarks.spec import default_batch_size

        made = streams.create(
            stream,
            setting=setting or "continual",
            severity=read_integers("severity", severity) or 5,
            corruptions=tuple(read_split([corruptions])) if corruptions else None,
            num_examples=num_examples,
            batch_size=default_batch_size(stream) if batch_size is None else batch_size,
            seed=seed,
            data_dir=data_dir,
            setting_options=read_pairs(setting_set),
            order=order or "default",
            source_options=source_options(subset, read_pairs(source_set, "--source-set")),
            open_set=open_set,
            open_ratio=1.0 if open_ratio is None else open_ratio,
        )
        if picture is not None:
            from streams.picture import save_png

            typer.echo(f"written: {save_png(made, picture)}", err=True)
        console.show_stream(made.describe(), as_json)
