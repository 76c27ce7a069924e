"""Blur: optics, frosted glass, motion and zoom."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from streams.corruptions import rng
from streams.corruptions.registry import Array, Job, corruption
from streams.corruptions.resample import clipped_zoom, motion, smooth, zoom_matrix

# Kernels with more weights than this are applied in the frequency domain.
_MOST_TAPS = 64
# Images with more values than this are, from fewer weights on.
_LARGE = 1 << 16
_MOST_TAPS_LARGE = 24


@corruption("gaussian_blur")
def gaussian_blur(job: Job) -> Array:
    """Gaussian filter."""
    (deviation,) = job.level
    blurred = smooth(job.unit(), deviation)
    blurred *= 255
    return blurred


@corruption("defocus_blur")
def defocus_blur(job: Job) -> Array:
    """Average over a disc: a lens out of focus."""
    radius, alias_deviation = job.level
    blurred = correlate(job.unit(), disc(radius, alias_deviation))
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
    """Weighted sum of neighbours with the edge mirrored, ``(B, C, H, W)`` of the dtype given.

    Args:
        planes: float64 or float32 ``(B, C, H, W)``.
        kernel: Two odd sides.
    """
    taps = np.argwhere(kernel > 1e-12 * kernel.max())
    large = planes.dtype == np.float32 and planes[0].size > _LARGE
    if len(taps) > (_MOST_TAPS_LARGE if large else _MOST_TAPS):
        return _correlate_wide(planes, kernel)
    height, width = planes.shape[2:]
    middle = np.array(kernel.shape) // 2
    reach = int(np.abs(taps - middle).max())
    padded = _mirrored(planes, reach, reach)
    out = np.zeros(planes.shape, planes.dtype)
    for y, x in taps:
        down, right = int(y - middle[0]) + reach, int(x - middle[1]) + reach
        window = padded[:, :, down : down + height, right : right + width]
        out += window * planes.dtype.type(kernel[y, x])
    return out


def _correlate_wide(planes: Array, kernel: Array) -> Array:
    from scipy.fft import irfft2, next_fast_len, rfft2

    height, width = planes.shape[2:]
    used = np.argwhere(kernel > 1e-12 * kernel.max())
    reach = int(np.abs(used - np.array(kernel.shape) // 2).max())
    padded = _mirrored(planes, reach, reach)
    sides = tuple(next_fast_len(side, real=True) for side in padded.shape[2:])
    spectrum = _spectrum(kernel.tobytes(), kernel.dtype.str, kernel.shape, sides)
    spectrum = spectrum.astype(np.complex64 if planes.dtype == np.float32 else np.complex128)
    out = np.empty(planes.shape, planes.dtype)
    inner = (slice(None), slice(reach, reach + height), slice(reach, reach + width))
    for row, source in zip(out, padded, strict=True):  # per image: batched transforms may differ
        bands = rfft2(source, sides)
        bands *= spectrum
        row[...] = irfft2(bands, sides, overwrite_x=True)[inner]
    # A flat area keeps its level.
    out += 4e-6 if planes.dtype == np.float32 else 1e-12
    return out


@lru_cache(maxsize=32)
def _spectrum(content: bytes, dtype: str, shape: tuple[int, int], sides: tuple[int, int]) -> Array:
    """Factors by which a correlation with the kernel scales the frequencies."""
    from scipy.fft import rfft2

    kernel = np.frombuffer(content, np.dtype(dtype)).reshape(shape).astype(np.float64)
    # A correlation is the convolution with the mirrored kernel, centred on the origin.
    centred = np.zeros(sides)
    centred[: shape[0], : shape[1]] = kernel[::-1, ::-1]
    centred = np.roll(centred, (-(shape[0] // 2), -(shape[1] // 2)), axis=(0, 1))
    spectrum: Array = rfft2(centred)
    return spectrum


def _mirrored(planes: Array, rows: int, columns: int) -> Array:
    return np.pad(planes, ((0, 0), (0, 0), (rows, rows), (columns, columns)), mode="reflect")


@corruption("glass_blur")
def glass_blur(job: Job) -> Array:
    """Blur, move pixels about, blur: frosted glass."""
    deviation, reach, passes = job.level
    blurred = smooth(job.unit(), deviation)
    blurred *= 255
    batch, channels, height, width = blurred.shape
    pixels = blurred.astype(np.uint8).reshape(batch, channels, height * width)
    sources = _displaced(job, int(reach), int(passes))
    again: Array = np.empty_like(pixels)
    for row, image, source in zip(again, pixels, sources, strict=True):
        image.take(source, axis=1, out=row, mode="clip")
    planes: Array = again.reshape(job.images.shape).astype(job.real)
    planes /= 255
    blurred = smooth(planes, deviation)
    blurred *= 255
    return blurred


def _displaced(job: Job, reach: int, passes: int) -> Array:
    """For each pixel the pixel of the blurred image whose value it ends with.

    The reference walks backward over the image and "swaps" each pixel with a neighbour in
    [-reach, reach), but its assignment overwrites: the pixel takes the neighbour's value and the
    neighbour keeps it. So a pixel ends with the old value of its source where the walk comes to
    the source later, and with what the source ended with where the walk has been there. Following
    those links by doubling takes a few steps for the whole batch instead of a loop over pixels.

    Returns:
        int64 ``(B, H * W)``.
    """
    height, width = job.images.shape[2:]
    count = height * width
    inner = (slice(reach + 1, height - reach + 1), slice(reach + 1, width - reach + 1))
    position = np.arange(count).reshape(height, width)
    walked = np.zeros((height, width), bool)
    walked[inner] = True
    shape = (passes, *position[inner].shape)
    shifts = np.empty((len(job.draws), *shape), np.int32)
    steps = np.arange(-reach, reach, dtype=np.int32)
    moves = np.add.outer(steps * width, steps).ravel()
    for row, generator in zip(shifts, job.draws, strict=True):
        if job.fast:
            moves.take(rng.integers(generator, len(moves), shape), out=row, mode="clip")
        else:
            draw = generator.integers(
                -reach, reach, size=(passes, 2, *shape[1:]), dtype=np.int16
            ).astype(np.int32)
            np.add(draw[:, 0] * width, draw[:, 1], out=row)
    first = (np.arange(len(shifts)) * count)[:, None]
    out: Array = np.empty(0, np.int64)
    for turn in range(passes):
        links: Array = np.tile(position, (len(shifts), 1, 1))
        links[:, inner[0], inner[1]] += shifts[:, turn]
        links = links.reshape(-1, count)
        waiting = np.flatnonzero((links > position.ravel()) & walked.ravel().take(links))
        links += first
        links = _followed(links.ravel(), waiting)
        out = out.take(links) if turn else links
    out = out.reshape(-1, count)
    out -= first
    return out


def _followed(links: Array, waiting: Array) -> Array:
    """Follow the links at ``waiting`` until they end at a position that does not wait."""
    open_ = np.zeros(links.shape, bool)
    open_[waiting] = True
    while len(waiting):
        through = links.take(waiting)
        onward, more = links.take(through), open_.take(through)
        links[waiting] = onward
        open_[waiting] = more
        waiting = waiting[more]
    return links


@corruption("motion_blur")
def motion_blur(job: Job) -> Array:
    """Smear along a line within 45 degrees of the horizontal: a camera that moves."""
    radius, deviation = job.level
    degrees = np.array([generator.uniform(-45, 45) for generator in job.draws])
    return motion(job.images, radius, deviation, degrees, dtype=job.real)


@corruption("zoom_blur")
def zoom_blur(job: Job) -> Array:
    """Average over zooms: a camera that moves towards the scene."""
    end, step = job.level
    factors = np.arange(1, end, step)
    if job.fast:
        return np.stack([_zoomed(image, factors) for image in job.images])
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


def _zoomed(image: Array, factors: Array) -> Array:
    """Mean of the zooms of one image, float32 ``(3, H, W)``.

    Sparse matrices move whole rows; a transposition before the columns makes rows of them.
    """
    channels, height, width = image.shape
    rows = np.ascontiguousarray(image.transpose(1, 0, 2)).astype(np.float32)
    total = np.ascontiguousarray(rows.transpose(2, 1, 0)).reshape(width, -1)
    rows = rows.reshape(height, -1)
    for factor in factors:
        zoomed = (zoom_matrix(height, float(factor)) @ rows).reshape(height, channels, width)
        turned = np.ascontiguousarray(zoomed.transpose(2, 1, 0)).reshape(width, -1)
        total += zoom_matrix(width, float(factor)) @ turned
    total /= len(factors) + 1
    # Weights that add up to 1 - 1e-7 must not cost a flat area a level.
    total += 1e-3
    return np.ascontiguousarray(total.reshape(width, channels, height).transpose(1, 2, 0))
