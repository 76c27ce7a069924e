"""Logits averaged over augmented views, several views in one forward, each as if it came alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tta import norms

_SMALL = 32 * 32


def mean_logits(
    forward: Callable[[Tensor], Tensor],
    layers: list[nn.Module],
    view: Callable[[int], Tensor],
    views: int,
    images_per_forward: int,
) -> Tensor:
    """Mean over the views of the logits, without a graph.

    Args:
        forward: Images ``(N, C, H, W)`` to logits ``(N, K, ...)``.
        layers: The BatchNorm layers of ``forward`` that normalise by the current batch (see
            ``batch_layers``). Each view keeps statistics of its own.
        view: Number of a view to its images ``(B, C, H, W)``; called once each, in order.
        views: How many there are, at least 1.
        images_per_forward: Most images of 32x32 in one forward, fewer of larger ones: what is saved
            by putting small views together is lost on feature maps that leave the caches. A view is
            never divided.

    Returns:
        ``(B, K, ...)``.
    """
    total: Tensor | None = None
    done = 0
    with torch.no_grad():
        while done < views:
            first = view(done)
            size = max(first[0, 0].numel(), _SMALL)
            most = images_per_forward * _SMALL // size
            together = min(max(1, most // len(first)), views - done)
            if together == 1:
                part = forward(first)
            else:
                # Image by image, its views beside each other: see _OwnStatistics.
                stacked = torch.stack(
                    [first, *(view(done + i) for i in range(1, together))], dim=1
                ).flatten(0, 1)
                with _OwnStatistics(layers, together):
                    logits = forward(stacked)
                part = logits.view(len(first), together, *logits.shape[1:]).sum(dim=1)
            total = part if total is None else total + part
            done += together
    assert total is not None
    return total / views


def kept_apart(layers: list[nn.Module], weights: Iterable[Tensor], images: int) -> bool:
    """Whether views of ``images`` images are faster one by one: 2 times on a ResNet-32.

    With channels last, the views of a stacked batch come apart into planes by copies alone, two at
    every BatchNorm layer.

    Args:
        layers: As for ``mean_logits``.
        weights: Of the network.
        images: In a view.
    """
    last = any(
        w.ndim == 4 and w.is_contiguous(memory_format=torch.channels_last) and not w.is_contiguous()
        for w in weights
    )
    return bool(layers) and images > 1 and last


def batch_layers(model: nn.Module) -> list[nn.Module]:
    """The BatchNorm layers that ``norms.use_batch_statistics`` has set to the current batch."""
    return [
        layer.module
        for layer in norms.find(model)
        if layer.kind == "bn" and not layer.module.track_running_stats
    ]


class _OwnStatistics:
    """While it lasts, BatchNorm layers normalise each view in a stacked batch on its own.

    With image ``b`` of view ``v`` at ``b * views + v``, ``(B * V, C, ...)`` is ``(B, V * C, ...)``
    in memory: one fused call normalises every view by itself. The layer then applies its scale and
    shift to statistics that change nothing.
    """

    def __init__(self, layers: list[nn.Module], views: int) -> None:
        self.layers = layers
        self.views = views
        self.kept: dict[nn.Module, tuple[Tensor | None, Tensor | None]] = {}
        self.hooks: list[Any] = []

    def __enter__(self) -> None:
        for layer in self.layers:
            self.hooks.append(layer.register_forward_pre_hook(self.before))
            self.hooks.append(layer.register_forward_hook(self.after, always_call=True))

    def __exit__(self, *error: object) -> None:
        for hook in self.hooks:
            hook.remove()

    def before(self, module: nn.Module, args: tuple[Any, ...]) -> Tensor | None:
        x: Tensor = args[0]
        module.training = False
        if x.numel() == self.views * x.shape[1]:  # one value per channel: the running statistics
            return None
        planes = x.reshape(-1, self.views * x.shape[1], *x.shape[2:])
        eps: float = module.eps  # type: ignore[assignment]
        normalised = F.batch_norm(planes, None, None, training=True, eps=eps).view(x.shape)
        self.kept[module] = (module._buffers["running_mean"], module._buffers["running_var"])
        # Under autocast the layer's own tensors are wider than what passes through it.
        own = module.weight if isinstance(module.weight, Tensor) else normalised
        module._buffers["running_mean"] = own.new_zeros(x.shape[1])
        module._buffers["running_var"] = own.new_full((x.shape[1],), 1 - eps)
        return normalised

    def after(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if module in self.kept:
            own = self.kept.pop(module)
            module._buffers["running_mean"], module._buffers["running_var"] = own
