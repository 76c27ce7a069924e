"""Optimisers of the adapted parameters, built from flat config fields."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from tta.config import AdapterConfig, param


@dataclass(frozen=True, kw_only=True, slots=True)
class GradientConfig(AdapterConfig):
    """The fields that every method with gradient steps shares."""

    optimizer: Literal["sgd", "adam", "adamw"] = param("sgd", "update rule")
    lr: float = param(1e-3, "learning rate", gt=0)
    momentum: float = param(0.9, "momentum of sgd", ge=0, lt=1)
    nesterov: bool = param(False, "Nesterov form of the momentum of sgd")
    betas: tuple[float, float] = param((0.9, 0.999), "moment decay of adam and adamw", ge=0, lt=1)
    weight_decay: float = param(0.0, "weight decay", ge=0)
    steps: int = param(1, "updates per batch", ge=1)


def build(config: GradientConfig, params: Sequence[nn.Parameter]) -> torch.optim.Optimizer:
    """The optimiser that ``config`` names, over ``params``."""
    if config.optimizer == "sgd":
        return torch.optim.SGD(
            params,
            lr=config.lr,
            momentum=config.momentum,
            nesterov=config.nesterov and config.momentum > 0,
            weight_decay=config.weight_decay,
        )
    rule = torch.optim.Adam if config.optimizer == "adam" else torch.optim.AdamW
    return rule(params, lr=config.lr, betas=config.betas, weight_decay=config.weight_decay)


def step_if_finite(optimizer: torch.optim.Optimizer, loss: Tensor | Iterable[Tensor]) -> bool:
    """Back-propagate ``loss`` and step, unless a gradient is NaN or infinite.

    One host synchronisation decides; on refusal weights and moments stay as they were.

    Args:
        optimizer: Owner of the adapted parameters.
        loss: Scalar with a graph, or its terms: the graph of each is freed before the next is built
            where they are made on demand.

    Returns:
        Whether the step was taken.
    """
    return _step(optimizer, _backward(optimizer, loss))


def sharpness_aware_step(
    optimizer: torch.optim.Optimizer,
    loss: Tensor | None,
    again: Callable[[], Tensor | None],
    rho: float,
) -> bool:
    """Step from here with the gradient taken where the loss is highest nearby (SAM).

    The weights go up by ``rho * g / (|g| + 1e-12)``, with one norm over all of them, ``again`` is
    back-propagated there, and the weights come back bit for bit before the optimiser steps.
    ``None`` is a loss whose gradient is known to be 0, and nothing goes back: the first moves
    nothing up, with the second the step is the optimiser's momentum alone.

    Args:
        optimizer: Owner of the adapted parameters.
        loss: Scalar with a graph, or ``None``.
        again: The loss at the raised weights: a scalar with a graph, or ``None``.
        rho: Length of the way up.

    Returns:
        Whether the step was taken; not where a gradient is NaN or infinite.
    """
    if loss is None:
        return _step(optimizer, _backward_or_nothing(optimizer, again()))
    optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    params: list[Tensor] = [p for p in params_of(optimizer) if p.grad is not None]
    grads = [p.grad for p in params if p.grad is not None]
    if not grads:
        return False
    with torch.no_grad():
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(grads)))
        raised = torch._foreach_mul(grads, rho / (norm + 1e-12))
        torch._foreach_add_(raised, params)
    with lent(params, raised):
        finite = _backward_or_nothing(optimizer, again(), norm)
    return _step(optimizer, finite)


@contextmanager
def lent(params: Sequence[Tensor], values: Sequence[Tensor]) -> Iterator[None]:
    """Give ``params`` other values for a while; the own ones come back bit for bit.

    Args:
        params: Leaves of any shapes; no graph may be open through them.
        values: As many tensors, of the same shapes and dtypes.
    """
    params, values = list(params), list(values)
    with torch.no_grad():
        own = torch._foreach_mul(params, 1.0)  # copies, in one kernel
        torch._foreach_copy_(params, values)
    try:
        yield
    finally:
        with torch.no_grad():
            torch._foreach_copy_(params, own)


def params_of(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    """The parameters that an optimiser owns, in its order."""
    return [p for group in optimizer.param_groups for p in group["params"]]


def _backward(
    optimizer: torch.optim.Optimizer, loss: Tensor | Iterable[Tensor], *norms: Tensor
) -> bool:
    """Fresh gradients of ``loss``; whether they and ``norms`` are finite: one synchronisation."""
    optimizer.zero_grad(set_to_none=True)
    for term in (loss,) if isinstance(loss, Tensor) else loss:
        term.backward()
    grads = [p.grad for p in params_of(optimizer) if p.grad is not None]
    norms = (*norms, *torch._foreach_norm(grads))
    return bool(grads) and bool(torch.stack(norms).isfinite().all())


def _backward_or_nothing(
    optimizer: torch.optim.Optimizer, loss: Tensor | None, *norms: Tensor
) -> bool:
    """As ``_backward``; gradients of 0 for ``None``."""
    if loss is not None:
        return _backward(optimizer, loss, *norms)
    for adapted in params_of(optimizer):
        adapted.grad = torch.zeros_like(adapted)
    return all(bool(norm.isfinite()) for norm in norms)


def _step(optimizer: torch.optim.Optimizer, finite: bool) -> bool:
    if finite:
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return finite
