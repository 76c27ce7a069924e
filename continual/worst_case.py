"""The set of samples that is hardest to forget, found by a bi-level search.

Fan, Liu, Hero, Liu: Challenging forgets: Unveiling the worst-case forget sets in machine
unlearning, 2024, arXiv:2403.07362. Reference code: OPTML-Group/Unlearn-WorstCase @ fc727ce.
"""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from continual.descent import Labelled
from continual.passes import trainable, untouched
from tta.errors import AdapterError


def capped_simplex(
    values: Tensor, total: float, *, tolerance: float = 1e-9, iterations: int = 100
) -> Tensor:
    """Nearest point of ``{0 <= w <= 1, sum w = total}``, by bisection.

    Args:
        values: ``(N,)``.
        total: Sum of the result, in ``[0, N]``.
        tolerance: Width of the interval of the shift at which the search ends.
        iterations: At most so many halvings.

    Returns:
        ``clip(values - shift, 0, 1)`` in float64.

    Raises:
        AdapterError: If the sum cannot be reached.

    Example:
        >>> w = capped_simplex(torch.tensor([0.9, 0.8, 0.3, 0.1, -0.2]), 2)
        >>> [round(v, 3) for v in w.tolist()]
        [0.875, 0.775, 0.275, 0.075, 0.0]
    """
    if not 0 <= total <= len(values):
        raise AdapterError(f"{len(values)} weights of at most 1 cannot sum to {total}")
    values = values.detach().double()
    low, high = float(values.min()) - 1, float(values.max())
    for _ in range(iterations):
        middle = (low + high) / 2
        if float((values - middle).clamp(0, 1).sum()) > total:
            low = middle
        else:
            high = middle
        if high - low < tolerance:
            break
    return (values - (low + high) / 2).clamp(0, 1)


def worst_case_forget_set(
    model: nn.Module,
    samples: Labelled,
    size: int,
    *,
    rounds: int = 10,
    steps: int = 10,
    lr: float = 1e-3,
    weight_lr: float = 0.01,
    gamma: float = 0.0,
    easiest: bool = False,
    batch_size: int = 256,
) -> Tensor:
    """Samples whose loss stays lowest when all others are trained on without them.

    Each round unlearns from the given weights (``steps`` of sign descent on the losses, weighted by
    one minus each sample's weight) and moves the weights towards samples of low loss thereafter,
    onto the capped simplex.

    Deviations: losses and gradients are of all samples, in eval mode, where the reference code
    takes mini-batches; nothing is drawn at random.

    Args:
        model: Trained; left as it is.
        samples: Candidates.
        size: Number of samples to find.
        rounds: Updates of the weights.
        steps: Steps of sign descent a round.
        lr: Length of such a step.
        weight_lr: Step size of the weights.
        gamma: Weight of the squared length of the weights.
        easiest: Find the samples that are easiest to forget instead.
        batch_size: Images a pass.

    Returns:
        Places ``(size,)`` int64, ascending.
    """
    count = len(samples)
    weights = torch.full((count,), size / max(count, 1), dtype=torch.float64)
    sign = -1.0 if easiest else 1.0
    for _ in range(rounds):
        losses = _losses_after(model, samples, 1 - weights, steps, lr, batch_size)
        moved = weights - weight_lr * (sign * losses + 2 * gamma * weights)
        weights = capped_simplex(moved, size)
    return weights.sort(descending=True, stable=True).indices[:size].sort().values


def _losses_after(
    model: nn.Module, samples: Labelled, factors: Tensor, steps: int, lr: float, batch_size: int
) -> Tensor:
    """Loss ``(N,)`` of each sample after sign descent on the weighted sum of the losses."""
    made = deepcopy(model)
    params = list(trainable(made).values())
    with untouched(made, mode="eval"):
        for _ in range(steps):
            sums = [torch.zeros_like(p) for p in params]
            for places, losses in _losses(made, samples, batch_size):
                weighted = (losses * factors[places].to(losses)).sum()
                torch._foreach_add_(sums, torch.autograd.grad(weighted, params))
            with torch.no_grad():
                torch._foreach_add_(params, torch._foreach_sign(sums), alpha=-lr)
        with torch.no_grad():
            return torch.cat([v.double().cpu() for _, v in _losses(made, samples, batch_size)])


def _losses(
    model: nn.Module, samples: Labelled, batch_size: int
) -> Iterator[tuple[Tensor, Tensor]]:
    like = next(model.parameters())
    for first in range(0, len(samples), batch_size):
        at = np.arange(first, min(first + batch_size, len(samples)))
        x, y = samples.batch(at)
        losses = F.cross_entropy(model(x.to(like)), y.to(like.device), reduction="none")
        yield torch.from_numpy(at), losses
