"""Mean and variance of feature maps, and normalising by them, quickly and with gradients.

``torch.var_mean`` over several dimensions is 5 to 30 times slower on CPUs than the two means below
(torch 2.14); it is written out here, with its gradient and that of what is made of it in as few
passes over the feature maps as they need.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

# Variance and mean (B, C) of images, and parameters, to factor and summand, each (B, C) or (C,).
Head = Callable[..., tuple[Tensor, Tensor]]


def of_batch(x: Tensor, *, correction: int = 0) -> tuple[Tensor, Tensor]:
    """Variance and mean of each channel over images and positions.

    Args:
        x: ``(B, C, ...)``, floating.
        correction: 1 for the unbiased variance, of two values or more.

    Returns:
        Variance ``(C,)`` and mean ``(C,)``, differentiable once.
    """
    if fused(x) and not (x.requires_grad and torch.is_grad_enabled()):
        mean, var = torch.ops.aten.batch_norm_update_stats(x, None, None, 0.0)
        return corrected(var, x.numel() // x.shape[1], correction), mean
    var, mean = _Moments.apply(x)
    return over_images(var, mean, x[0, 0].numel(), correction=correction)


def of_images(x: Tensor, *, correction: int = 0) -> tuple[Tensor, Tensor]:
    """Variance and mean of each channel of each image over its positions.

    Args:
        x: ``(B, C, ...)``, floating.
        correction: 1 for the unbiased variance, of two values or more.

    Returns:
        Variance ``(B, C)`` and mean ``(B, C)``, differentiable once.
    """
    var, mean = _Moments.apply(x)
    return corrected(var, x[0, 0].numel(), correction), mean


def over_images(
    var: Tensor, mean: Tensor, positions: int, *, correction: int = 0
) -> tuple[Tensor, Tensor]:
    """Variance and mean ``(C,)`` of a batch from those ``(B, C)`` of its images (biased)."""
    whole = mean.mean(0)
    spread = var.mean(0) + (mean - whole).square().mean(0)
    return corrected(spread, len(mean) * positions, correction), whole


def corrected(var: Tensor, count: int, correction: int = 1) -> Tensor:
    """A biased variance over ``count`` values as one with the divisor ``count - correction``."""
    return var * (count / (count - correction)) if correction else var


def normalised(x: Tensor, head: Head, *params: Tensor | None) -> Tensor:
    """Each value times a factor plus a summand, which ``head`` makes of the images' moments.

    Args:
        x: ``(B, C, ...)``, floating.
        head: Variance (biased) and mean ``(B, C)``, then ``params``, to factor and summand, each
            ``(B, C)`` or ``(C,)``. Called once.
        *params: What else gets a gradient.

    Returns:
        Like ``x``, differentiable once.
    """
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():
        out: Tensor = _Normalised.apply(x, head, *params)
        return out
    return affine(x, *head(*_Moments.apply(x), *params))


def robust(
    x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, var: Tensor, share: float, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """BatchNorm by ``mean`` and ``var``, both moved to the batch's (biased) by ``share`` first.

    Args:
        x: ``(B, C, H, W)``, as ``fused`` asks, of the dtype of all others, which are ``(C,)``.
        weight: Scale.
        bias: Shift.
        mean: Running mean, left as it is.
        var: Running variance, left as it is.
        share: Of the batch; the gradient flows through it.
        eps: Added to the variance.

    Returns:
        Like ``x``, differentiable once; then mean and variance after the move, without gradient.
    """
    out: tuple[Tensor, Tensor, Tensor] = _Robust.apply(x, weight, bias, mean, var, share, eps)
    return out


def fused(x: Tensor) -> bool:
    """Whether torch's own kernels of BatchNorm take ``x`` apart into the steps that we need."""
    return x.ndim == 4 and x.device.type == "cpu" and not torch.compiler.is_compiling()


def affine(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """``x * scale + shift`` for ``x`` ``(B, C, ...)`` and the others ``(B, C)`` or ``(C,)``."""
    if x.is_contiguous():  # there addcmul goes value by value (torch 2.14)
        return (x * _wide(scale, x)).add_(_wide(shift, x))
    return torch.addcmul(_wide(shift, x), x, _wide(scale, x))


class _Moments(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        var, mean = _moments(x)
        ctx.save_for_backward(x, mean)
        return var, mean

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_var: Tensor, grad_mean: Tensor) -> Tensor:
        x, mean = ctx.saved_tensors
        return affine(x, *_line(x, mean, grad_var, grad_mean))


class _Normalised(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, head: Head, *params: Tensor | None) -> Tensor:
        var, mean = _moments(x)
        # From the moments on, what is small has a graph of its own: what is large meets in one
        # function, whose backward is then one product and one sum.
        needs = (ctx.needs_input_grad[0],) * 2 + ctx.needs_input_grad[2:]
        leaves = [
            None if value is None else value.detach().requires_grad_(need)
            for value, need in zip((var, mean, *params), needs, strict=True)
        ]
        with torch.enable_grad():
            ctx.small = head(*leaves)
        ctx.leaves = leaves
        scale, shift = (value.detach() for value in ctx.small)
        ctx.save_for_backward(x, mean, scale)
        return affine(x, scale, shift)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, mean, scale = ctx.saved_tensors
        positions = list(range(2, x.ndim))
        slope, offset = (grad * x, grad) if not positions else _sums(grad, x, positions)
        if scale.ndim == 1:
            slope, offset = slope.sum(0), offset.sum(0)
        asked = [leaf for leaf in ctx.leaves if leaf is not None and leaf.requires_grad]
        given = [
            (value, own)
            for value, own in zip(ctx.small, (slope, offset), strict=True)
            if value.requires_grad
        ]
        found: list[Tensor | None] = [None] * len(asked)
        if given and asked:
            outputs, grads = zip(*given, strict=True)
            found = list(
                torch.autograd.grad(outputs, asked, grads, retain_graph=True, allow_unused=True)
            )
        each = iter(found)
        small = [
            next(each) if leaf is not None and leaf.requires_grad else None for leaf in ctx.leaves
        ]
        whole = None
        if ctx.needs_input_grad[0]:
            by_var, by_mean = (torch.zeros_like(mean) if g is None else g for g in small[:2])
            whole = affine(x, *_line(x, mean, by_var, by_mean)).addcmul_(grad, _wide(scale, x))
        return (whole, None, *small[2:])


class _Robust(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        mean: Tensor,
        var: Tensor,
        share: float,
        eps: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        own_mean, own_var = torch.ops.aten.batch_norm_update_stats(x, None, None, 0.0)
        mean, var = torch.lerp(mean, own_mean, share), torch.lerp(var, own_var, share)
        ctx.save_for_backward(x, weight, own_mean, mean, var)
        ctx.share, ctx.eps = share, eps
        ctx.mark_non_differentiable(mean, var)
        return F.batch_norm(x, mean, var, weight, bias, False, 0.0, eps), mean, var

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, own_mean, mean, var = ctx.saved_tensors
        like = torch.channels_last if _is_channels_last(x) else torch.contiguous_format
        whole, by_weight, by_bias = torch.ops.aten.native_batch_norm_backward(
            *(grad.contiguous(memory_format=like), x, weight, mean, var, None, None, False),
            *(ctx.eps, [ctx.needs_input_grad[0], True, True]),
        )
        if ctx.needs_input_grad[0]:
            # Beside the factor: what the batch's share of mean and variance hands on.
            inverse = (var + ctx.eps).rsqrt()
            factor = weight * inverse * (ctx.share / (x.numel() // len(mean)))
            slope = -factor * inverse * by_weight
            offset = -factor * by_bias - slope * own_mean
            whole = whole.addcmul_(x, _wide(slope, x)).add_(_wide(offset, x))
        return (whole, by_weight, by_bias, None, None, None, None)


def _moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Variance (biased) and mean ``(B, C)`` over the positions of ``x`` ``(B, C, ...)``."""
    positions = list(range(2, x.ndim))
    if not positions:
        return torch.zeros_like(x), x.clone()
    mean = x.mean(positions)
    # About each image's own mean: no digits are lost where the mean is large.
    return (x - _wide(mean, x)).square_().mean(positions), mean


def _line(x: Tensor, mean: Tensor, grad_var: Tensor, grad_mean: Tensor) -> tuple[Tensor, Tensor]:
    """The gradient of ``x`` from those of its moments: factor and summand, ``(B, C)``."""
    count = x[0, 0].numel()
    slope = grad_var * (2 / count)
    return slope, grad_mean / count - slope * mean


def _sums(grad: Tensor, x: Tensor, positions: Sequence[int]) -> tuple[Tensor, Tensor]:
    return (grad * x).sum(list(positions)), grad.sum(list(positions))


def _wide(values: Tensor, x: Tensor) -> Tensor:
    """``(B, C)`` or ``(C,)`` in a shape that goes with ``x``."""
    shape = values.shape if values.ndim == 2 else (1, len(values))
    return values.view(*shape, *(1,) * (x.ndim - 2))


def _is_channels_last(x: Tensor) -> bool:
    return x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last)
