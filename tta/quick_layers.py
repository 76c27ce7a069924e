"""Layers that compute what torch's and timm's do with fewer passes over the feature maps.

Where a gradient is asked, torch's in-place ReLU6, SiLU and Hardswish first clone their input
(torch 2.14): a pass over the feature map, and a second copy of it until the backward. What ReLU6
lets through is known from its output; the other two cost less out of place. ``tta.timm_layers`` has
the padding of "same" convolutions.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
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
        return nn.functional.silu(x) if _has_graph(x) else super().forward(x)


class Hardswish(nn.Hardswish):
    """Torch's, out of place where a gradient is asked."""

    def forward(self, x: Tensor) -> Tensor:
        """``x * relu6(x + 3) / 6`` for ``x`` of any shape."""
        return nn.functional.hardswish(x) if _has_graph(x) else super().forward(x)


_IN_PLACE: dict[type[nn.Module], type[nn.Module]] = {
    nn.ReLU6: ReLU6,
    nn.SiLU: SiLU,
    nn.Hardswish: Hardswish,
}


def quicken(model: nn.Module) -> None:
    """Let activations in place and "same" convolutions of ``model`` do what they do with less.

    They become subclasses of what they are; modules of other classes, a user's subclass too, stay.

    Args:
        model: Any module, changed as it is: the values that it computes are the same.
    """
    quick: dict[type[nn.Module], type[nn.Module]] = {}
    if "timm" in sys.modules:  # else no layer is timm's, and it may not be installed
        import timm.layers

        from tta.timm_layers import Conv2dSame

        quick[timm.layers.Conv2dSame] = Conv2dSame
    for module in model.modules():
        kinds = _IN_PLACE if getattr(module, "inplace", False) else quick
        if type(module) in kinds:
            module.__class__ = kinds[type(module)]


def _has_graph(x: Tensor) -> bool:
    return torch.is_grad_enabled() and x.requires_grad and not torch.compiler.is_compiling()
