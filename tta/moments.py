"""Mean and variance of feature maps, over the batch or of each image, quickly and with gradients.

``torch.var_mean`` over several dimensions is 5 to 30 times slower on CPUs than the two means below
(torch 2.14); it is written out here with its gradient in one fused product.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def of_batch(x: Tensor, *, correction: int = 0) -> tuple[Tensor, Tensor]:
    """Variance and mean of each channel over images and positions.

    Args:
        x: ``(B, C, ...)``, floating.
        correction: 1 for the unbiased variance, of two values or more.

    Returns:
        Variance ``(C,)`` and mean ``(C,)``, differentiable once.
    """
    var, mean = _Moments.apply(x, False)
    return _corrected(var, x.numel() // x.shape[1], correction), mean


def of_images(x: Tensor, *, correction: int = 0) -> tuple[Tensor, Tensor]:
    """Variance and mean of each channel of each image over its positions.

    Args:
        x: ``(B, C, ...)``, floating.
        correction: 1 for the unbiased variance, of two values or more.

    Returns:
        Variance ``(B, C)`` and mean ``(B, C)``, differentiable once.
    """
    var, mean = _Moments.apply(x, True)
    return _corrected(var, x[0, 0].numel(), correction), mean


def _corrected(var: Tensor, count: int, correction: int) -> Tensor:
    return var * (count / (count - correction)) if correction else var


class _Moments(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, by_image: bool) -> tuple[Tensor, Tensor]:
        positions = list(range(2, x.ndim))
        ones = (1,) * len(positions)
        mean = x.mean(positions) if positions else x.clone()
        # About each image's own mean: no digits are lost where the mean is large.
        centred = x - mean.view(*mean.shape, *ones)
        var = centred.square_().mean(positions) if positions else centred.square_()
        if not by_image:
            own, mean = mean, mean.mean(0)
            var = var.mean(0) + (own - mean).square_().mean(0)
        ctx.save_for_backward(x, mean)
        ctx.by_image = by_image
        return var, mean

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_var: Tensor, grad_mean: Tensor) -> tuple[Tensor, None]:
        x, mean = ctx.saved_tensors
        count = x[0, 0].numel() * (1 if ctx.by_image else len(x))
        slope = grad_var * (2 / count)
        offset = grad_mean / count - slope * mean
        shape = (*(slope.shape if ctx.by_image else (1, len(slope))), *(1,) * (x.ndim - 2))
        return torch.addcmul(offset.view(shape), x, slope.view(shape)), None
