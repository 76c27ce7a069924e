"""Geometry shared by the corruptions: smoothing, zooming, sampling, motion.

Every function treats the images of a batch separately and adds in a fixed order, so a result has
the same bits in a batch of one and in a batch of many.
"""

from __future__ import annotations

from functools import lru_cache
from math import ceil
from typing import Any

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


@lru_cache(maxsize=256)
def zoom_matrix(size: int, factor: float) -> Any:
    """The zoom of one axis as a sparse float32 matrix ``(size, size)``."""
    from scipy.sparse import coo_matrix

    lower, upper, low_weight, high_weight = _zoom_taps(size, factor)
    row = np.tile(np.arange(size), 2)
    entries = (np.concatenate([low_weight, high_weight]), (row, np.concatenate([lower, upper])))
    return coo_matrix(entries, shape=(size, size), dtype=np.float32).tocsr()


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


def warp(image: Array, y: Array, x: Array, *, repeat_edge: bool) -> Array:
    """Like :func:`sample` for one large image, several times faster.

    Args:
        image: float32 ``(C, H, W)``.
        y: Rows, float32 ``(H, W)``.
        x: Columns, float32 ``(H, W)``.
        repeat_edge: How positions outside the image fold, see :func:`mirror`.

    Returns:
        float32 ``(C, H, W)``.
    """
    import torch
    from torch.nn.functional import grid_sample

    rows, columns = image.shape[1:]
    grid = np.empty((1, *y.shape, 2), np.float32)
    # Positions of pixel centres in [-1, 1], which spans the centres or the edges of the outermost.
    for out, position, size in ((grid[0, ..., 0], x, columns), (grid[0, ..., 1], y, rows)):
        span = size if repeat_edge else size - 1
        np.multiply(position, np.float32(2 / span), out=out)
        out += np.float32((1 / span if repeat_edge else 0) - 1)
    sampled = grid_sample(
        torch.from_numpy(np.ascontiguousarray(image))[None],
        torch.from_numpy(grid),
        mode="bilinear",
        padding_mode="reflection",
        align_corners=not repeat_edge,
    )
    out_image: Array = sampled[0].numpy()
    return out_image


def smooth_cosine(planes: Array, deviation: float, truncate: float) -> Array:
    """Gaussian filter of float32 planes ``(N, H, W)`` with the edge mirrored, for any width.

    A symmetric filter scales the terms of the cosine series of such an image, so the cost does
    not grow with the deviation.
    """
    from scipy.fft import dctn, idctn

    factors = [_cosine_factors(size, deviation, truncate) for size in planes.shape[1:]]
    both = (factors[0][:, None] * factors[1]).astype(np.float32)
    out = np.empty(planes.shape, np.float32)
    for row, plane in zip(out, planes, strict=True):
        terms = dctn(plane)
        terms *= both
        row[...] = idctn(terms, overwrite_x=True)
    return out


@lru_cache(maxsize=64)
def _cosine_factors(size: int, deviation: float, truncate: float) -> Array:
    reach = int(truncate * deviation + 0.5)
    offsets = np.arange(-reach, reach + 1)
    weights = np.exp(-0.5 * (offsets / deviation) ** 2)
    weights /= weights.sum()
    factors: Array = np.cos(np.pi / size * np.outer(np.arange(size), offsets)) @ weights
    return factors


def motion(
    planes: Array,
    radius: float,
    deviation: float,
    degrees: Array,
    *,
    dtype: type[np.floating[Any]] = np.float64,
) -> Array:
    """Smear images along a line, one direction per image: half a Gaussian behind each pixel.

    The kernel, its rounding to pixels and the cut to 8 bits are ImageMagick's ``-motion-blur``,
    which made the reference sets; positions outside the image read its edge.

    Args:
        planes: uint8 ``(B, C, H, W)``.
        radius: Length of the line in pixels.
        deviation: Standard deviation of the half Gaussian.
        degrees: ``B`` directions.
        dtype: Of the sums.

    Returns:
        uint8 ``(B, C, H, W)``.
    """
    height, width = planes.shape[2:]
    count = int(2 * ceil(radius) + 1)
    weights = np.exp(-(np.arange(count) ** 2) / (2 * deviation**2))
    weights = weights[weights > 1e-7]  # the rest is below the 16 bits that the original keeps
    weights /= weights.sum()
    weights = weights.astype(dtype)
    reach = len(weights)
    out = np.empty(planes.shape, np.uint8)
    steps = np.arange(reach)
    # Weights that add up to a little less than 1 must not cost a flat area a level.
    start = 1e-6 if dtype is np.float64 else 1e-3
    for row, source, angle in zip(out, planes, np.deg2rad(degrees), strict=True):
        down = np.ceil(steps * np.sin(angle) - 0.5).astype(int)
        right = np.ceil(steps * np.cos(angle) - 0.5).astype(int)
        # Padded rows follow each other in memory, so one shift of the whole plane serves a tap.
        top, left = -int(down.min()), -int(right.min())
        sides = ((0, 0), (top, int(down.max()) + 1), (left, int(right.max())))
        padded = np.pad(source, sides, mode="edge").astype(dtype)
        stride = padded.shape[2]
        shifts = (down + top) * stride + right + left
        total = np.empty(height * stride, dtype)
        term = np.empty(height * stride, dtype)
        for plane, values in zip(row, padded.reshape(len(padded), -1), strict=True):
            total.fill(0)
            for weight, shift in zip(weights, shifts.tolist(), strict=True):
                np.multiply(values[shift : shift + len(total)], weight, out=term)
                np.add(total, term, out=total)
            total += start
            plane[...] = total.reshape(height, stride)[:, :width]
    return out
