"""Geometry shared by the corruptions: smoothing, zooming, sampling, motion.

Every function treats the images of a batch separately and adds in a fixed order, so a result has
the same bits in a batch of one and in a batch of many.
"""

from __future__ import annotations

from functools import lru_cache
from math import ceil

import numpy as np

from streams.corruptions.registry import Array


def smooth(planes: Array, deviation: float, *, mode: str = "nearest", truncate: float = 4) -> Array:
    """Gaussian filter over the last two axes, cut at ``truncate`` deviations."""
    from scipy.ndimage import gaussian_filter

    deviations = (0.0,) * (planes.ndim - 2) + (deviation, deviation)
    out: Array = gaussian_filter(planes, deviations, mode=mode, truncate=truncate)
    return out


def clipped_zoom(stack: Array, factor: float) -> Array:
    """Enlarge the centre of images and cut to the old size.

    Args:
        stack: Images ``(H, W, N)``; the last axis counts planes, so that rows and columns of all
            planes move as blocks.
        factor: At least 1.
    """
    rows, columns = stack.shape[:2]
    stack = _zoom_axis(stack, rows, factor)
    out: Array = _zoom_axis(stack.swapaxes(0, 1), columns, factor).swapaxes(0, 1)
    return out


def _zoom_axis(stack: Array, size: int, factor: float) -> Array:
    lower, upper, low_weight, high_weight = _zoom_taps(size, factor)
    shape = (-1,) + (1,) * (stack.ndim - 1)
    out = stack[lower]
    out *= low_weight.astype(stack.dtype).reshape(shape)
    high = stack[upper]
    high *= high_weight.astype(stack.dtype).reshape(shape)
    out += high
    return out


@lru_cache(maxsize=256)
def _zoom_taps(size: int, factor: float) -> tuple[Array, Array, Array, Array]:
    """Two source positions and their weights for each position of the zoomed axis."""
    crop = ceil(size / factor)
    first = (size - crop) // 2
    zoomed = round(crop * factor)
    trim = (zoomed - size) // 2
    step = (crop - 1) / (zoomed - 1)
    position = np.arange(trim, trim + size) * step
    lower = np.minimum(position.astype(np.int64), crop - 1)
    fraction = position - lower
    # Rounding can put the last position behind the last sample; the reference reads zero there.
    inside = position <= crop - 1
    upper = np.minimum(lower + 1, crop - 1)
    return first + lower, first + upper, (1 - fraction) * inside, fraction * inside


def mirror(index: Array, size: int, *, repeat_edge: bool) -> Array:
    """Fold indices outside ``[0, size)`` back at the edges: ``cb|abc|ba`` or ``ba|abc|cb``."""
    last = 2 * size - 1 if repeat_edge else 2 * size - 2
    period = 2 * size if repeat_edge else 2 * size - 2
    index = np.mod(index, period)
    out: Array = np.minimum(index, last - index)
    return out


def sample(images: Array, y: Array, x: Array, *, repeat_edge: bool) -> Array:
    """Read images at real positions by bilinear interpolation.

    Args:
        images: float32 ``(B, H, W, C)``.
        y: Rows, float32 ``(B, H, W)``.
        x: Columns, float32 ``(B, H, W)``.
        repeat_edge: How positions outside the image fold, see :func:`mirror`.

    Returns:
        float32 ``(B, H, W, C)``.
    """
    batch, rows, columns, channels = images.shape
    flat = images.reshape(-1, channels)
    base = (np.arange(batch) * rows * columns)[:, None, None]
    y_floor, x_floor = np.floor(y), np.floor(x)
    y_part, x_part = (y - y_floor)[..., None], (x - x_floor)[..., None]
    y_index, x_index = y_floor.astype(np.int64), x_floor.astype(np.int64)
    top = mirror(y_index, rows, repeat_edge=repeat_edge) * columns + base
    bottom = mirror(y_index + 1, rows, repeat_edge=repeat_edge) * columns + base
    left = mirror(x_index, columns, repeat_edge=repeat_edge)
    right = mirror(x_index + 1, columns, repeat_edge=repeat_edge)
    upper = _mix(flat.take(top + left, axis=0), flat.take(top + right, axis=0), x_part)
    lower = _mix(flat.take(bottom + left, axis=0), flat.take(bottom + right, axis=0), x_part)
    return _mix(upper, lower, y_part)


def _mix(first: Array, second: Array, part: Array) -> Array:
    second -= first
    second *= part
    second += first
    return second


def motion(planes: Array, radius: float, deviation: float, degrees: Array) -> Array:
    """Smear images along a line, one direction per image: half a Gaussian behind each pixel.

    The kernel, its rounding to pixels and the cut to 8 bits are ImageMagick's ``-motion-blur``,
    which made the reference sets; positions outside the image read its edge.

    Args:
        planes: uint8 ``(B, C, H, W)``.
        radius: Length of the line in pixels.
        deviation: Standard deviation of the half Gaussian.
        degrees: ``B`` directions.

    Returns:
        uint8 ``(B, C, H, W)``.
    """
    height, width = planes.shape[2:]
    count = int(2 * ceil(radius) + 1)
    weights = np.exp(-(np.arange(count) ** 2) / (2 * deviation**2))
    weights = weights[weights > 1e-7]  # the rest is below the 16 bits that the original keeps
    weights /= weights.sum()
    reach = len(weights)
    padded = np.pad(
        planes.astype(np.float64), ((0, 0), (0, 0), (reach, reach), (reach, reach)), mode="edge"
    )
    out = np.empty(planes.shape, np.uint8)
    steps = np.arange(reach)
    term = np.empty(planes.shape[1:])
    for row, source, angle in zip(out, padded, np.deg2rad(degrees), strict=True):
        down = reach + np.ceil(steps * np.sin(angle) - 0.5).astype(int)
        right = reach + np.ceil(steps * np.cos(angle) - 0.5).astype(int)
        total = np.zeros(planes.shape[1:])
        for weight, y, x in zip(weights, down, right, strict=True):
            np.multiply(source[:, y : y + height, x : x + width], weight, out=term)
            total += term
        # Weights that add up to 1 - 1e-16 must not cost a flat area a level.
        total += 1e-6
        row[...] = total
    return out
