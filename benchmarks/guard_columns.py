"""What a guard and a budget leave in the rows: columns of the steps, and sums over them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from tta import Adapter

_NUMBERS = ("estimated_accuracy", "source_agreement", "logit_norm", "weight_drift")
_SCORES = ("guard_collapse", "guard_unsure")
_COSTS = ("guard_forwards", "estimate_forwards", "estimate_classifier_forwards")
WATCH_SCHEMA = (
    *((name, pa.float64()) for name in (*_NUMBERS, *_SCORES)),
    *((name, pa.int64()) for name in _COSTS),
    ("guard_phase", pa.string()),
    ("guard_event", pa.string()),
    ("degraded", pa.string()),
)
WATCH_COLUMNS = tuple(name for name, _ in WATCH_SCHEMA)
RESULTS = (
    *("guard", "budget", "guard_alarms", "guard_source_pct", "guard_forwards_per_image"),
    *("estimate_mae", "confidence_mae", "agreement_mae", "degraded_pct"),
)


def watch_columns(adapter: Adapter) -> dict[str, Any]:
    """Columns of the last step; costs and events stand in the first row of a step alone."""
    report = adapter.report
    made: dict[str, Any] = {name: report.get(name) for name in (*_NUMBERS, *_SCORES)}
    made |= {name: int(report[name]) if name in report else None for name in _COSTS}
    return made | {
        "guard_phase": adapter.guard_phase,
        "guard_event": adapter.guard_event,
        "degraded": adapter.degraded,
    }


def only_first(columns: Mapping[str, Any], first: bool) -> dict[str, Any]:
    """The columns as the first row of a step has them, or as the others do."""
    if first:
        return dict(columns)
    once = {"guard_event": None, **dict.fromkeys(_COSTS)}
    return {**columns, **once}


def summarise_watch(table: Mapping[str, NDArray[Any]]) -> dict[str, Any]:
    """Alarms, share of the source's answers, and mean absolute errors of the estimates.

    Errors are in points of accuracy, over the steps that have the estimate and a known label: the
    estimate of each step against the accuracy of its batch.
    """
    steps = table["step"].astype(np.int64)
    starts = np.flatnonzero(np.r_[True, np.diff(steps) != 0])
    n = np.add.reduceat(table["n"].astype(np.int64), starts)
    with np.errstate(invalid="ignore", divide="ignore"):
        true = 100 * np.add.reduceat(table["correct"].astype(np.int64), starts) / n
        used = table["n"].astype(np.int64) - table["non_finite"].astype(np.int64)
        weighted = np.add.reduceat(table["confidence"].astype(np.float64) * used, starts)
        confidence = 100 * weighted / np.add.reduceat(used, starts)
    estimate = table["estimated_accuracy"][starts].astype(np.float64)
    agreement = table["source_agreement"][starts].astype(np.float64)
    phases, events = table["guard_phase"][starts], table["guard_event"][starts]
    guarded = any(phase is not None for phase in phases)
    degraded = [name is not None for name in table["degraded"][starts]]
    images = np.add.reduceat(table["n"].astype(np.int64) + table["unknown"], starts)
    by_source = np.array([phase in ("hold", "probe") for phase in phases])
    forwards = table["guard_forwards"].astype(np.float64)
    estimated = not np.isnan(estimate).all()
    return {
        "guard_alarms": sum("alarm" in (e or "") for e in events) if guarded else None,
        "guard_source_pct": 100 * float(images[by_source].sum() / images.sum())
        if guarded
        else None,
        "guard_forwards_per_image": float(np.nansum(forwards) / images.sum()) if guarded else None,
        "estimate_mae": _mae(estimate, true),
        # Beside the estimate only: a baseline is of use on the same steps.
        "confidence_mae": _mae(confidence, true) if estimated else None,
        "agreement_mae": _mae(agreement, true) if estimated else None,
        "degraded_pct": 100 * float(np.mean(degraded)) if any(degraded) else None,
    }


def _mae(guess: NDArray[Any], true: NDArray[Any]) -> float | None:
    errors = np.abs(guess - true)
    return None if np.isnan(errors).all() else float(np.nanmean(errors))
