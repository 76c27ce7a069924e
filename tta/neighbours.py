"""A bounded memory of unit features with class labels, and the soft vote of its nearest rows."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def empty(capacity: int) -> dict[str, Any]:
    """A memory that never holds more than ``capacity`` test rows (its source rows come on top).

    It is a plain dict, so that an adapter can declare it as state. Its tensors are made when the
    first row comes: ``source`` and ``test`` ``(N, D)`` with their labels ``(N,)`` int64.
    """
    return {"capacity": capacity, "seen": 0, "source": None, "test": None, "labels": None}


def set_source(memory: dict[str, Any], features: Tensor, labels: Tensor) -> None:
    """Put features ``(N, D)`` and labels ``(N,)`` in as the rows that are never overwritten."""
    memory["source"] = F.normalize(features, dim=1)
    memory["source_labels"] = labels.to(features.device)


def append(memory: dict[str, Any], features: Tensor, labels: Tensor) -> None:
    """Add test rows ``(N, D)`` with labels ``(N,)``; beyond the capacity the oldest ones go."""
    capacity, seen = memory["capacity"], memory["seen"]
    dropped = max(0, len(features) - capacity)
    if memory["test"] is None:
        memory["test"] = features.new_zeros(capacity, features.shape[1])
        memory["labels"] = labels.new_zeros(capacity)
    slots = torch.arange(seen + dropped, seen + len(features), device=features.device) % capacity
    memory["test"][slots] = F.normalize(features[dropped:], dim=1).detach()
    memory["labels"][slots] = labels[dropped:]
    memory["seen"] = seen + len(features)


def vote(
    memory: dict[str, Any], features: Tensor, classes: int, neighbours: int, temperature: float
) -> Tensor:
    """Class scores of the rows most similar by cosine, weighted by ``softmax(cosine / T)``.

    Args:
        memory: At least one row.
        features: ``(B, D)``, of any length.
        classes: ``K``.
        neighbours: Rows that vote; all rows where there are fewer.
        temperature: ``T``.

    Returns:
        ``(B, K)`` in ``(0, 1]``: the summed weights plus 1e-5, at most 1.
    """
    unit = F.normalize(features, dim=1)
    parts, labels = [], []
    if memory["source"] is not None:
        parts.append(unit @ memory["source"].T)
        labels.append(memory["source_labels"])
    filled = min(memory["seen"], memory["capacity"])
    if filled:
        parts.append(unit @ memory["test"][:filled].T)
        labels.append(memory["labels"][:filled])
    similarity = torch.cat(parts, dim=1)
    top, rows = similarity.topk(min(neighbours, similarity.shape[1]), dim=1)
    weights = (top / temperature).softmax(1)
    # A product, not a scattered sum: that is not deterministic on GPUs.
    members = F.one_hot(torch.cat(labels)[rows], classes).to(weights)
    scores = (weights[:, None] @ members)[:, 0]
    return (scores + 1e-5).clamp(max=1)
