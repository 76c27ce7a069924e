"""Blur: optics, frosted glass, motion and zoom."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from streams.corruptions.registry import Array, Job, corruption
from streams.corruptions.resample import clipped_zoom, motion, smooth

# Kernels with more weights than this are applied in the frequency domain.
_MOST_TAPS = 64


@corruption("gaussian_blur")
def gaussian_blur(job: Job) -> Array:
    """Gaussian filter."""
    (deviation,) = job.level
    blurred = smooth(job.images / 255.0, deviation)
    blurred *= 255
    return blurred


@corruption("defocus_blur")
def defocus_blur(job: Job) -> Array:
    """Average over a disc: a lens out of focus."""
    radius, alias_deviation = job.level
    kernel = disc(radius, alias_deviation)
    blurred = correlate(job.images / 255.0, kernel)
    blurred *= 255
    return blurred


@lru_cache(maxsize=64)
def disc(radius: float, alias_deviation: float) -> Array:
    """Kernel of a disc whose edge a small Gaussian softens, float32 with odd sides."""
    half = max(8, int(radius))
    edge = 1 if radius <= 8 else 2
    offsets = np.arange(-half, half + 1)
    inside = (offsets[:, None] ** 2 + offsets**2 <= radius**2).astype(np.float32)
    inside /= inside.sum()
    line = np.exp(-(np.arange(-edge, edge + 1.0) ** 2) / (2 * alias_deviation**2))
    line /= line.sum()
    wide = np.pad(inside.astype(np.float64), edge, mode="reflect")
    side = len(offsets)
    wide = sum(w * wide[:, i : i + side] for i, w in enumerate(line))
    wide = sum(w * wide[i : i + side] for i, w in enumerate(line))
    kernel: Array = wide.astype(np.float32)
    return kernel


def correlate(planes: Array, kernel: Array) -> Array:
    """Weighted sum of neighbours with the edge mirrored, float64 ``(B, C, H, W)``.

    Args:
        planes: float64 ``(B, C, H, W)``.
        kernel: Two odd sides.
    """
    taps = np.argwhere(kernel > 1e-12 * kernel.max())
    if len(taps) > _MOST_TAPS:
        return _correlate_wide(planes, kernel)
    height, width = planes.shape[2:]
    middle = np.array(kernel.shape) // 2
    reach = int(np.abs(taps - middle).max())
    padded = _mirrored(planes, reach, reach)
    out = np.zeros(planes.shape)
    for y, x in taps:
        down, right = int(y - middle[0]) + reach, int(x - middle[1]) + reach
        window = padded[:, :, down : down + height, right : right + width]
        out += window * np.float64(kernel[y, x])
    return out


def _correlate_wide(planes: Array, kernel: Array) -> Array:
    from scipy.fft import irfft2, next_fast_len, rfft2

    height, width = planes.shape[2:]
    padded = _mirrored(planes, kernel.shape[0] // 2, kernel.shape[1] // 2)
    sides = [next_fast_len(side, real=True) for side in padded.shape[2:]]
    # The product of spectra convolves; the mirrored kernel turns that into a correlation.
    spectrum = rfft2(kernel[::-1, ::-1].astype(np.float64), sides)
    top, left = kernel.shape[0] - 1, kernel.shape[1] - 1
    out = np.empty(planes.shape)
    for row, source in zip(out, padded, strict=True):  # per image: batched transforms may differ
        full = irfft2(rfft2(source, sides) * spectrum, sides)
        row[...] = full[:, top : top + height, left : left + width]
    out += 1e-12  # a flat area keeps its level
    return out


def _mirrored(planes: Array, rows: int, columns: int) -> Array:
    return np.pad(planes, ((0, 0), (0, 0), (rows, rows), (columns, columns)), mode="reflect")


@corruption("glass_blur")
def glass_blur(job: Job) -> Array:
    """Blur, move pixels about, blur: frosted glass."""
    deviation, reach, passes = job.level
    blurred = smooth(job.images / 255.0, deviation)
    blurred *= 255
    batch, channels, height, width = blurred.shape
    pixels = blurred.astype(np.uint8).reshape(batch, channels, height * width)
    sources = _displaced(job, int(reach), int(passes))
    for source in sources:
        pixels = np.take_along_axis(pixels, source[:, None], axis=2)
    blurred = smooth(pixels.reshape(job.images.shape) / 255.0, deviation)
    blurred *= 255
    return blurred


def _displaced(job: Job, reach: int, passes: int) -> Array:
    """For each pass and pixel the pixel before the pass whose value it ends with.

    The reference walks backward over the image and "swaps" each pixel with a neighbour in
    [-reach, reach), but its assignment overwrites: the pixel takes the neighbour's value and the
    neighbour keeps it. So a pixel ends with the old value of its source where the walk comes to
    the source later, and with what the source ended with where the walk has been there. Following
    those links by doubling takes a few steps for the whole batch instead of a loop over pixels.

    Returns:
        int64 ``(passes, B, H * W)``.
    """
    height, width = job.images.shape[2:]
    count = height * width
    rows = np.arange(reach + 1, height - reach + 1)
    columns = np.arange(reach + 1, width - reach + 1)
    shape = (passes, 2, len(rows), len(columns))
    offsets = np.empty((len(job.draws), *shape), np.int64)
    for row, generator in zip(offsets, job.draws, strict=True):
        row[...] = generator.integers(-reach, reach, size=shape, dtype=np.int16)
    position = np.arange(count).reshape(height, width)
    walked = np.zeros(count, bool)
    inner = position[rows[0] :, columns[0] :][: len(rows), : len(columns)]
    walked[inner] = True
    target = np.tile(position, (passes, len(offsets), 1, 1))
    shift = offsets[:, :, 0] * width + offsets[:, :, 1]
    target[..., inner // width, inner % width] += shift.swapaxes(0, 1)
    target = target.reshape(passes, -1, count)
    # Links to a pixel that the walk has passed are followed; others are marked as final.
    final = (target <= position.ravel()) | ~walked[target]
    while not final.all():
        onward = np.take_along_axis(target, target, axis=2)
        onward_final = np.take_along_axis(final, target, axis=2)
        target = np.where(final, target, onward)
        final |= onward_final
    return target


@corruption("motion_blur")
def motion_blur(job: Job) -> Array:
    """Smear along a line within 45 degrees of the horizontal: a camera that moves."""
    radius, deviation = job.level
    degrees = np.array([generator.uniform(-45, 45) for generator in job.draws])
    return motion(job.images, radius, deviation, degrees)


@corruption("zoom_blur")
def zoom_blur(job: Job) -> Array:
    """Average over zooms: a camera that moves towards the scene."""
    end, step = job.level
    factors = np.arange(1, end, step)
    batch, channels, height, width = job.images.shape
    planes = job.images.reshape(batch * channels, height, width)
    stack = np.ascontiguousarray(planes.transpose(1, 2, 0)) / np.float32(255)
    total = np.zeros_like(stack)
    for factor in factors:
        total += clipped_zoom(stack, float(factor))
    total += stack
    total /= len(factors) + 1
    total *= 255
    return np.ascontiguousarray(total.transpose(2, 0, 1)).reshape(job.images.shape)
