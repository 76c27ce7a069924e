"""Weights by name: which of a model's, copies of them, and the distance from a copy."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from tta.errors import AdapterError
from tta.heads import find_head


def chosen_names(model: nn.Module, *, head: bool, pattern: str = "") -> list[str]:
    """Names of the parameters to hold on to.

    Args:
        model: The learner.
        head: Whether those of the classifier are among them.
        pattern: Regular expression that a name must contain; empty takes all.

    Raises:
        AdapterError: If nothing is left, if the classifier to leave out cannot be found, or if
            the pattern is no regular expression.
    """
    try:
        wanted = re.compile(pattern)
    except re.error as error:
        raise AdapterError(f"params={pattern!r} is no regular expression: {error}") from None
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    if not head:
        classifier = {id(p) for p in find_head(model)[1].parameters()}
        own = {name for name, p in model.named_parameters() if id(p) in classifier}
        names = [name for name in names if name not in own]
    chosen = [name for name in names if wanted.search(name)]
    if not chosen:
        raise AdapterError(
            f"no parameter is left to regularise: {pattern!r} matches none of {names[:5]}..."
            if names
            else "no parameter is left to regularise outside the classifier"
        )
    return chosen


def copies(model: nn.Module, names: Sequence[str]) -> dict[str, Tensor]:
    """Detached copies of parameters, by name."""
    own = dict(model.named_parameters())
    return {name: own[name].detach().clone() for name in names}


def squared_distance(
    model: nn.Module, anchors: Mapping[str, Tensor], weights: Mapping[str, Tensor] | None = None
) -> Tensor:
    """Sum of ``weight * (parameter - anchor) ** 2`` over all entries; differentiable.

    Where a parameter has grown (a head with new classes), the leading part counts that the anchor
    had.

    Args:
        model: The learner.
        anchors: By parameter name.
        weights: Of the same names and shapes; 1 when ``None``.
    """
    own = dict(model.named_parameters())
    names = [name for name in anchors if name in own and own[name].requires_grad]
    if not names:
        return next(iter(own.values())).new_zeros(())
    params = [leading(own[name], anchors[name]) for name in names]
    there = [anchors[name].to(own[name].device) for name in names]
    differences = torch._foreach_sub(params, there)
    squares = torch._foreach_mul(differences, differences)
    if weights is not None:
        held = [weights[name].to(own[name].device) for name in names]
        squares = torch._foreach_mul(squares, held)
    return torch.stack([square.sum() for square in squares]).sum()


def leading(value: Tensor, like: Tensor) -> Tensor:
    """The leading part of a tensor that has the shape of another."""
    if value.shape == like.shape:
        return value
    return value[tuple(slice(size) for size in like.shape)]


def padded(value: Tensor, like: Tensor) -> Tensor:
    """A tensor with zeros after it, in the shape, dtype and device of another."""
    value = value.to(like)
    if value.shape == like.shape:
        return value
    made = torch.zeros_like(like, requires_grad=False)
    leading(made, value).copy_(value)
    return made
