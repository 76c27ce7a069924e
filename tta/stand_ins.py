"""RobustBN and IABN, and the base of all layers that take the place of BatchNorm."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from tta import moments
from tta.errors import AdapterError

_Pair = tuple[Tensor, Tensor]


class StandIn(nn.Module):
    """A normalisation layer in the place of ``source``, whose tensors it takes over.

    Subclasses write ``normalize``. ``moving`` is a switch, not state: it is off between steps.

    Args:
        source: A BatchNorm layer with running statistics.
        seed: Key of the layer's random draws.
    """

    kind: ClassVar[str]
    # What ``tta.norms`` knows these layers by.
    keeps_own_statistics: ClassVar[bool] = True

    weight: Tensor | None
    bias: Tensor | None
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, source: _BatchNorm, seed: str = "") -> None:
        super().__init__()
        self.num_features = source.num_features
        self.eps = source.eps
        self.momentum = 0.1 if source.momentum is None else source.momentum
        self.moving = False
        self.register_parameter("weight", source._parameters.get("weight"))
        self.register_parameter("bias", source._parameters.get("bias"))
        for name, buffer in source._buffers.items():
            self.register_buffer(name, buffer)
        # timm's layers carry their dropout and activation.
        for name, child in source.named_children():
            self.add_module(name, child)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        """Normalise ``(B, C, ...)``; statistics are computed in float32 at least."""
        lowered = torch.is_autocast_enabled(x.device.type)
        with torch.autocast(x.device.type, enabled=False) if lowered else nullcontext():
            y = self.normalize(widened(x)).to(x.dtype)
        for child in self.children():
            y = child(y)
        return y

    def normalize(self, x: Tensor) -> Tensor:
        """Images' features ``(B, C, ...)`` to the same shape; moves statistics if ``moving``."""
        raise NotImplementedError

    def extra_repr(self) -> str:
        """Kind, channels and options."""
        options = "".join(f", {key}={value}" for key, value in self.options().items())
        return (
            f"{self.kind}, {self.num_features}, eps={self.eps}, momentum={self.momentum}{options}"
        )

    def options(self) -> dict[str, Any]:
        """What the layer was told, as plain values."""
        names = list(inspect.signature(type(self)).parameters)[2:]
        return {name: getattr(self, name) for name in names}

    def by_running(self, x: Tensor) -> Tensor:
        """Normalised by the running statistics, as a BatchNorm in eval mode."""
        mean, var = self.running_mean, self.running_var
        if x.dtype != mean.dtype:
            return moments.affine(x, *self.line(mean, var.to(x.dtype), self.weight, self.bias))
        return F.batch_norm(x, mean, var, self.weight, self.bias, False, 0.0, self.eps)

    def by_moments(self, x: Tensor, mixed: Callable[[Tensor, Tensor], _Pair]) -> Tensor:
        """Normalised by what ``mixed`` makes of the images' (biased) variance and mean ``(B, C)``.

        Args:
            x: ``(B, C, ...)``.
            mixed: To mean and variance, ``(B, C)`` or ``(C,)``; differentiable in what it is given.
        """

        def head(var: Tensor, mean: Tensor, *affine: Tensor | None) -> _Pair:
            centre, spread = mixed(var, mean)
            return self.line(centre, spread.to(x.dtype), *affine)

        return moments.normalised(x, head, self.weight, self.bias)

    def line(self, mean: Tensor, var: Tensor, weight: Tensor | None, bias: Tensor | None) -> _Pair:
        """Factor and summand of a normalisation by ``mean`` and ``var`` and its affine part."""
        scale = (var + self.eps).rsqrt()
        scale = scale if weight is None else scale * weight
        return scale, -mean * scale if bias is None else bias - mean * scale


class RobustBN(StandIn):
    """RoTTA's BatchNorm: normalises by running statistics that the batch has just moved.

    Standing still it is a BatchNorm in eval mode. The gradient flows through the batch's share.

    Args:
        source: A BatchNorm layer with running statistics.
        seed: Unused.
        alpha: Share of the batch (variance: biased) in the new statistics.
    """

    kind = "robust"

    def __init__(self, source: _BatchNorm, seed: str = "", *, alpha: float = 0.05) -> None:
        super().__init__(source)
        self.alpha = within("alpha", alpha, 0, 1)

    def normalize(self, x: Tensor) -> Tensor:
        """``(B, C, ...)``."""
        if not self.moving:
            return self.by_running(x)
        weight, bias, running = self.weight, self.bias, (self.running_mean, self.running_var)
        own = running[0].dtype == x.dtype and moments.fused(x)
        if own and weight is not None and bias is not None:
            out, mean, var = moments.robust(x, weight, bias, *running, self.alpha, self.eps)
            self._move(mean, var)
            return out

        def mixed(own_var: Tensor, own_mean: Tensor) -> _Pair:
            own_var, own_mean = moments.over_images(own_var, own_mean, x[0, 0].numel())
            mean = (1 - self.alpha) * self.running_mean + self.alpha * own_mean
            var = (1 - self.alpha) * self.running_var + self.alpha * own_var
            self._move(mean.detach(), var.detach())
            return mean, var

        return self.by_moments(x, mixed)

    def _move(self, mean: Tensor, var: Tensor) -> None:
        self.running_mean.copy_(mean)
        self.running_var.copy_(var)


class IABN(StandIn):
    """NOTE's instance-aware BatchNorm: an image corrects the statistics where it differs clearly.

    The reference statistics are the running ones; those of the batch with ``batch_statistics`` or
    in training mode, which also moves the running ones. Images with at most ``skip_positions``
    positions take the reference as it is. With a very large ``k`` it is a BatchNorm.

    Args:
        source: A BatchNorm layer with running statistics.
        seed: Unused.
        k: Width of the band without correction, in standard errors.
        skip_positions: Positions (height times width) up to which nothing is corrected.
        batch_statistics: Always take the batch as the reference.
        batch_momentum: Share of the batch in the running statistics in training mode.
    """

    kind = "iabn"

    def __init__(
        self,
        source: _BatchNorm,
        seed: str = "",
        *,
        k: float = 4.0,
        skip_positions: int = 1,
        batch_statistics: bool = False,
        batch_momentum: float = 0.01,
    ) -> None:
        super().__init__(source)
        self.k = within("k", k, 0)
        self.skip_positions = whole("skip_positions", skip_positions)
        if batch_statistics not in (False, True):
            raise AdapterError(f"batch_statistics={batch_statistics!r} must be true or false")
        self.batch_statistics = bool(batch_statistics)
        self.batch_momentum = within("batch_momentum", batch_momentum, 0, 1)

    def normalize(self, x: Tensor) -> Tensor:
        """``(B, C, ...)``."""
        positions = x[0, 0].numel()

        def mixed(own_var: Tensor, own_mean: Tensor) -> _Pair:
            mean, var = self.reference(own_var, own_mean, positions)
            if positions <= self.skip_positions:
                return mean, var
            spread = var + self.eps
            mean_band = self.k * (spread / positions).sqrt()
            var_band = self.k * spread * (2 / (positions - 1)) ** 0.5
            own_var = moments.corrected(own_var, positions)
            mean = mean + _shrink(own_mean - mean, mean_band)
            return mean, F.relu(var + _shrink(own_var - var, var_band))

        return self.by_moments(x, mixed)

    def reference(self, own_var: Tensor, own_mean: Tensor, positions: int) -> _Pair:
        """Mean and unbiased variance ``(C,)`` that the images are compared with.

        Args:
            own_var: Biased variance of each image, ``(B, C)``.
            own_mean: Its mean, ``(B, C)``.
            positions: Values of each that they are over.
        """
        several = len(own_mean) * positions > 1  # one value per channel has no variance
        if not (several and (self.training or self.batch_statistics)):
            return self.running_mean, self.running_var
        var, mean = moments.over_images(own_var, own_mean, positions, correction=1)
        if self.training and self.moving:
            self.running_mean.lerp_(mean.detach(), self.batch_momentum)
            self.running_var.lerp_(var.detach(), self.batch_momentum)
        return mean, var


def widened(x: Tensor) -> Tensor:
    """At least float32."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def _shrink(x: Tensor, band: Tensor) -> Tensor:
    """Soft threshold: zero inside ``[-band, band]``, the distance to it outside."""
    return F.relu(x - band) - F.relu(-x - band)


def within(name: str, value: Any, low: float, high: float = float("inf")) -> Any:
    """``value`` if it is a number in ``[low, high]``, else an ``AdapterError``."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not (number and low <= value <= high):
        raise AdapterError(f"{name}={value!r} is out of range: it must be in [{low}, {high}]")
    return value


def whole(name: str, value: Any) -> int:
    """``value`` if it is a whole number of at least 1, else an ``AdapterError``."""
    if within(name, value, 1) != int(value):
        raise AdapterError(f"{name}={value!r} must be a whole number")
    return int(value)
