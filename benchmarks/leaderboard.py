"""Leaderboards: ranked within a protocol, backbone and provenance, averaged over seeds."""

from __future__ import annotations

import csv
import io
import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.errors import UsageError
from benchmarks.files import atomic_write
from benchmarks.forget_results import FORGET
from continual.metrics import FORMS, METRICS

# What must be equal for two numbers to stand in one ranking.
GROUP = ("protocol", "backbone", "weight_hash", "provenance", "dtype")
BY_SEED = "by seed"
_PERMUTED = re.compile(r"(permutations=[^,]*), seed=\d+")
DOMAIN_PREFIX = "error_pct_"
_MEANS = (
    "source_error_pct",
    "clean_error_pct",
    "source_clean_error_pct",
    "first_visit_error_pct",
    "last_visit_error_pct",
    "auroc_pct",
    "fpr95_pct",
    "h_score_pct",
    "ece_pct",
    "nll",
    "brier",
    "selected_fraction",
    "forwards_per_image",
    "backwards_per_image",
    "seconds_per_1k",
    "peak_mem_mib",
)
_FACTS = (
    "stream",
    "setting",
    "batch_size",
    "severity",
    "num_examples",
    "num_samples",
    "reset_policy",
    "predicts",
    "norm",
    "window",
    "source_data",
    "weights",
    "normalisation",
    "device",
    "config",
    "version_tta_bench",
    "version_torch",
    "version_timm",
    "version_numpy",
)
# Of learning streams; as columns where a row has them.
LEARNING = (
    *(f"{form}_{metric}_pct" for form in FORMS for metric in METRICS),
    *FORGET,
    *("online_error_pct", "segment_error_pct", "worst_segment_error_pct", "recovery_steps"),
)
LEADING = ("rank", "method", "error_pct", "error_pct_std", "seeds", *_MEANS)
TRAILING = (*GROUP, *_FACTS)

Row = dict[str, Any]


def leaderboard(results: Sequence[Mapping[str, Any]]) -> list[Row]:
    """Rows of a leaderboard, best first within each group.

    Args:
        results: Rows of ``result.json``. Runs that differ in their seed alone become one row.

    Returns:
        One row per (group, method, config, norm, window, source data): ``rank``, ``method``, mean
        and sample standard deviation of the error over ``seeds`` runs, means of the other metrics,
        one ``error_pct_<domain>`` column per domain, then what explains the numbers.
    """
    groups: dict[tuple[Any, ...], dict[tuple[Any, ...], list[Mapping[str, Any]]]] = {}
    for result in results:
        group = tuple(_shared(result).values())
        variant = (result.get("norm"), result.get("window"), result.get("source_data"))
        entry = (result["method"], _without_seed(result["config"]), variant)
        groups.setdefault(group, {}).setdefault(entry, []).append(result)
    rows = []
    for _, entries in sorted(groups.items(), key=lambda item: tuple(map(str, item[0]))):
        made = sorted((_row(runs) for runs in entries.values()), key=lambda row: row["error_pct"])
        for rank, row in enumerate(made, start=1):
            rows.append({"rank": rank, **row})
    return rows


def columns(rows: Sequence[Row]) -> list[str]:
    """Column names: the leading ones, those of learning, the domains, the trailing ones."""
    domains = dict.fromkeys(
        key for row in rows for key in row if key.startswith(DOMAIN_PREFIX) and key not in LEADING
    )
    learning = [key for key in LEARNING if any(key in row for row in rows)]
    return [*LEADING, *learning, *domains, *TRAILING]


def export(rows: Sequence[Row], path: Path) -> None:
    """Write a leaderboard as CSV or Markdown, by the file's suffix.

    Raises:
        UsageError: For another suffix, or a file that cannot be written.
    """
    write = _WRITERS.get(path.suffix)
    if write is None:
        raise UsageError(f"cannot export to {path.name!r}: use {' or '.join(_WRITERS)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as temporary:
            temporary.write_text(write(rows), "utf-8")
    except OSError as error:
        raise UsageError(f"cannot write {path} ({error.strerror}); name another file") from error


def to_csv(rows: Sequence[Row]) -> str:
    """All columns; empty where a value is missing."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns(rows), restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows({k: _cell(v) for k, v in row.items()} for row in rows)
    return text.getvalue()


def to_markdown(rows: Sequence[Row]) -> str:
    """A table per group: rank, method, error with its deviation, and the domains."""
    parts = []
    for title, group in by_group(rows):
        names = [key for key in columns(group) if key.startswith(DOMAIN_PREFIX)]
        domains = [n for n in names if n not in LEADING]
        shown = group_columns(group)
        heads = ["rank", "method", "error %", "seeds", *shown]
        heads += [name.removeprefix(DOMAIN_PREFIX) for name in domains]
        lines = [f"### {title}", "", _line(heads), _line(["---"] * len(heads))]
        for row in group:
            cells = [str(row["rank"]), row["method"], error_cell(row), str(row["seeds"])]
            wanted = (*shown.values(), *domains)
            lines.append(_line([*cells, *(_short(row.get(name)) for name in wanted)]))
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def by_group(rows: Sequence[Row]) -> list[tuple[str, list[Row]]]:
    """Title and rows of each group, in order."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        title = f"{row['protocol']}, {row['backbone']} ({row['weight_hash'][:8]})"
        groups.setdefault(f"{title}, {row['provenance']}, {row['dtype']}", []).append(row)
    return list(groups.items())


def group_columns(group: Sequence[Row]) -> dict[str, str]:
    """Heading to column of what a table shows of a group beside the error."""
    learning = any("class_incremental_final_accuracy_pct" in row for row in group)
    return _SHOWN_LEARNING if learning else _SHOWN


def error_cell(row: Row) -> str:
    """``12.34`` or ``12.34 ± 0.10``."""
    deviation = row["error_pct_std"]
    return _short(row["error_pct"]) + ("" if deviation is None else f" ± {deviation:.2f}")


def _row(runs: Sequence[Mapping[str, Any]]) -> Row:
    first = runs[0]
    errors = [run["error_pct"] for run in runs]
    facts = {key: first.get(key) for key in _FACTS} | {"config": _without_seed(first["config"])}
    domains = [k for k in first if k.startswith(DOMAIN_PREFIX) and k not in LEADING]
    learning = [key for key in LEARNING if key in first]
    return {
        "method": first["method"],
        "error_pct": statistics.fmean(errors),
        "error_pct_std": statistics.stdev(errors) if len(errors) > 1 else None,
        "seeds": len(runs),
        # Rows of earlier versions lack what was added since.
        **{key: _mean([run.get(key) for run in runs]) for key in (*_MEANS, *learning, *domains)},
        **_shared(first),
        **facts,
    }


def _shared(result: Mapping[str, Any]) -> dict[str, Any]:
    """What a ranking shares; what the run's seed drew counts as one, however often it is drawn."""
    shared = {key: result[key] for key in GROUP}
    shared["provenance"] = _PERMUTED.sub(r"\1", shared["provenance"])
    return shared | ({"weight_hash": BY_SEED} if result.get("weights_by_seed") else {})


def _without_seed(config: str) -> str:
    import json

    # A learner's options stand by part.
    values = {
        key: {k: v for k, v in value.items() if k != "seed"} if isinstance(value, dict) else value
        for key, value in json.loads(config).items()
        if key != "seed"
    }
    return json.dumps(values, sort_keys=True)


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None


def _cell(value: Any) -> Any:
    if value is None:
        return ""
    return round(value, 6) if isinstance(value, float) else value


def _short(value: Any) -> str:
    return "" if value is None else f"{value:.2f}"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


_SHOWN = {"source %": "source_error_pct", "clean %": "clean_error_pct"}
_SHOWN_LEARNING = {
    "avg incremental %": "class_incremental_average_incremental_accuracy_pct",
    "forgetting": "class_incremental_forgetting_pct",
    "BWT": "class_incremental_bwt_pct",
    "AAA %": "class_incremental_aaa_pct",
    "task-incremental %": "task_incremental_final_accuracy_pct",
}
_WRITERS: dict[str, Callable[[Sequence[Row]], str]] = {".csv": to_csv, ".md": to_markdown}
