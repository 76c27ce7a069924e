"""Random crops and flips of training images, drawn from a given generator."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def crop_flip(
    x: Tensor, generator: torch.Generator, *, border: int = 4, flip: bool = True
) -> Tensor:
    """Each image cropped at a random place of its zero-padded self, and flipped half of the time.

    Args:
        x: Images ``(B, C, H, W)``.
        generator: CPU generator; one draw per image and decision, in a fixed order.
        border: Zeros on each side, in pixels.
        flip: Whether to flip left and right.

    Returns:
        Images ``(B, C, H, W)``.
    """
    size, _, height, width = x.shape
    tops = torch.randint(0, 2 * border + 1, (size,), generator=generator)
    lefts = torch.randint(0, 2 * border + 1, (size,), generator=generator)
    flips = torch.rand(size, generator=generator) < 0.5
    rows = tops[:, None] + torch.arange(height)
    columns = lefts[:, None] + torch.arange(width)
    if flip:
        columns = torch.where(flips[:, None], columns.flip(1), columns)
    padded = F.pad(x, (border, border, border, border))
    images = torch.arange(size)[:, None, None]
    at = (images.to(x.device), rows[:, :, None].to(x.device), columns[:, None, :].to(x.device))
    return padded.permute(0, 2, 3, 1)[at].permute(0, 3, 1, 2).contiguous()
