"""The forwards and backwards of a step, and what they cost on a bare model."""

from __future__ import annotations

import copy
from bisect import bisect_left
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import tta
from benchmarks.machine import now
from tta import norm_layers


@dataclass
class Call:
    """A forward of the whole model inside a step."""

    images: int
    graph: bool


class Bare:
    """The model alone, in the modes that the method gave it, priced at a few sizes.

    Between two of them the time of a forward is taken as affine in the number of images.
    """

    def __init__(self, model: nn.Module, names: set[str], x: Tensor, device: str) -> None:
        self.model, self.device = model, device
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in names)
        self.learns = any(p.requires_grad for p in model.parameters())
        small = max(2, len(x) // 4)
        self.batches = {len(x): x, small: x[:small]}

    def cover(self, images: int) -> None:
        """Price a batch of ``images`` too, where it is clearly larger than those priced so far."""
        x = self.batches[max(self.batches)]
        if images > 1.5 * len(x):
            self.batches[images] = x.repeat(-(-images // len(x)), 1, 1, 1)[:images]

    def time(self) -> dict[int, tuple[float, float, float]]:
        """Seconds for each of the sizes: a forward; one and a backward; a forward with a graph."""
        return {size: self._timed(x) for size, x in self.batches.items()}

    def _timed(self, x: Tensor) -> tuple[float, float, float]:
        forward = self._forward(x)
        both, graph = self._both(x) if self.learns else (0.0, forward)
        return forward, both, graph

    def _forward(self, x: Tensor) -> float:
        started = now(self.device)
        with torch.no_grad():
            self.model(x)
        return now(self.device) - started

    def _both(self, x: Tensor) -> tuple[float, float]:
        started = now(self.device)
        loss: Tensor = self.model(x).logsumexp(1).mean()
        graph = now(self.device) - started
        loss.backward()  # type: ignore[no-untyped-call]
        seconds = now(self.device) - started
        self.model.zero_grad(set_to_none=True)
        return seconds, graph


def bound(
    calls: list[Call], report: dict[str, float], prices: dict[int, tuple[float, ...]], size: int
) -> float:
    """Seconds of the forwards and backwards of a step, by prices affine between the sizes.

    What is selected is known after the forward: one with a graph is paid also where nothing is.
    """
    sizes = sorted(prices)

    def price(images: int, which: int) -> float:
        upper = min(max(bisect_left(sizes, images), 1), len(sizes) - 1)
        small, large = sizes[upper - 1], sizes[upper]
        at_small, at_large = prices[small], prices[large]
        slope = (at_large[which] - at_small[which]) / (large - small)
        # Noise may turn the line; a size is never cheaper than in proportion to nothing.
        return max(at_large[which] + slope * (images - large), 0.0)

    graph = 1 if report["backwards"] > 0 else 2
    seconds = sum(price(call.images, graph if call.graph else 0) for call in calls)
    # Forwards that did not go through the whole model's ``forward`` count by the method's report.
    unseen = report["forwards"] - sum(call.images for call in calls)
    if unseen > 0:
        seconds += unseen * prices[size][0] / size
    return seconds


@contextmanager
def calls_of(adapter: tta.Adapter) -> Iterator[list[Call]]:
    """Record the forwards of the adapted model and of its teachers."""
    kind, seen = type(adapter.model), []

    def note(module: nn.Module, args: tuple[Any, ...]) -> None:
        seen.append(Call(len(args[0]), torch.is_grad_enabled()))

    roots = [child for child in adapter.children() if type(child) is kind]
    hooks = [root.register_forward_pre_hook(note) for root in roots]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def adapted(adapter: tta.Adapter) -> set[str]:
    """Names of the parameters that are trained."""
    return {name for name, p in adapter.model.named_parameters() if p.requires_grad}


def bare_twin(model: nn.Module, adapter: tta.Adapter) -> nn.Module:
    """The model as it came, with batch statistics where the method has them."""
    own = bool(norm_layers.find(adapter))
    moved = {name for name, m in adapter.model.named_modules() if m.training}
    twin = copy.deepcopy(model).eval()
    for name, module in twin.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and (own or name in moved):
            module.train()
    return twin
