"""Optimisers of the adapted parameters, built from flat config fields."""

from __future__ import annotations

from collections.abc import Sequence
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


def step_if_finite(optimizer: torch.optim.Optimizer, loss: Tensor) -> bool:
    """Back-propagate ``loss`` and step, unless a gradient is NaN or infinite.

    One host synchronisation decides; on refusal weights and moments stay as they were.

    Args:
        optimizer: Owner of the adapted parameters.
        loss: Scalar with a graph.

    Returns:
        Whether the step was taken.
    """
    optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    params = (p for group in optimizer.param_groups for p in group["params"])
    grads = [p.grad for p in params if p.grad is not None]
    finite = bool(grads) and bool(torch.stack(torch._foreach_norm(grads)).isfinite().all())
    if finite:
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return finite
