"""Leaderboards: ranked within a protocol, backbone and provenance, averaged over seeds."""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.errors import UsageError
from benchmarks.files import atomic_write

# What must be equal for two numbers to stand in one ranking.
GROUP = ("protocol", "backbone", "weight_hash", "provenance", "dtype")
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
        group = tuple(result[key] for key in GROUP)
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
    """Column names: the leading ones, the domains in their order, the trailing ones."""
    domains = dict.fromkeys(
        key for row in rows for key in row if key.startswith(DOMAIN_PREFIX) and key not in LEADING
    )
    return [*LEADING, *domains, *TRAILING]


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
        heads = ["rank", "method", "error %", "seeds", "source %", "clean %"]
        heads += [name.removeprefix(DOMAIN_PREFIX) for name in domains]
        lines = [f"### {title}", "", _line(heads), _line(["---"] * len(heads))]
        for row in group:
            cells = [str(row["rank"]), row["method"], error_cell(row), str(row["seeds"])]
            wanted = ("source_error_pct", "clean_error_pct", *domains)
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


def error_cell(row: Row) -> str:
    """``12.34`` or ``12.34 ± 0.10``."""
    deviation = row["error_pct_std"]
    return _short(row["error_pct"]) + ("" if deviation is None else f" ± {deviation:.2f}")


def _row(runs: Sequence[Mapping[str, Any]]) -> Row:
    first = runs[0]
    errors = [run["error_pct"] for run in runs]
    facts = {key: first.get(key) for key in _FACTS} | {"config": _without_seed(first["config"])}
    domains = [k for k in first if k.startswith(DOMAIN_PREFIX) and k not in LEADING]
    return {
        "method": first["method"],
        "error_pct": statistics.fmean(errors),
        "error_pct_std": statistics.stdev(errors) if len(errors) > 1 else None,
        "seeds": len(runs),
        # Rows of earlier versions lack what was added since.
        **{key: _mean([run.get(key) for run in runs]) for key in (*_MEANS, *domains)},
        **{key: first[key] for key in GROUP},
        **facts,
    }


def _without_seed(config: str) -> str:
    import json

    values = json.loads(config)
    values.pop("seed", None)
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


_WRITERS: dict[str, Callable[[Sequence[Row]], str]] = {".csv": to_csv, ".md": to_markdown}
