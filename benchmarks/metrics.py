"""Metrics: one row per step and domain, and the result as a function of the rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.guard_columns import only_first
from streams.types import UNKNOWN, Batch, Domain
from tta import losses

ECE_BINS = 15
Table = Mapping[str, NDArray[Any]]


def step_rows(
    batch: Batch,
    logits: Tensor,
    domains: Sequence[Domain],
    report: Mapping[str, float],
    seconds: float,
    visits: NDArray[np.int64] | None = None,
    watch: Mapping[str, Any] | None = None,
) -> list[dict[str, Any]]:
    """Rows of one step: one, or one for each visit and domain that the batch holds.

    A prediction with NaN or infinity counts as an error and is left out of the other sums. Images
    of unknown classes are counted as such and in nothing else.

    Args:
        batch: The batch; its labels are used here and nowhere else.
        logits: ``(B, K)``.
        domains: Domains of the stream.
        report: The adapter's report; costs stand in the first row of the step.
        seconds: Wall time of the adapter's step.
        visits: Number of the visit of each sample ``(B,)``; ``None`` where each domain comes once.
        watch: Columns of a guard and a budget (``guard_columns.watch_columns``).
    """
    logits = logits.detach().double().cpu()
    known = batch.y != UNKNOWN
    finite = logits.isfinite().all(1)
    safe = torch.where(finite[:, None], logits, torch.zeros((), dtype=logits.dtype))
    probabilities = safe.softmax(1)
    confidence, predicted = probabilities.max(1)
    correct = (predicted == batch.y) & finite
    labels = batch.y.clamp(min=0)
    target = torch.nn.functional.one_hot(labels, logits.shape[1])
    columns = {
        "entropy": losses.entropy(safe),
        "confidence": confidence,
        "nll": torch.nn.functional.cross_entropy(safe, labels, reduction="none"),
        "brier": (probabilities - target).square().sum(1),
    }
    bins = (confidence * ECE_BINS).long().clamp(max=ECE_BINS - 1)
    rows: list[dict[str, Any]] = []
    for visit, domain_id in _parts(batch, visits):
        inside = batch.domain_ids == domain_id
        if visits is not None:
            inside = inside & torch.from_numpy(visits == visit)
        here = inside & known
        kept = here & finite
        used = int(kept.sum())
        row: dict[str, Any] = {
            "step": batch.step,
            "domain": domains[domain_id].name,
            "severity": domains[domain_id].severity,
            "visit": visit,
            "n": int(here.sum()),
            "unknown": int((inside & ~known).sum()),
            "correct": int((correct & here).sum()),
            "non_finite": int((here & ~finite).sum()),
        }
        row["error_pct"] = 100 * (1 - row["correct"] / row["n"]) if row["n"] else None
        for name, values in columns.items():
            row[name] = float(values[kept].mean()) if used else 0.0
        row["ece_count"] = torch.bincount(bins[kept], minlength=ECE_BINS).tolist()
        row["ece_correct"] = torch.bincount(bins[kept & correct], minlength=ECE_BINS).tolist()
        row["ece_confidence"] = torch.bincount(
            bins[kept], weights=confidence[kept], minlength=ECE_BINS
        ).tolist()
        first = not rows
        row["loss"] = report.get("loss")
        row["selected_fraction"] = report.get("selected_fraction")
        row["forwards"] = int(report.get("forwards", 0)) if first else 0
        row["backwards"] = int(report.get("backwards", 0)) if first else 0
        row["update_refused"] = int(report.get("update_refused", 0)) if first else 0
        row["seconds"] = seconds if first else 0.0
        row |= only_first(watch or {}, first)
        rows.append(row)
    return rows


def _parts(batch: Batch, visits: NDArray[np.int64] | None) -> list[tuple[int | None, int]]:
    """Visits and domains of a batch, ascending."""
    ids: list[int] = batch.domain_ids.tolist()
    if visits is None:
        return [(None, domain_id) for domain_id in sorted(set(ids))]
    return sorted(set(zip(visits.tolist(), ids, strict=True)))


def summarise(table: Table, domains: Sequence[Domain]) -> dict[str, Any]:
    """The metrics of a run from the columns of its rows.

    ``error_pct`` is the unweighted mean of the domains' errors; ``nll``, ``brier`` and ``ece_pct``
    are over all samples with finite predictions; forwards and backwards are images per image.
    """
    n, correct = table["n"].astype(np.int64), table["correct"].astype(np.int64)
    used = n - table["non_finite"].astype(np.int64)
    unknown = int(table["unknown"].sum())
    total = int(n.sum()) + unknown
    errors = {}
    for domain in domains:
        here = table["domain"] == domain.name
        if not n[here].any():
            continue  # a setting may leave a domain out
        errors[domain.name] = 100 * (1 - float(correct[here].sum() / n[here].sum()))
    selected = table["selected_fraction"].astype(np.float64)
    learnt = ~np.isnan(selected)  # a step without adaptation selects nothing, and says nothing
    counts = np.array(table["ece_count"].tolist(), dtype=np.int64).sum(0)
    hits = np.array(table["ece_correct"].tolist(), dtype=np.int64).sum(0)
    sums = np.array(table["ece_confidence"].tolist(), dtype=np.float64).sum(0)
    return {
        "error_pct": float(np.mean(list(errors.values()))),
        "worst_domain": max(errors, key=lambda name: errors[name]),
        "num_samples": total,
        "num_unknown": unknown,
        "num_steps": int(table["step"].max()) + 1,
        "non_finite": int(table["non_finite"].sum()),
        "nll": _mean(table["nll"], used),
        "brier": _mean(table["brier"], used),
        "ece_pct": float(100 * np.abs(hits - sums).sum() / max(1, counts.sum())),
        "entropy": _mean(table["entropy"], used),
        "selected_fraction": _mean(selected[learnt], n[learnt]) if learnt.any() else None,
        "forwards_per_image": float(table["forwards"].sum() / total),
        "backwards_per_image": float(table["backwards"].sum() / total),
        "updates_refused": int(table["update_refused"].sum()),
        **visit_errors(table),
        **{f"error_pct_{name}": error for name, error in errors.items()},
    }


def visit_errors(table: Table) -> dict[str, Any]:
    """Errors of the visits of a stream that comes to its domains again.

    Returns:
        ``visit_error_pct`` and ``visit_domain``, a value for each visit in the order of the stream;
        ``round_error_pct``, the mean over the domains of their first, second, ... visits, where all
        domains are visited equally often and at the same length; ``first_visit_error_pct`` and
        ``last_visit_error_pct``, its ends. All are ``None`` where each domain comes once.
    """
    names = ("visit_error_pct", "visit_domain", "round_error_pct")
    ends = ("first_visit_error_pct", "last_visit_error_pct")
    given = table["visit"].astype(np.float64)
    if np.isnan(given).all():
        return dict.fromkeys((*names, *ends))
    n = table["n"].astype(np.int64)
    visits = given.astype(np.int64)[n > 0]
    count = int(visits.max()) + 1
    n, correct = n[n > 0], table["correct"].astype(np.int64)[n > 0]
    sums = np.bincount(visits, n, count), np.bincount(visits, correct, count)
    domains: list[str | None] = [None] * count
    for visit, name in zip(visits.tolist(), table["domain"][table["n"] > 0], strict=True):
        domains[visit] = name
    errors = [100 * (1 - float(c / a)) if a else None for a, c in zip(*sums, strict=True)]
    rounds: dict[str, list[float]] = {}
    sizes: dict[str, list[float]] = {}
    for name, error, size in zip(domains, errors, sums[0].tolist(), strict=True):
        if name is not None and error is not None:
            rounds.setdefault(name, []).append(error)
            sizes.setdefault(name, []).append(size)
    even = len({len(found) for found in rounds.values()}) == 1 and count > len(rounds)
    # One sample may be missing: a setting leaves out a last batch of one.
    even = even and all(max(found) - min(found) <= 1 for found in sizes.values())
    means = [float(np.mean(part)) for part in zip(*rounds.values(), strict=True)] if even else None
    ended = (means[0], means[-1]) if means else (None, None)
    return dict(zip((*names, *ends), (errors, domains, means, *ended), strict=True))


def _mean(values: NDArray[Any], weights: NDArray[Any]) -> float:
    return float(np.average(values.astype(np.float64), weights=weights)) if weights.sum() else 0.0
