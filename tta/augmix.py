"""AugMix views of one image, for MEMO: random crops, three chains of operations, a random mixture.

Hendrycks, Mu, Cubuk, Zoph, Gilmer, Lakshminarayanan: AugMix: A simple data processing method to
improve robustness and uncertainty, 2020, arXiv:1912.02781. All views and chains are computed
together on the image's device; values are whole numbers of 0 to 255 between operations, as in an
8-bit image.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Crop = Literal["pad", "resized", "none"]

OPERATIONS = (
    "autocontrast",
    "equalize",
    "posterize",
    "solarize",
    "rotate",
    "shear-x",
    "shear-y",
    "translate-x",
    "translate-y",
)
_CHAINS = 3
_LONGEST = 3
_LEVELS = (0.1, 1.0)
_FILL = 128.0
_ELEMENTS = 2**20  # of the views that are worked on together; caches and memory
_AREA = (0.08, 1.0)  # of a resized crop, as share of the image
_RATIO = (3 / 4, 4 / 3)


@torch.no_grad()
def views(
    image: Tensor,
    count: int,
    generator: torch.Generator,
    *,
    crop: Crop = "pad",
    padding: int = 4,
) -> Tensor:
    """Independent augmented views of one image.

    Args:
        image: ``(C, H, W)``, floating, clipped to ``[0, 1]``.
        count: Number of views.
        generator: A CPU generator; all draws come from it.
        crop: ``"pad"``: a window of the image's size in the image with ``padding`` black pixels on
            each side, and a flip (CIFAR); ``"resized"``: a window of 8 to 100 % of the area resized
            to the image's size, and a flip (ImageNet); ``"none"``: the image itself.
        padding: Pixels of ``"pad"``.

    Returns:
        ``(count, C, H, W)`` in ``[0, 1]``, of the image's dtype and device, without a graph.
    """
    work = image.detach().to(torch.promote_types(image.dtype, torch.float32)).clamp(0, 1)
    work = (work * 255).round()
    if crop == "pad":
        base = _padded_crops(work, count, padding, generator)
    elif crop == "resized":
        base = _resized_crops(work, count, generator)
    else:
        base = work.expand(count, *work.shape)
    rows = count * _CHAINS
    lengths = torch.randint(1, _LONGEST + 1, (rows,), generator=generator)
    kinds = torch.randint(len(OPERATIONS), (_LONGEST, rows), generator=generator)
    kinds[torch.arange(_LONGEST)[:, None] >= lengths] = -1
    levels = _uniform((_LONGEST, rows), generator, *_LEVELS)
    signs = torch.randint(2, (_LONGEST, rows), generator=generator) * 2.0 - 1
    # Exponential variables over their sum are Dirichlet(1, 1, 1); Beta(1, 1) is uniform.
    shares = torch.empty(count, _CHAINS).exponential_(generator=generator)
    shares = (shares / shares.sum(1, keepdim=True)).to(work).view(count, _CHAINS, 1, 1, 1)
    keep = torch.rand(count, generator=generator).to(work).view(count, 1, 1, 1)

    out = torch.empty(base.shape, dtype=image.dtype, device=image.device)
    together = max(1, _ELEMENTS // work.numel())
    for first in range(0, count, together):
        part = slice(first, first + together)
        of = slice(first * _CHAINS, (first + together) * _CHAINS)
        chains = base[part].repeat_interleave(_CHAINS, dim=0)
        for place in range(_LONGEST):
            chains = operate(chains, kinds[place, of], levels[place, of], signs[place, of])
        mixed = (shares[part] * chains.view(-1, _CHAINS, *work.shape)).sum(1)
        out[part] = torch.lerp(mixed, base[part], keep[part]).div_(255).clamp_(0, 1)
    return out


def operate(x: Tensor, kinds: Tensor, levels: Tensor, signs: Tensor) -> Tensor:
    """One operation for each image, at AugMix's severity 1.

    Args:
        x: ``(N, C, H, W)``, whole numbers of 0 to 255 in a floating dtype.
        kinds: int64 ``(N,)`` on the CPU, positions in ``OPERATIONS``; -1 leaves the image alone.
        levels: ``(N,)`` on the CPU, in ``[0.1, 1]``.
        signs: ``(N,)`` on the CPU, -1 or 1: the direction of rotation, shear and translation.

    Returns:
        ``(N, C, H, W)``, whole numbers of 0 to 255.
    """
    out = x.clone()
    geometric = OPERATIONS.index("rotate")
    for kind in range(geometric):
        rows = (kinds == kind).nonzero()[:, 0]
        if len(rows):
            on = rows.to(x.device)
            out[on] = _tone(x[on], OPERATIONS[kind], levels[rows])
    rows = (kinds >= geometric).nonzero()[:, 0]
    if len(rows):
        moves = [
            _matrix(OPERATIONS[kind], level, sign, x.shape[-2], x.shape[-1])
            for kind, level, sign in zip(
                kinds[rows].tolist(), levels[rows].tolist(), signs[rows].tolist(), strict=True
            )
        ]
        on = rows.to(x.device)
        out[on] = _warp(x[on], torch.tensor(moves, dtype=x.dtype).to(x.device))
    return out


def _uniform(shape: tuple[int, ...], generator: torch.Generator, low: float, high: float) -> Tensor:
    return low + (high - low) * torch.rand(shape, generator=generator, dtype=torch.float64)


def _padded_crops(image: Tensor, count: int, padding: int, generator: torch.Generator) -> Tensor:
    height, width = image.shape[-2:]
    padded = F.pad(image, [padding] * 4)
    corner = torch.randint(2 * padding + 1, (2, count, 1), generator=generator)
    rows = corner[0] + torch.arange(height)
    columns = corner[1] + torch.arange(width)
    flips = torch.rand(count, 1, generator=generator) < 0.5
    columns = torch.where(flips, columns.flip(1), columns)
    rows, columns = rows.to(image.device), columns.to(image.device)
    return padded[:, rows[:, :, None], columns[:, None, :]].transpose(0, 1)


def _resized_crops(image: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Windows of random area and shape, resized bilinearly; what does not fit is cut to fit."""
    height, width = image.shape[-2:]
    area = _uniform((count,), generator, *_AREA) * height * width
    ratio = _uniform((count,), generator, *map(math.log, _RATIO)).exp()
    wide = (area * ratio).sqrt().round().clamp(1, width)
    high = (area / ratio).sqrt().round().clamp(1, height)
    left = (_uniform((count,), generator, 0, 1) * (width - wide + 1)).floor()
    top = (_uniform((count,), generator, 0, 1) * (height - high + 1)).floor()
    flips = torch.rand(count, 1, generator=generator) < 0.5

    def centres(start: Tensor, length: Tensor, side: int) -> Tensor:
        steps = (torch.arange(side) + 0.5) / side
        inside = (steps * length[:, None] - 0.5).clamp_min(0).minimum(length[:, None] - 1)
        return start[:, None] + inside

    rows = centres(top, high, height)
    columns = centres(left, wide, width)
    columns = torch.where(flips, columns.flip(1), columns)
    return _sample(image.expand(count, *image.shape), rows[:, :, None], columns[:, None, :]).round()


def _tone(x: Tensor, kind: str, levels: Tensor) -> Tensor:
    if kind == "autocontrast":
        low, high = x.amin((-2, -1), keepdim=True), x.amax((-2, -1), keepdim=True)
        span = high - low
        stretched = ((x - low) * (255 / torch.where(span > 0, span, 1))).floor().clamp(0, 255)
        return torch.where(span > 0, stretched, x)
    if kind == "equalize":
        return _equalize(x)
    if kind == "posterize":  # 4 bits are left at every level of severity 1
        return (x / 16).floor() * 16
    threshold = 256 - (25.6 * levels).floor().to(x).view(-1, 1, 1, 1)
    return torch.where(x < threshold, x, 255 - x)


def _equalize(x: Tensor) -> Tensor:
    """Spread the values of each channel so that their counts are even."""
    values = x.flatten(0, 1).flatten(1).long()
    ones = torch.ones_like(values)
    counts = values.new_zeros(len(values), 256).scatter_add_(1, values, ones)
    last = counts.gather(1, values.amax(1, keepdim=True))
    step = (values.shape[1] - last) // 255
    below = counts.cumsum(1) - counts
    table = ((step // 2 + below) // step.clamp_min(1)).clamp(0, 255)
    out = torch.where(step > 0, table.gather(1, values), values)
    return out.to(x.dtype).view(x.shape)


def _matrix(
    kind: str, level: float, sign: float, height: int, width: int
) -> tuple[float, float, float, float, float, float]:
    """From output to input pixels: ``x = a X + b Y + c``, ``y = d X + e Y + f``, corners at 0."""
    if kind == "rotate":
        angle = math.radians(sign * int(3 * level))
        cos, sin = math.cos(angle), math.sin(angle)
        middle_x, middle_y = width / 2, height / 2
        return (
            *(cos, -sin, middle_x - cos * middle_x + sin * middle_y),
            *(sin, cos, middle_y - sin * middle_x - cos * middle_y),
        )
    if kind == "shear-x":
        return 1.0, sign * 0.03 * level, 0.0, 0.0, 1.0, 0.0
    if kind == "shear-y":
        return 1.0, 0.0, 0.0, sign * 0.03 * level, 1.0, 0.0
    if kind == "translate-x":
        return 1.0, 0.0, sign * int(level * width / 30), 0.0, 1.0, 0.0
    return 1.0, 0.0, 0.0, 0.0, 1.0, sign * int(level * height / 30)


def _warp(x: Tensor, matrices: Tensor) -> Tensor:
    """Affine maps ``(N, 6)`` of images ``(N, C, H, W)``; grey where they leave the image."""
    height, width = x.shape[-2:]
    a, b, c, d, e, f = matrices.view(-1, 6, 1, 1).unbind(1)
    across = torch.arange(width, device=x.device, dtype=x.dtype) + 0.5
    down = (torch.arange(height, device=x.device, dtype=x.dtype) + 0.5)[:, None]
    columns = a * across + b * down + c
    rows = d * across + e * down + f
    inside = (columns >= 0) & (columns < width) & (rows >= 0) & (rows < height)
    # An 8-bit image keeps the whole part; the offset is for what a float32 position is off by.
    moved = (_sample(x, rows - 0.5, columns - 0.5) + 0.02).floor()
    return torch.where(inside[:, None], moved, _FILL)


def _sample(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Bilinear values of ``(N, C, H, W)`` at pixels ``(N, h or 1, w or 1)``, borders repeated."""
    height, width = x.shape[-2:]
    columns = columns * (2 / max(width - 1, 1)) - 1
    rows = rows * (2 / max(height - 1, 1)) - 1
    across = columns.expand(-1, rows.shape[1], -1)
    grid = torch.stack((across, rows.expand(-1, -1, columns.shape[2])), dim=-1)
    return F.grid_sample(x, grid.to(x), padding_mode="border", align_corners=True)
