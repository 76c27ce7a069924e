"""``tta-bench tune``: the same budget of trials for every method, on a stream kept for tuning."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from benchmarks.cli_errors import left_out, user_errors
from benchmarks.cli_options import (
    AsJson,
    Backbone,
    BatchSize,
    Budget,
    Checkpoint,
    Corruption,
    DataDir,
    Device,
    Guard,
    GuardOptions,
    Norm,
    NormOptions,
    NumExamples,
    Setting,
    SettingOptions,
    Severity,
    SourceDir,
    SourceImages,
    SourceOptions,
    Subset,
    Window,
    guard_options,
    source_options,
)
from benchmarks.errors import UsageError
from benchmarks.words import (
    read_integers,
    read_methods,
    read_numbers,
    read_options,
    read_pairs,
    read_split,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from benchmarks.runner import Progress
    from benchmarks.tune import Tuning
    from benchmarks.tuned import Tuned


def tune(
    method: Annotated[
        list[str],
        typer.Option(
            "--method", "-m", help="Method(s): repeat, separate by commas, or a pattern: 'norm*'."
        ),
    ],
    stream: Annotated[
        str, typer.Option("--stream", "-s", help="The evaluated stream; 'tta-bench list streams'.")
    ],
    trials: Annotated[
        int, typer.Option(help="Trials of each method; the first is its own config.", min=1)
    ] = 8,
    seed: Annotated[int, typer.Option(help="Of the draws and of the trials.", min=0)] = 0,
    tune_corruptions: Annotated[
        Optional[str],
        typer.Option(help="Of the tuning stream; by default the four hold-out ones, where it can."),
    ] = None,
    tune_examples: Annotated[
        Optional[int],
        typer.Option(help="Images of the tuning stream; by default as many as evaluated.", min=1),
    ] = None,
    shared_images: Annotated[
        bool,
        typer.Option("--shared-images", help="Allow the evaluated images, otherwise corrupted."),
    ] = False,
    setting: Setting = None,
    protocol: Annotated[
        Optional[str], typer.Option(help="The evaluation's; see 'tta-bench list protocols'.")
    ] = None,
    backbone: Backbone = None,
    checkpoint: Checkpoint = None,
    set_: Annotated[
        Optional[list[str]],
        typer.Option("--set", help="Option that all trials share, and that is not searched."),
    ] = None,
    setting_set: SettingOptions = None,
    severity: Severity = None,
    corruptions: Corruption = None,
    num_examples: NumExamples = None,
    batch_size: BatchSize = None,
    data_dir: DataDir = None,
    subset: Subset = None,
    source_set: SourceOptions = None,
    norm: Norm = None,
    norm_set: NormOptions = None,
    window: Window = 1,
    guard: Guard = None,
    guard_set: GuardOptions = None,
    budget: Budget = None,
    source_images: SourceImages = 2000,
    source_dir: SourceDir = None,
    out: Annotated[
        Path, typer.Option(help="Results folder: gets tuned.toml, and the trials in tune/.")
    ] = Path("results"),
    device: Device = "cpu",
    as_json: AsJson = False,
) -> None:
    """Search each method's options with the same number of trials, on a stream kept for tuning.

    All options without "tune" say what will be evaluated, as in 'run'. The tuning stream differs
    from it in two ways: other images (those after the first --num-examples) and other corruptions
    (gaussian_blur, saturate, spatter, speckle_noise). Trial 0 is the method's own config. Finished
    trials are not run twice, killed ones go on.

    Try:

      tta-bench tune -m tent,deyo -s fashion-mnist-c --num-examples 1000 --trials 8

      tta-bench run -m tent,deyo -s fashion-mnist-c --num-examples 1000 --tuned results/tuned.toml
    """
    with user_errors(interrupted="the same command goes on"):
        from benchmarks.allocator import keep_freed_memory
        from benchmarks.learning_cli import is_learning
        from benchmarks.tune import plan
        from benchmarks.tuned import FILE, write_tuned

        keep_freed_memory()
        if is_learning(stream):
            raise UsageError(f"{stream} is a learning stream: tune tunes methods on test streams")
        methods, by_pattern = read_methods(read_split(method))
        tuning = plan(
            methods,
            stream,
            trials=trials,
            seed=seed,
            options=read_options(set_ or [], methods),
            tune_corruptions=read_split([tune_corruptions]) if tune_corruptions else None,
            tune_examples=tune_examples,
            shared=shared_images,
            protocol=protocol,
            setting=setting,
            backbone=backbone,
            checkpoint=str(checkpoint) if checkpoint else None,
            device=device,
            data_dir=str(data_dir) if data_dir else None,
            num_examples=num_examples,
            batch_size=batch_size,
            severity=read_integers("severity", severity),
            corruptions=tuple(read_split([corruptions])) if corruptions else None,
            setting_options=read_pairs(setting_set),
            source_options=source_options(subset, read_pairs(source_set, "--source-set")),
            norm=norm,
            norm_options=read_numbers(read_pairs(norm_set, "--norm-set")),
            window=window,
            guard=guard_options(guard, read_pairs(guard_set, "--guard-set"), False),
            budget=read_pairs(budget, "--budget") or None,
            source_images=source_images,
            source_dir=str(source_dir) if source_dir else None,
        )
        errors = _run(tuning, out / "tune", by_pattern)
        tuned = tuning.best(errors)
        write_tuned(out / FILE, tuned)
        if as_json:
            typer.echo(
                json.dumps({**tuned.model_dump(), "tried": _tried(tuning, errors)}, indent=2)
            )
            return
        _table(tuning, tuned, errors)
        typer.echo(f"written: {out / FILE}; use it with 'tta-bench run … --tuned {out / FILE}'")


def _run(tuning: Tuning, out: Path, by_pattern: set[str]) -> dict[str, list[float]]:
    """The errors of all trials, by method, under one bar."""
    from tqdm import tqdm

    from benchmarks.console import bar_size

    errors: dict[str, list[float]] = {}
    total = sum(map(len, tuning.specs.values()))
    with tqdm(total=total, desc="tune", unit="trial", disable=None, **bar_size()) as bar:
        for method, specs in tuning.specs.items():

            def tick(number: int, method: str = method) -> Progress:
                bar.update(number > 0)

                def step(done: int, steps: int, error: float) -> None:
                    words = f"{method} {number}, step {done}/{steps}, error {error:.2f}%"
                    bar.set_postfix_str(words)

                return step

            with left_out(method, method in by_pattern):
                errors[method] = tuning.run(method, out, tick)
                bar.update(1)
            if method not in errors:
                bar.total -= len(specs)
    if not errors:
        raise UsageError("no method of the pattern can adapt this backbone; name another")
    return errors


def _tried(
    tuning: Tuning, errors: Mapping[str, Sequence[float]]
) -> dict[str, list[dict[str, Any]]]:
    return {
        method: [
            {"trial": number, "error_pct": error, "options": tuning.options[method][number]}
            for number, error in enumerate(values)
        ]
        for method, values in errors.items()
    }


def _table(tuning: Tuning, tuned: Tuned, errors: Mapping[str, Sequence[float]]) -> None:
    """Every trial with its error and options; the best of a method is marked."""
    from benchmarks.console import new_table, number, show

    table = new_table()
    for head in ("method", "trial", "error %", "", "options"):
        table.add_column(head, justify="right" if head in ("trial", "error %") else "left")
    for method, tried in _tried(tuning, errors).items():
        for one in tried:
            words = ", ".join(f"{key}={value:g}" for key, value in one["options"].items())
            best = one["trial"] == tuned.methods[method].best_trial
            table.add_row(
                *(method, str(one["trial"]), number(one["error_pct"])),
                *("best" if best else "", words or "nothing to search: one trial"),
            )
        table.add_section()
    show(
        f"error % on {tuned.protocol}, {tuned.backbone}; trial 0 is the method's own config", table
    )
