"""Metrics: one row per step and domain, and the result as a function of the rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from streams.types import Batch, Domain
from tta import losses

ECE_BINS = 15
Table = Mapping[str, NDArray[Any]]


def step_rows(
    batch: Batch,
    logits: Tensor,
    domains: Sequence[Domain],
    report: Mapping[str, float],
    seconds: float,
) -> list[dict[str, Any]]:
    """Rows of one step: one, or one per domain where the batch is mixed.

    A prediction with NaN or infinity counts as an error and is left out of the other sums.

    Args:
        batch: The batch; its labels are used here and nowhere else.
        logits: ``(B, K)``.
        domains: Domains of the stream.
        report: The adapter's report; costs stand in the first row of the step.
        seconds: Wall time of the adapter's step.
    """
    logits = logits.detach().double().cpu()
    finite = logits.isfinite().all(1)
    safe = torch.where(finite[:, None], logits, torch.zeros((), dtype=logits.dtype))
    probabilities = safe.softmax(1)
    confidence, predicted = probabilities.max(1)
    correct = (predicted == batch.y) & finite
    target = torch.nn.functional.one_hot(batch.y, logits.shape[1])
    columns = {
        "entropy": losses.entropy(safe),
        "confidence": confidence,
        "nll": torch.nn.functional.cross_entropy(safe, batch.y, reduction="none"),
        "brier": (probabilities - target).square().sum(1),
    }
    bins = (confidence * ECE_BINS).long().clamp(max=ECE_BINS - 1)
    rows: list[dict[str, Any]] = []
    for domain_id in torch.unique(batch.domain_ids).tolist():
        here = batch.domain_ids == domain_id
        kept = here & finite
        used = int(kept.sum())
        row = {
            "step": batch.step,
            "domain": domains[domain_id].name,
            "severity": domains[domain_id].severity,
            "n": int(here.sum()),
            "correct": int((correct & here).sum()),
            "non_finite": int((here & ~finite).sum()),
        }
        row["error_pct"] = 100 * (1 - row["correct"] / row["n"])
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
        rows.append(row)
    return rows


def summarise(table: Table, domains: Sequence[Domain]) -> dict[str, Any]:
    """The metrics of a run from the columns of its rows.

    ``error_pct`` is the unweighted mean of the domains' errors; ``nll``, ``brier`` and ``ece_pct``
    are over all samples with finite predictions; forwards and backwards are images per image.
    """
    n, correct = table["n"].astype(np.int64), table["correct"].astype(np.int64)
    used = n - table["non_finite"].astype(np.int64)
    total = int(n.sum())
    errors = {}
    for domain in domains:
        here = table["domain"] == domain.name
        if not here.any():
            continue  # a setting may leave a domain out
        errors[domain.name] = 100 * (1 - float(correct[here].sum() / n[here].sum()))
    selected = table["selected_fraction"].astype(np.float64)
    counts = np.array(table["ece_count"].tolist(), dtype=np.int64).sum(0)
    hits = np.array(table["ece_correct"].tolist(), dtype=np.int64).sum(0)
    sums = np.array(table["ece_confidence"].tolist(), dtype=np.float64).sum(0)
    return {
        "error_pct": float(np.mean(list(errors.values()))),
        "worst_domain": max(errors, key=lambda name: errors[name]),
        "num_samples": total,
        "num_steps": int(table["step"].max()) + 1,
        "non_finite": int(table["non_finite"].sum()),
        "nll": _mean(table["nll"], used),
        "brier": _mean(table["brier"], used),
        "ece_pct": float(100 * np.abs(hits - sums).sum() / max(1, counts.sum())),
        "entropy": _mean(table["entropy"], used),
        "selected_fraction": None if np.isnan(selected).all() else _mean(selected, n),
        "forwards_per_image": float(table["forwards"].sum() / total),
        "backwards_per_image": float(table["backwards"].sum() / total),
        "updates_refused": int(table["update_refused"].sum()),
        **{f"error_pct_{name}": error for name, error in errors.items()},
    }


def _mean(values: NDArray[Any], weights: NDArray[Any]) -> float:
    return float(np.average(values.astype(np.float64), weights=weights)) if weights.sum() else 0.0
