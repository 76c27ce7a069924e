"""What a call is given: refuse what is no batch of images, and keep NaN and infinity out of it.

Values beyond ``MOST`` count as infinite: the statistics of their batch overflow in float32.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from tta.errors import AdapterError

MOST = 1e9


def check(x: Tensor) -> None:
    """Refuse what is no batch of floating images.

    Raises:
        AdapterError: For a wrong rank or dtype, or an empty batch.
    """
    if not isinstance(x, Tensor) or not x.is_floating_point():
        kind = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise AdapterError(f"images must be a floating tensor in [0, 1], got {kind}")
    if x.ndim < 2 or len(x) == 0:
        raise AdapterError(f"images must be (B, C, H, W) with B >= 1, got {tuple(x.shape)}")


def on_finite_rows(
    step: Callable[[Tensor], Tensor], infer: Callable[[Tensor], Tensor], x: Tensor
) -> tuple[Tensor, int]:
    """Apply ``step`` to the usable rows; the others get NaN logits.

    Args:
        step: Images to logits.
        infer: The same without adaptation, asked for the shape where no row is finite.
        x: Images ``(B, C, H, W)``.

    Returns:
        Detached logits ``(B, K)``, and the number of rows that were left out.
    """
    low, high = x.aminmax()  # NaN goes through both
    if bool((low >= -MOST) & (high <= MOST)):
        return step(x).detach(), 0
    usable = _usable(x)
    if bool(usable.any()):
        logits = step(x[usable]).detach()
    else:
        with torch.no_grad():
            logits = infer(torch.zeros_like(x[:1]))[:0]
    out = logits.new_full((len(x), *logits.shape[1:]), float("nan"))
    out[usable] = logits
    return out, int((~usable).sum())


def not_usable(x: Tensor) -> int:
    """Number of images ``(B, C, H, W)`` with NaN, or a value beyond ``MOST``."""
    return int((~_usable(x)).sum())


def _usable(x: Tensor) -> Tensor:
    return (x.abs() <= MOST).flatten(1).all(1)
