"""Leaderboards: ranked within a protocol, backbone and provenance, averaged over seeds."""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.errors import UsageError
from benchmarks.leaderboard_columns import (
    DOMAIN_PREFIX,
    FACTS,
    GROUP,
    LEADERBOARD_VERSION,
    LEARNING,
    MEANS,
    domain_names,
)
from benchmarks.leaderboard_stats import NOISE, interval, paired_test
from streams.jsonfiles import parse_json

BY_SEED = "by seed"
BEST, TIED, BEHIND = "best", "within noise", ""
_PERMUTED = re.compile(r"(permutations=[^,]*), seed=\d+")
# Beside method and config: rows that differ in one of these are different entries.
VARIANT = (
    *("norm", "window", "guard", "budget", "amp"),
    *("source_data", "normalisation", "tuned_trials", "tuned_on"),
)

Row = dict[str, Any]


def leaderboard(results: Sequence[Mapping[str, Any]]) -> list[Row]:
    """Rows of a leaderboard, best first within each group.

    Args:
        results: Rows of ``result.json``. Runs that differ in their seed alone become one row.

    Returns:
        One row per (group, method, config, norm, window, guard, budget, precision, source data,
        normalisation, tuning), with the keys of ``leaderboard_columns.COLUMNS``: rank and error
        over the seeds, its comparison with the best, means of the other metrics, one
        ``error_pct_<domain>`` per domain, then what explains the numbers.

    Raises:
        UsageError: For a row without its error, config or provenance.
    """
    groups: dict[tuple[Any, ...], dict[tuple[Any, ...], list[Mapping[str, Any]]]] = {}
    for result in results:
        if lacks := [
            key for key in ("provenance", "config", "error_pct") if result.get(key) is None
        ]:
            raise UsageError(f"run {str(result.get('run_id'))[:8]} has no {lacks[0]}; run it again")
        group = tuple(_shared(result).values())
        variant = tuple(result.get(key) for key in VARIANT)
        entry = (result["method"], _without_seed(result["config"]), variant)
        groups.setdefault(group, {}).setdefault(entry, []).append(result)
    rows: list[Row] = []
    for _, entries in sorted(groups.items(), key=lambda item: tuple(map(str, item[0]))):
        made = [(_by_seed(runs, "error_pct"), runs) for runs in entries.values()]
        made.sort(key=lambda entry: statistics.fmean(entry[0].values()))
        best = made[0][0]
        rows += [_row(rank, errors, best, runs) for rank, (errors, runs) in enumerate(made, 1)]
    return rows


def standing(row: Row) -> str:
    """``BEST``, ``TIED`` (not told apart from the best: p of 0.05 or more), or ``BEHIND``."""
    if row["rank"] == 1:
        return BEST
    p = row["p_vs_best"]
    return TIED if p is not None and p >= NOISE else BEHIND


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


def name_cell(row: Row) -> str:
    """The method; what is tuned says so."""
    return str(row["method"]) + (" (tuned)" if row["tuned_on"] else "")


def error_cell(row: Row) -> str:
    """``12.34`` or ``12.34 ± 0.10``, half of the 95 % interval."""
    half = row["error_pct_ci95"]
    return f"{row['error_pct']:.2f}" + ("" if half is None else f" ± {half:.2f}")


def _row(
    rank: int, errors: dict[Any, float], best: dict[Any, float], runs: Sequence[Mapping[str, Any]]
) -> Row:
    first = runs[0]
    values = list(errors.values())
    mean, half = interval(values)
    p, pairs = paired_test(errors, best) if rank > 1 else (None, None)
    domains = domain_names(first)
    measured = [{**run, "retention_pct": _retention(run)} for run in runs]
    learning = [key for key in LEARNING if key in first]
    # Rows of earlier versions lack what was added since.
    means = {key: _mean(_by_seed(measured, key)) for key in (*MEANS, *learning, *domains)}
    worst = max((means[key] or 0.0, key) for key in domains) if domains else None
    return {
        "rank": rank,
        "method": first["method"],
        "error_pct": mean,
        "error_pct_std": statistics.stdev(values) if len(values) > 1 else None,
        "error_pct_ci95": half,
        "seeds": len(errors),
        "p_vs_best": p,
        "pairs_vs_best": pairs,
        **{key: means[key] for key in MEANS},
        "worst_domain": worst and worst[1].removeprefix(DOMAIN_PREFIX),
        "worst_domain_error_pct": worst and worst[0],
        **{key: means[key] for key in (*learning, *domains)},
        **_shared(first),
        **{key: first.get(key) for key in FACTS},
        "config": _without_seed(first["config"]),
        "leaderboard_version": LEADERBOARD_VERSION,
    }


def _retention(run: Mapping[str, Any]) -> float | None:
    """Clean accuracy after the run over that of the source model, in percent."""
    error, source = run.get("clean_error_pct"), run.get("source_clean_error_pct")
    if error is None or source is None or source >= 100:
        return None
    return 100 * float((100 - error) / (100 - source))


def _shared(result: Mapping[str, Any]) -> dict[str, Any]:
    """What a ranking shares; what the run's seed drew counts as one, however often it is drawn."""
    shared = {key: result[key] for key in GROUP}
    shared["provenance"] = _PERMUTED.sub(r"\1", shared["provenance"])
    return shared | ({"weight_hash": BY_SEED} if result.get("weights_by_seed") else {})


def _without_seed(config: str) -> str:
    # A learner's options stand by part.
    values = {
        key: {k: v for k, v in value.items() if k != "seed"} if isinstance(value, dict) else value
        for key, value in parse_json(config).items()
        if key != "seed"
    }
    return json.dumps(values, sort_keys=True)


def _by_seed(runs: Sequence[Mapping[str, Any]], key: str) -> dict[Any, float]:
    """Known values by seed; several runs of one seed (another device, say) count as their mean."""
    found: dict[Any, list[float]] = {}
    for run in runs:
        if (value := run.get(key)) is not None:
            found.setdefault(run["seed"], []).append(value)
    return {seed: statistics.fmean(values) for seed, values in found.items()}


def _mean(values: Mapping[Any, float]) -> float | None:
    return statistics.fmean(values.values()) if values else None


_SHOWN = {"source %": "source_error_pct", "clean %": "clean_error_pct"}
_SHOWN_LEARNING = {
    "avg incremental %": "class_incremental_average_incremental_accuracy_pct",
    "forgetting": "class_incremental_forgetting_pct",
    "BWT": "class_incremental_bwt_pct",
    "AAA %": "class_incremental_aaa_pct",
    "task-incremental %": "task_incremental_final_accuracy_pct",
}
