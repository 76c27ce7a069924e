"""Layers that compute what torch's and timm's do with fewer passes over the feature maps.

Where a gradient is asked, torch's in-place ReLU6, SiLU and Hardswish first clone their input
(torch 2.14): a pass over the feature map, and a second copy of it until the backward. What ReLU6
lets through is known from its output; the other two cost less out of place.

TensorFlow's "same" convolutions pad below and to the right alone where a stride leaves an odd rest.
``F.pad`` fills the whole of its result before it copies, and copies again in the backward: on the
large maps of an EfficientNet, 4 to 6 % of a step.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class _Clip(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        x.clamp_(0, 6)
        ctx.mark_dirty(x)
        ctx.save_for_backward(x)
        return x

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (out,) = ctx.saved_tensors
        passed: Tensor = torch.ops.aten.hardtanh_backward(grad, out, 0, 6)
        return passed


class ReLU6(nn.ReLU6):
    """Equal to torch's to the last bit, forward and backward; differentiable once in place."""

    def forward(self, x: Tensor) -> Tensor:
        """``x`` of any shape, clipped to ``[0, 6]``."""
        if self.inplace and _has_graph(x):
            out: Tensor = _Clip.apply(x)
            return out
        return super().forward(x)


class SiLU(nn.SiLU):
    """Torch's, out of place where a gradient is asked."""

    def forward(self, x: Tensor) -> Tensor:
        """``x * sigmoid(x)`` for ``x`` of any shape."""
        return F.silu(x) if _has_graph(x) else super().forward(x)


class Hardswish(nn.Hardswish):
    """Torch's, out of place where a gradient is asked."""

    def forward(self, x: Tensor) -> Tensor:
        """``x * relu6(x + 3) / 6`` for ``x`` of any shape."""
        return F.hardswish(x) if _has_graph(x) else super().forward(x)


class _Pad(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, left: int, right: int, top: int, bottom: int) -> Tensor:
        *outer, height, width = x.shape
        last = x.is_contiguous(memory_format=torch.channels_last)
        out = torch.empty(
            (*outer, top + height + bottom, left + width + right),
            dtype=x.dtype,
            device=x.device,
            memory_format=torch.channels_last if last else torch.contiguous_format,
        )
        inside = ctx.inside = (..., slice(top, top + height), slice(left, left + width))
        out[inside] = x
        for size, edge in (
            (top, (..., slice(top), slice(None))),
            (bottom, (..., slice(top + height, None), slice(None))),
            (left, (..., slice(left))),
            (right, (..., slice(left + width, None))),
        ):
            if size:
                out[edge] = 0
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return grad[ctx.inside], None, None, None, None


class Conv2dSame(nn.Conv2d):
    """Equal to timm's to the last bit, forward and backward; differentiable once."""

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W)`` to ``(B, C', ceil(H / stride), ceil(W / stride))``."""
        pads = (*self._pads(x, -1), *self._pads(x, -2))
        if any(pads):
            x = F.pad(x, pads) if torch.compiler.is_compiling() else _Pad.apply(x, *pads)
        return F.conv2d(x, self.weight, self.bias, self.stride, 0, self.dilation, self.groups)

    def _pads(self, x: Tensor, dim: Literal[-2, -1]) -> tuple[int, int]:
        """Before and after: what the last of ``ceil(n / stride)`` windows lacks, less before."""
        size, kernel, stride = x.shape[dim], self.kernel_size[dim], self.stride[dim]
        reach = (-(-size // stride) - 1) * stride + (kernel - 1) * self.dilation[dim] + 1
        total = max(reach - size, 0)
        return total // 2, total - total // 2


_IN_PLACE: dict[type[nn.Module], type[nn.Module]] = {
    nn.ReLU6: ReLU6,
    nn.SiLU: SiLU,
    nn.Hardswish: Hardswish,
}


def quicken(model: nn.Module) -> None:
    """Let activations in place and "same" convolutions of ``model`` do what they do with less.

    Their classes change, to others of the same base in torch; a user's subclass of them stays.

    Args:
        model: Any module, changed as it is: the values that it computes are the same.
    """
    for module in model.modules():
        kind = type(module)
        if kind in _IN_PLACE and getattr(module, "inplace", False):
            module.__class__ = _IN_PLACE[kind]
        elif kind.__name__ == "Conv2dSame" and kind.__module__.startswith("timm."):
            module.__class__ = Conv2dSame


def _has_graph(x: Tensor) -> bool:
    return torch.is_grad_enabled() and x.requires_grad and not torch.compiler.is_compiling()
