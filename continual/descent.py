"""The descent that unlearners share: SGD on labelled images, some weights held in place."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from continual.passes import seeded, trainable
from continual.plugin import PluginConfig
from streams.order import rng
from tta.config import param
from tta.errors import AdapterError

Batches = Callable[[int], Iterator[tuple[Tensor, Tensor]]]
"""Images and labels of the batches of an epoch."""


class Labelled(Protocol):
    """Labelled images; ``streams.learning_types.Samples`` is one."""

    def __len__(self) -> int:
        """Number of images."""

    def batch(self, at: np.ndarray[Any, np.dtype[np.int64]]) -> tuple[Tensor, Tensor]:
        """Images ``(M, C, H, W)`` in [0, 1] and labels ``(M,)`` int64 at the given places."""


@dataclass(frozen=True, kw_only=True, slots=True)
class UnlearnConfig(PluginConfig):
    """How an unlearner descends; values of the OPTML code for CIFAR-10."""

    lr: float = param(0.01, "learning rate of SGD", gt=0)
    momentum: float = param(0.9, "momentum", ge=0, lt=1)
    weight_decay: float = param(5e-4, "weight decay", ge=0)
    epochs: int = param(10, "passes", ge=1)
    batch_size: int = param(256, "images a step", ge=1)
    freeze_norm: bool = param(False, "keep BatchNorm layers in eval mode")


def descend(
    model: nn.Module,
    config: UnlearnConfig,
    batches: Batches,
    purpose: str,
    *,
    optimizer: torch.optim.Optimizer | None = None,
    mask: Mapping[str, Tensor] | None = None,
    after_backward: Callable[[int], None] | None = None,
) -> int:
    """Go down the cross-entropy in train mode; modes are put back after.

    Args:
        model: Changed in place.
        config: Options of the descent.
        batches: Batches of each epoch.
        purpose: Key of the draws of dropout.
        optimizer: Owner of the model's parameters; by default SGD as the options have it.
        mask: Which weights may move, by parameter name; the others stay bit for bit.
        after_backward: Called with the epoch before each step, when gradients are there.

    Returns:
        Images sent forward, and as many back.
    """
    params = trainable(model)
    if optimizer is None:
        optimizer = torch.optim.SGD(
            params.values(),
            lr=config.lr,
            momentum=config.momentum,
            weight_decay=config.weight_decay,
        )
    # Gradients alone do not hold a weight: decay moves it, and so does momentum of before.
    start = {} if mask is None else {name: p.detach().clone() for name, p in params.items()}
    modes = [(module, module.training) for module in model.modules()]
    images = step = 0
    try:
        for epoch in range(config.epochs):
            for x, y in batches(epoch):
                _train_mode(model, config.freeze_norm or len(x) == 1)
                draw = rng(config.seed, "dropout of unlearning", purpose, step)
                with seeded(torch.Generator().manual_seed(int(draw.integers(2**62))), model):
                    loss = F.cross_entropy(model(x), y)
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                if after_backward is not None:
                    after_backward(epoch)
                optimizer.step()
                if mask is not None:
                    _hold(params, start, mask, optimizer)
                images, step = images + len(x), step + 1
    finally:
        optimizer.zero_grad()
        for module, training in modes:
            module.training = training
    return images


@torch.no_grad()
def _hold(
    params: Mapping[str, Tensor],
    start: Mapping[str, Tensor],
    mask: Mapping[str, Tensor],
    optimizer: torch.optim.Optimizer,
) -> None:
    """Put masked weights back and their momentum to zero."""
    for name, p in params.items():
        p.copy_(torch.where(mask[name], p, start[name]))
        momentum = optimizer.state[p].get("momentum_buffer") if p in optimizer.state else None
        if momentum is not None:
            momentum.mul_(mask[name])


def _train_mode(model: nn.Module, freeze_norm: bool) -> None:
    model.train()
    if freeze_norm:
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()


def shuffled(model: nn.Module, data: Labelled, config: UnlearnConfig, purpose: str) -> Batches:
    """Batches of ``data`` in an order drawn anew each epoch, on the model's device."""

    def batches(epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        order = rng(config.seed, "unlearn", purpose, epoch).permutation(len(data))
        for places in in_batches(order, config.batch_size):
            yield on_device(model, *data.batch(places))

    return batches


def in_batches(order: np.ndarray[Any, Any], batch_size: int) -> list[np.ndarray[Any, Any]]:
    """Batches of an order; a single row at the end joins the batch before (BatchNorm needs two)."""
    starts = list(range(0, len(order), batch_size))
    if len(starts) > 1 and len(order) - starts[-1] == 1:
        starts.pop()
    return [order[first:last] for first, last in pairwise([*starts, len(order)])]


def gradients(loss: Tensor, params: Mapping[str, Tensor]) -> list[Tensor]:
    """Gradients in the order of ``params``; zeros for those that the loss does not depend on."""
    found = torch.autograd.grad(loss, list(params.values()), allow_unused=True)
    return [
        torch.zeros_like(p) if g is None else g for g, p in zip(found, params.values(), strict=True)
    ]


def on_device(model: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Images in the model's dtype and on its device, labels on its device."""
    like = next(model.parameters())
    return x.to(like), y.to(like.device)


def need(samples: Labelled, who: str, what: str = "retained to learn from") -> None:
    """Refuse an empty set.

    Raises:
        AdapterError: If there is no sample.
    """
    if not len(samples):
        raise AdapterError(f"{who} found nothing {what}: the request leaves no sample for it")
