"""``tta-bench run``: methods over a stream, or learners over a learning stream."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from benchmarks.cli_errors import left_out, user_errors
from benchmarks.cli_options import (
    Amp,
    AsJson,
    Backbone,
    BatchSize,
    Budget,
    Carry,
    Checkpoint,
    Compiled,
    Corruption,
    DataDir,
    Device,
    Estimate,
    EvalEvery,
    Guard,
    GuardOptions,
    Layout,
    Mean,
    Names,
    Norm,
    NormOptions,
    NumExamples,
    NumTasks,
    OpenRatio,
    OpenSet,
    Order,
    Setting,
    SettingOptions,
    Severity,
    SourceDir,
    SourceImages,
    SourceOptions,
    Std,
    StreamName,
    Subset,
    Window,
    guard_options,
    source_options,
)
from benchmarks.errors import UsageError
from benchmarks.words import (
    read_floats,
    read_integers,
    read_methods,
    read_numbers,
    read_options,
    read_pairs,
    read_split,
)


def run(
    method: Names,
    stream: StreamName,
    setting: Setting = None,
    protocol: Annotated[
        Optional[str], typer.Option(help="A frozen protocol; see 'tta-bench list protocols'.")
    ] = None,
    backbone: Backbone = None,
    checkpoint: Checkpoint = None,
    set_: Annotated[
        Optional[list[str]],
        typer.Option("--set", help="Method option key=value; repeat. 'deyo.lr=1e-3' for one only."),
    ] = None,
    setting_set: SettingOptions = None,
    order: Order = None,
    seed: Annotated[str, typer.Option(help="One seed or several: 0,1,2.")] = "0",
    severity: Severity = None,
    corruptions: Corruption = None,
    num_examples: NumExamples = None,
    batch_size: BatchSize = None,
    data_dir: DataDir = None,
    subset: Subset = None,
    source_set: SourceOptions = None,
    open_set: OpenSet = None,
    open_ratio: OpenRatio = None,
    norm: Norm = None,
    norm_set: NormOptions = None,
    window: Window = 1,
    guard: Guard = None,
    guard_set: GuardOptions = None,
    estimate: Estimate = False,
    budget: Budget = None,
    mean: Mean = None,
    std: Std = None,
    source_images: SourceImages = 2000,
    source_dir: SourceDir = None,
    num_tasks: NumTasks = None,
    eval_every: EvalEvery = None,
    carry: Carry = None,
    tuned: Annotated[
        Optional[Path], typer.Option(help="Options that 'tta-bench tune' found; --set goes over.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Results folder.")] = Path("results"),
    device: Device = "cpu",
    dtype: Annotated[str, typer.Option(help="float32 or float64.")] = "float32",
    layout: Layout = "auto",
    amp: Amp = None,
    compiled: Compiled = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with interrupted runs.")] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Run again what is already finished.")
    ] = False,
    checkpoint_seconds: Annotated[
        float, typer.Option(help="Least time between checkpoints; 0: every step.", min=0)
    ] = 10.0,
    workers: Annotated[
        int, typer.Option(help="Processes that make batches ahead; changes no number.", min=0)
    ] = 0,
    log: Annotated[
        Optional[list[str]],
        typer.Option(help="Also tell tensorboard, mlflow or wandb, in the results folder; repeat."),
    ] = None,
    export_diff: Annotated[
        Optional[Path],
        typer.Option(help="Write what one run changed in its model; see 'tta-bench diff'."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Run methods over a stream and print their error per domain, or their accuracy per task.

    Each method and seed gets a folder in the results folder: spec.json, steps.parquet (one row a
    step) and result.json. A finished run is not run twice; a killed one goes on with --resume.

    Try:

      tta-bench run -m source,norm,tent,deyo -s fashion-mnist-c

      tta-bench run -m '*' -s fashion-mnist-c --num-examples 1000

      tta-bench run -m tent -s fashion-mnist-c --setting reset --set lr=5e-4 --seed 0,1,2

      tta-bench run -m deyo -s cifar10-c --data-dir DATA --backbone cifar-resnet20 --checkpoint FILE

      tta-bench run -m naive -s split-fashion-mnist --backbone small-cnn --num-examples 500
    """
    with user_errors():
        from benchmarks.allocator import keep_freed_memory
        from benchmarks.console import progress_bar, results_table
        from benchmarks.learning_cli import is_learning, refuse
        from benchmarks.tracking import make_tracker

        keep_freed_memory()
        learning = is_learning(stream)
        seeds = read_integers("seed", seed) or ()
        said: dict[str, Any]
        common: dict[str, Any] = {
            "setting": setting,
            "backbone": backbone,
            "checkpoint": str(checkpoint) if checkpoint else None,
            "device": device,
            "data_dir": str(data_dir) if data_dir else None,
            "num_examples": num_examples,
            "batch_size": batch_size,
            "source_images": source_images,
        }
        again: dict[str, Any] = {
            "resume": resume,
            "overwrite": overwrite,
            "checkpoint_seconds": checkpoint_seconds,
            "tracker": make_tracker(read_split(log)) if log else None,
        }
        # All specs are built before the first runs: a wrong last method wastes nothing.
        run_spec: Callable[..., dict[str, Any]]
        specs: Sequence[Any]
        if learning:
            from benchmarks.learning_cli import learning_specs
            from benchmarks.learning_runner import run as run_spec

            said = {"--protocol": protocol, "--order": order, "--severity": severity}
            said |= {"--corruptions": corruptions, "--subset": subset, "--open-set": open_set}
            said |= {"--open-ratio": open_ratio, "--norm": norm, "--norm-set": norm_set}
            said |= {"--window": window != 1, "--dtype": dtype != "float32"}
            said |= {"--source-dir": source_dir, "--mean": mean, "--std": std}
            said |= {"--tuned": tuned, "--layout": layout != "auto", "--amp": amp}
            said |= {"--compile": compiled, "--export-diff": export_diff}
            said |= {"--guard": guard, "--guard-set": guard_set}
            said |= {"--estimate": estimate, "--budget": budget}
            refuse(said, "has no effect on a learning stream")
            specs, by_pattern = learning_specs(
                read_split(method),
                set_ or [],
                stream,
                seeds,
                num_tasks=num_tasks,
                source_options=read_pairs(source_set, "--source-set"),
                setting_options=read_pairs(setting_set),
                eval_every=eval_every or 0,
                carry=carry is not False,
                **common,
            )
        else:
            from benchmarks.runner import run as run_spec
            from benchmarks.spec import resolve

            said = {"--num-tasks": num_tasks, "--eval-every": eval_every}
            said |= {"--carry/--no-carry": None if carry is None else True}
            refuse(said, "is for learning streams ('tta-bench list learning-streams')")
            methods, by_pattern = read_methods(read_split(method))
            options: dict[str, dict[str, Any]] = {**read_options(set_ or [], methods)}
            if tuned is not None:
                from benchmarks.tuned import read_tuned

                found = read_tuned(tuned)
                options = {name: found.options(name) | options[name] for name in methods}
            again |= {"workers": workers, "export_diff": export_diff}
            specs = [
                resolve(
                    name,
                    stream,
                    protocol=protocol,
                    options=options[name],
                    seed=value,
                    dtype=dtype,
                    severity=read_integers("severity", severity),
                    corruptions=tuple(read_split([corruptions])) if corruptions else None,
                    setting_options=read_pairs(setting_set),
                    order=order,
                    source_options=source_options(subset, read_pairs(source_set, "--source-set")),
                    open_set=open_set,
                    open_ratio=open_ratio,
                    norm=norm,
                    norm_options=read_numbers(read_pairs(norm_set, "--norm-set")),
                    window=window,
                    guard=guard_options(guard, read_pairs(guard_set, "--guard-set"), estimate),
                    budget=read_pairs(budget, "--budget") or None,
                    mean=read_floats("mean", mean),
                    std=read_floats("std", std),
                    source_dir=str(source_dir) if source_dir else None,
                    layout=layout,
                    amp=amp,
                    compiled=compiled,
                    **common,
                )
                for name in methods
                for value in seeds
            ]
            if tuned is not None:
                specs = found.mark(specs)
            if export_diff is not None and len(specs) != 1:
                raise UsageError(
                    f"--export-diff takes one method and one seed, these are {len(specs)} runs"
                )
        rows = []
        for spec in specs:
            with (
                left_out(spec.method, spec.method in by_pattern),
                progress_bar(f"{spec.method} s{spec.seed}") as progress,
            ):
                rows.append(run_spec(spec, out, progress=progress, **again))
        if not rows:
            raise UsageError("no method of the pattern can adapt this backbone; name another")
        if as_json:
            typer.echo(json.dumps(rows, indent=2))
            return
        if learning:
            from benchmarks.learning_console import learning_table

            learning_table(rows)
        else:
            results_table(rows)
        typer.echo(f"results: {out}")
