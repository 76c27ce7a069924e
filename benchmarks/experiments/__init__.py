"""Experiments on learning streams, as data: variants x seeds, paired against a baseline.

One TOML file is one experiment; ``run`` goes on where it was interrupted. Each variant is run with
every seed through the ordinary runner, so each run has its folder, rows and spec.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from benchmarks.errors import UsageError
from benchmarks.leaderboard_stats import interval
from benchmarks.learning_results import MEASURES
from benchmarks.learning_runner import run as run_spec
from benchmarks.learning_setup import prepare
from benchmarks.learning_spec import LearningSpec, resolve_learning
from benchmarks.spec import one_line
from benchmarks.toml import TomlError, parse_toml
from tta.config import did_you_mean

Value = float | int | str


class Variant(BaseModel):
    """What differs of one row of the table.

    Attributes:
        method: As on the command line (``refresh+der-pp``).
        baseline: Name of the variant that it is compared with, seed by seed.
        set: Options of the method's parts.
        setting_set: Options of the setting.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    method: str
    baseline: str | None = None
    set: dict[str, Value] = {}
    setting_set: dict[str, Value] = {}


class Experiment(BaseModel):
    """One experiment file.

    Attributes:
        title: What is asked.
        claim: What the papers say, in words.
        stream: Learning stream; ``setting`` orders it.
        backbone: Backbone of all variants.
        seeds: Seeds; each fixes classes, orders, weights and draws of a run.
        metrics: Columns of the result that the table shows; the first is the one compared.
        num_tasks: Tasks; ``None``: the stream's own.
        num_examples: Training images of each task at most.
        eval_every: Training steps between looks at all tests.
        set: Options that all variants share.
        setting_set: Options of the setting that all variants share.
        source_set: Options of the set of tasks.
        variants: Rows, by name.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    title: str
    claim: str
    stream: str
    setting: str = "sequential"
    backbone: str
    seeds: tuple[int, ...]
    metrics: tuple[str, ...]
    num_tasks: int | None = None
    num_examples: int | None = None
    eval_every: int = 0
    set: dict[str, Value] = {}
    setting_set: dict[str, Value] = {}
    source_set: dict[str, Value] = {}
    variants: dict[str, Variant]

    def spec(self, variant: str, seed: int, data_dir: Path | None) -> LearningSpec:
        """The run of a variant and a seed."""
        chosen = self.variants[variant]
        return resolve_learning(
            chosen.method,
            self.stream,
            setting=self.setting,
            options={k: str(v) for k, v in (self.set | chosen.set).items()},
            num_tasks=self.num_tasks,
            num_examples=self.num_examples,
            source_options=self.source_set,
            setting_options=self.setting_set | chosen.setting_set,
            eval_every=self.eval_every,
            backbone=self.backbone,
            seed=seed,
            data_dir=None if data_dir is None else str(data_dir),
        )


def experiments() -> dict[str, Experiment]:
    """All experiments by the stem of their file."""
    entries = sorted(files(__name__).iterdir(), key=lambda entry: entry.name)
    found = [entry for entry in entries if entry.name.endswith(".toml")]
    return {
        entry.name.removesuffix(".toml"): parse(entry.name, entry.read_text("utf-8"))
        for entry in found
    }


def parse(name: str, text: str) -> Experiment:
    """An experiment from the text of its file.

    Raises:
        UsageError: If it is not valid TOML, or a field, metric or baseline is wrong.
    """
    try:
        made = Experiment(**parse_toml(text))
    except (TomlError, ValidationError) as error:
        words = one_line(error) if isinstance(error, ValidationError) else str(error)
        raise UsageError(f"{name}: {words}") from error
    for metric in made.metrics:
        if metric not in MEASURES:
            raise UsageError(
                f"{name}: no metric {metric!r}{did_you_mean(metric, MEASURES)}; "
                f"known: {', '.join(MEASURES)}"
            )
    for row, variant in made.variants.items():
        if variant.baseline is not None and variant.baseline not in made.variants:
            raise UsageError(f"{name}: {row!r} is compared with {variant.baseline!r}, no variant")
    return made


def run(
    experiment: Experiment,
    out: Path,
    *,
    data_dir: Path | None = None,
    seeds: Sequence[int] | None = None,
    progress: Callable[[str, int], Any] | None = None,
) -> list[dict[str, Any]]:
    """Run what is not finished yet, and return the table.

    Args:
        experiment: What to run.
        out: Folder of the runs' folders.
        data_dir: Folder of the data.
        seeds: Instead of the experiment's.
        progress: Called as ``progress(variant, seed)``; gives a context manager whose value is
            called after each step (``benchmarks.console.progress_bar``).
    """
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in experiment.variants}
    chosen = tuple(seeds or experiment.seeds)
    for name in experiment.variants:
        # A variant that cannot be run says so before the others have run.
        prepare(experiment.spec(name, chosen[0], data_dir))
    # Seed by seed: an interrupted experiment has whole columns to compare.
    for seed in chosen:
        for name in experiment.variants:
            spec = experiment.spec(name, seed, data_dir)
            if progress is None:
                row = run_spec(spec, out, resume=True)
            else:
                with progress(name, seed) as tick:
                    row = run_spec(spec, out, resume=True, progress=tick)
            results[name].append(row)
    return table(experiment, results)


def table(
    experiment: Experiment, results: Mapping[str, Sequence[Mapping[str, Any]]]
) -> list[dict[str, Any]]:
    """A row a variant: mean and half of the 95 % interval of each metric, and paired differences.

    Args:
        experiment: Its metrics and baselines.
        results: Result rows of each variant, in the order of the seeds.
    """
    rows = []
    for name, variant in experiment.variants.items():
        runs = results[name]
        row: dict[str, Any] = {"variant": name, "method": variant.method, "seeds": len(runs)}
        for metric in experiment.metrics:
            values = [run[metric] for run in runs]
            row[metric] = row[f"{metric}_ci95"] = None
            if values and None not in values:
                row[metric], row[f"{metric}_ci95"] = interval(values)
        row["baseline"] = variant.baseline
        row["difference"] = row["difference_ci95"] = None
        if variant.baseline is not None:
            metric = experiment.metrics[0]
            pairs = [
                (mine[metric], other[metric])
                for mine, other in zip(runs, results[variant.baseline], strict=True)
            ]
            if pairs and None not in {value for pair in pairs for value in pair}:
                row["difference"], row["difference_ci95"] = interval(
                    [mine - other for mine, other in pairs]
                )
        rows.append(row)
    return rows


def markdown(experiment: Experiment, rows: Sequence[Mapping[str, Any]]) -> str:
    """The table as Markdown."""
    short = [metric.removesuffix("_pct").replace("_", " ") for metric in experiment.metrics]
    lines = [
        f"| variant | {' | '.join(short)} | {short[0]} against baseline |",
        "|---" * (len(short) + 2) + "|",
    ]
    for row in rows:
        cells = [_cell(row[m], row[f"{m}_ci95"]) for m in experiment.metrics]
        against = ""
        if row["baseline"] is not None:
            against = f"{_cell(row['difference'], row['difference_ci95'], sign=True)}"
            against += f" ({row['baseline']})"
        lines.append(f"| {row['variant']} | {' | '.join(cells)} | {against} |")
    return "\n".join(lines) + "\n"


def _cell(mean: float | None, half: float | None, *, sign: bool = False) -> str:
    if mean is None:
        return ""
    made = f"{mean:+.2f}" if sign else f"{mean:.2f}"
    return made if half is None else f"{made} ± {half:.2f}"
