"""Laplacian-adjusted maximum likelihood: class probabilities that agree among near neighbours.

Boudiaf, Mueller, Ben Ayed, Bertinetto: Parameter-free online test-time adaptation, 2022,
arXiv:2201.05718.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Affinity = Literal["rbf", "knn", "linear"]
_FLOOR = 1e-20


def affinity(features: Tensor, kind: Affinity, neighbours: int) -> Tensor:
    """Pairwise affinities of a batch.

    Args:
        features: ``(N, D)``, rows of length one.
        kind: ``rbf``: ``exp(-d^2 / 2 s^2)``, ``s`` the mean distance to the ``neighbours``-th
            nearest image, itself counted; ``knn``: 1 for the ``neighbours`` nearest others;
            ``linear``: cosine similarity.
        neighbours: At least 1; fewer are taken where the batch has fewer.

    Returns:
        ``(N, N)``; row ``i`` says how much image ``i`` follows the others. Identical images, whose
        scale is zero, have affinity 1 in ``rbf``.
    """
    if kind == "linear":
        return features @ features.T
    # Not by matrix products: their rounding makes an image as far from itself as 1e-3.
    distances = torch.cdist(features, features, compute_mode="donot_use_mm_for_euclid_dist")
    if kind == "rbf":
        kth = min(neighbours, len(features))
        scale = distances.topk(kth, dim=1, largest=False).values[:, -1].mean()
        weights = (-distances.square() / (2 * scale.square())).exp()
        return torch.where(scale > 0, weights, (distances == 0).to(weights))
    distances.fill_diagonal_(-1.0)  # an image comes first in its own list, whatever its twins do
    kth = min(neighbours + 1, len(features))
    nearest = distances.topk(kth, dim=1, largest=False).indices[:, 1:]
    return torch.zeros_like(distances).scatter_(1, nearest, 1.0)


def solve(unary: Tensor, weights: Tensor, sweeps: int = 100, tolerance: float = 1e-8) -> Tensor:
    """Minimise ``sum(Y u) - sum(Y W Y) + sum(Y ln Y)`` over rows ``Y`` of the simplex.

    Args:
        unary: ``u = -ln p``, ``(N, K)``.
        weights: ``W``, ``(N, N)``.
        sweeps: Upper bound of the fixed-point sweeps; from the third on, one whose energy changes
            by at most ``tolerance`` (relative) is the last.
        tolerance: See ``sweeps``.

    Returns:
        Probabilities ``Y`` ``(N, K)``.
    """
    y = (-unary).softmax(1)
    before = float("inf")
    for sweep in range(sweeps):
        pairwise = weights @ y
        y = (pairwise - unary).softmax(1)
        energy = float((y * (unary - pairwise + y.clamp(min=_FLOOR).log())).sum())
        if sweep > 1 and abs(energy - before) <= tolerance * abs(before):
            break
        before = energy
    return y
