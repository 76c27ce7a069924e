"""What a call is given: refuse what is no batch of images, and keep NaN and infinity out of it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from tta.errors import AdapterError


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
    """Apply ``step`` to the rows without NaN and infinity; the others get NaN logits.

    Args:
        step: Images to logits.
        infer: The same without adaptation, asked for the shape where no row is finite.
        x: Images ``(B, C, H, W)``.

    Returns:
        Detached logits ``(B, K)``, and the number of rows that were left out.
    """
    if bool(x.sum().isfinite()):
        return step(x).detach(), 0
    finite = x.isfinite().flatten(1).all(1)
    if bool(finite.all()):  # the sum overflowed, the images are fine
        return step(x).detach(), 0
    if bool(finite.any()):
        logits = step(x[finite]).detach()
    else:
        with torch.no_grad():
            logits = infer(torch.zeros_like(x[:1]))[:0]
    out = logits.new_full((len(x), *logits.shape[1:]), float("nan"))
    out[finite] = logits
    return out, int((~finite).sum())


def not_finite(x: Tensor) -> int:
    """Number of images ``(B, C, H, W)`` with NaN or infinity."""
    return int((~x.flatten(1).isfinite().all(1)).sum())
