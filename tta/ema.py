"""Copies of a model that follow it or stand still: averaged teachers, anchors, restoration."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn


def frozen_copy(model: nn.Module) -> nn.Module:
    """An independent copy with buffers of its own and no gradients; modes and hooks are kept."""
    return copy.deepcopy(model).requires_grad_(False)


@torch.no_grad()
def update(target: Sequence[Tensor], source: Sequence[Tensor], decay: float) -> None:
    """``target = decay * target + (1 - decay) * source``, in place.

    Equal tensors stay equal bit for bit, whatever ``decay`` is.

    Args:
        target: Floating tensors of any shapes.
        source: As many tensors, of the same shapes, dtypes and devices.
        decay: Share of the old value that is kept, in ``[0, 1]``.
    """
    torch._foreach_lerp_(list(target), list(source), 1.0 - decay)


@torch.no_grad()
def restore(
    params: Sequence[Tensor],
    anchors: Sequence[Tensor],
    probability: float,
    generator: torch.Generator,
) -> None:
    """Stochastic restoration, in place: each element becomes its anchor's with ``probability``.

    Args:
        params: Floating tensors of any shapes, on one device.
        anchors: As many tensors, of the same shapes, dtype and device.
        probability: Of each element on its own, in ``[0, 1]``.
        generator: A CPU generator; the same one gives the same elements on every device.
    """
    count = sum(p.numel() for p in params)
    if not count or probability <= 0:
        return
    mask = torch.zeros(count, dtype=torch.bool, device=params[0].device)
    mask[chosen_elements(count, probability, generator).to(mask.device)] = True
    restore_where(params, anchors, mask)


@torch.no_grad()
def restore_where(params: Sequence[Tensor], anchors: Sequence[Tensor], mask: Tensor) -> None:
    """Give the elements that ``mask`` marks their anchor's value, in place.

    Args:
        params: Floating tensors of any shapes.
        anchors: As many tensors, of the same shapes and dtype.
        mask: bool, ``(N,)`` for ``N`` elements in all, in the order of ``params``.
    """
    parts = torch.split(mask.to(params[0].dtype), [p.numel() for p in params])
    weights = [part.view(p.shape) for part, p in zip(parts, params, strict=True)]
    # A weight of exactly one gives the anchor and of zero the parameter, both bit for bit.
    torch._foreach_lerp_(list(params), list(anchors), weights)


def chosen_elements(count: int, probability: float, generator: torch.Generator) -> Tensor:
    """Which of ``count`` elements are chosen when each is with ``probability``.

    The gaps between chosen elements are geometric, so that the number of draws is that of the
    chosen elements, a hundredth of all for the usual probabilities.

    Returns:
        Increasing positions, int64, on the CPU.
    """
    if probability >= 1:
        return torch.arange(count)
    expected = count * probability
    draws = int(expected + 6 * math.sqrt(expected)) + 16  # six deviations: a second round is rare
    last, found = -1.0, []
    while last < count:
        gaps = torch.empty(draws, dtype=torch.float64).geometric_(probability, generator=generator)
        found.append(gaps.cumsum(0) + last)
        last = float(found[-1][-1])
    positions = torch.cat(found)
    return positions[positions < count].long()
