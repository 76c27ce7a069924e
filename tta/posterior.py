"""A Gaussian over the weights of a network, one variance a weight: SWAG, its prior, Fisher values.

Maddox, Izmailov, Garipov, Vetrov, Wilson: A simple baseline for Bayesian uncertainty in deep
learning, 2019, arXiv:1902.02476 (SWAG, the diagonal part).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

EPSILON = 1e-6  # added to every variance; PETAL's code


class Moments:
    """Running mean and variance over snapshots of some tensors (Welford, no cancellation).

    Attributes:
        count: Snapshots seen.
        mean: As the tensors.
    """

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self.count = 0
        self.mean = [torch.zeros_like(t) for t in tensors]
        self._squares = [torch.zeros_like(t) for t in tensors]

    @torch.no_grad()
    def add(self, tensors: Sequence[Tensor]) -> None:
        """Take in one more snapshot."""
        self.count += 1
        away = torch._foreach_sub(list(tensors), self.mean)
        torch._foreach_add_(self.mean, away, alpha=1 / self.count)
        still = torch._foreach_sub(list(tensors), self.mean)
        torch._foreach_addcmul_(self._squares, away, still)

    def variance(self) -> list[Tensor]:
        """``E[w^2] - E[w]^2`` (biased), as the tensors."""
        return list(torch._foreach_div(self._squares, float(self.count)))


@torch.no_grad()
def add_prior(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    mean: Sequence[Tensor],
    variance: Sequence[Tensor],
    weight: float,
) -> Tensor:
    """Add the gradient of ``weight * R`` to ``grads``, in place; ``R`` is the Gaussian prior.

    ``R = 1/2 sum (w - mean)^2 / (variance + 1e-6)`` over all weights. Its gradient is known in
    closed form, so that it needs no graph.

    Args:
        params: Weights of any shapes.
        grads: Their gradients.
        mean: Means, of the same shapes.
        variance: Variances of at least 0, of the same shapes.
        weight: Factor of ``R``.

    Returns:
        ``R``, a scalar tensor.
    """
    away = torch._foreach_sub(list(params), list(mean))
    scaled = torch._foreach_div(away, torch._foreach_add(list(variance), EPSILON))
    torch._foreach_add_(list(grads), scaled, alpha=weight)
    torch._foreach_mul_(scaled, away)
    return 0.5 * torch.stack(torch._foreach_norm(scaled, 1)).sum()


@torch.no_grad()
def below_quantile(grads: Sequence[Tensor], quantile: float) -> Tensor:
    """Which squared gradients (Fisher values) lie strictly below their own quantile.

    Args:
        grads: ``N`` gradients in tensors of any shapes.
        quantile: In ``[0, 1]``; interpolated linearly between neighbours.

    Returns:
        bool ``(N,)`` in the order of ``grads``.
    """
    fisher = torch.cat([g.reshape(-1) for g in grads]).square_()
    position = quantile * (len(fisher) - 1)
    low = math.floor(position)
    count = min(low + 2, len(fisher))
    # Two neighbours of a sorted list without sorting it: torch.quantile stops at 16 M values.
    smallest = fisher.topk(count, largest=False, sorted=False).values
    upper, lower = smallest.topk(min(2, count)).values.tensor_split([1])
    lower = lower if count == low + 2 else upper
    return fisher < lower + (position - low) * (upper - lower)
