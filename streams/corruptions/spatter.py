"""Spatter: drops of rain or flecks of mud on the lens."""

from __future__ import annotations

import numpy as np

from streams.corruptions import rng
from streams.corruptions.registry import Array, Job, corruption
from streams.corruptions.resample import smooth

_WATER = np.array([175, 238, 238], np.float32).reshape(3, 1, 1) / np.float32(255)
_MUD = np.array([63, 42, 20], np.float32).reshape(3, 1, 1) / np.float32(255)
_RELIEF = ((-2, -1, 0), (-1, 1, 1), (0, 1, 2))


@corruption("spatter")
def spatter(job: Job) -> Array:
    """Add translucent water or cover with mud where smoothed noise is high."""
    mean, deviation, blur, threshold, strength, mud = job.level
    batch, _, height, width = job.images.shape
    liquid = np.empty((batch, height, width), job.real)
    for row, generator in zip(liquid, job.draws, strict=True):
        if job.fast:
            row[...] = rng.normal(generator, (height, width))
            row *= deviation
            row += mean
        else:
            row[...] = generator.normal(mean, deviation, (height, width))
    liquid = smooth(liquid, blur)
    x = job.images / np.float32(255)
    if mud:
        cover = smooth((liquid > threshold).astype(np.float32), strength)
        cover[cover < 0.8] = 0
        cover = cover[:, None]
        x *= 1 - cover
        x += cover * _MUD
    else:
        liquid[liquid < threshold] = 0
        # Where strong noise exceeds 1 the original's 8 bits wrap around.
        x += _drops((liquid * 255).astype(np.int64) % 256, strength) * _WATER
    out: Array = x * np.float32(255)
    return out


def _drops(liquid: Array, opacity: float) -> Array:
    """Opacity of water: its amount, lit at the edges. Integers 0 to 255 ``(B, H, W)`` in."""
    distance = np.minimum(_distance(~edges(liquid, 50, 150)), 20)
    relief = _box(distance).astype(np.uint8)
    relief = _equalised(relief)
    padded = np.pad(relief.astype(np.int64), ((0, 0), (1, 1), (1, 1)), mode="reflect")
    lit = np.clip(_weighted(padded, _RELIEF), 0, 255)
    amount = (liquid * np.rint(_box(lit))).astype(np.float32)
    highest = amount.max(axis=(1, 2), keepdims=True)
    # An image without a drop has nothing to scale.
    amount = np.divide(amount, highest, out=np.zeros_like(amount), where=highest > 0)
    amount *= np.float32(opacity)
    return np.expand_dims(amount, 1)


def edges(grey: Array, low: float, high: float) -> Array:
    """Canny edges of integer images ``(B, H, W)``, bool.

    Canny: A computational approach to edge detection, 1986; gradients by 3x3 Sobel filters,
    strength by the sum of absolute values, directions in steps of 45 degrees.
    """
    padded = np.pad(grey, ((0, 0), (1, 1), (1, 1)), mode="edge")
    across = _weighted(padded, ((-1, 0, 1), (-2, 0, 2), (-1, 0, 1)))
    down = _weighted(padded, ((-1, -2, -1), (0, 0, 0), (1, 2, 1)))
    strength = np.abs(across) + np.abs(down)
    around = np.pad(strength, ((0, 0), (1, 1), (1, 1)))

    def shifted(y: int, x: int) -> Array:
        height, width = strength.shape[1:]
        return around[:, 1 + y : 1 + y + height, 1 + x : 1 + x + width]

    tangent = 0.41421356  # of 22.5 degrees
    flat = np.abs(down) < tangent * np.abs(across)
    steep = np.abs(down) > (2 + tangent) * np.abs(across)
    falling = (across ^ down) < 0
    peak = np.select(
        [flat, steep, falling],
        [
            (strength > shifted(0, -1)) & (strength >= shifted(0, 1)),
            (strength > shifted(-1, 0)) & (strength >= shifted(1, 0)),
            (strength > shifted(-1, 1)) & (strength > shifted(1, -1)),
        ],
        (strength > shifted(-1, -1)) & (strength > shifted(1, 1)),
    )
    weak = peak & (strength > low)
    found = peak & (strength > high)
    while True:  # weak edges count where a chain of them leads to a strong one
        grown = np.pad(found, ((0, 0), (1, 1), (1, 1)))
        grown = grown[:, :-2] | grown[:, 1:-1] | grown[:, 2:]
        grown = (grown[:, :, :-2] | grown[:, :, 1:-1] | grown[:, :, 2:]) & weak
        if np.array_equal(grown, found):
            return found
        found = grown


def _distance(free: Array) -> Array:
    """Chamfer distance to the nearest position that is not free; 20 and more where there is none.

    Steps cost 1, 1.4 and 2.1969 along an axis, a diagonal and a knight's move.
    """
    from scipy.ndimage import distance_transform_edt

    out = np.full(free.shape, 255.0)
    rows, columns = np.indices(free.shape[1:])
    for row, image in zip(out, free, strict=True):
        if image.all():
            continue
        _, nearest = distance_transform_edt(image, return_indices=True)
        dy, dx = np.abs(nearest[0] - rows), np.abs(nearest[1] - columns)
        long, short = np.maximum(dy, dx), np.minimum(dy, dx)
        row[...] = np.where(
            long >= 2 * short,
            (long - 2 * short) + 2.1969 * short,
            1.4 * (2 * short - long) + 2.1969 * (long - short),
        )
    return out


def _box(images: Array) -> Array:
    """Mean over 3x3 with the edge mirrored, float64."""
    padded = np.pad(images.astype(np.float64), ((0, 0), (1, 1), (1, 1)), mode="reflect")
    return _weighted(padded, ((1, 1, 1), (1, 1, 1), (1, 1, 1))) / 9


def _weighted(padded: Array, kernel: tuple[tuple[int, ...], ...]) -> Array:
    height, width = padded.shape[1] - 2, padded.shape[2] - 2
    total = np.zeros((len(padded), height, width), padded.dtype)
    for y, row in enumerate(kernel):
        for x, weight in enumerate(row):
            if weight:
                total += weight * padded[:, y : y + height, x : x + width]
    return total


def _equalised(images: Array) -> Array:
    """Spread the histogram of each image over 0 to 255, uint8 ``(B, H, W)``."""
    out = np.empty_like(images)
    for row, image in zip(out, images, strict=True):
        counts = np.bincount(image.ravel(), minlength=256)
        lowest = int(np.flatnonzero(counts)[0])
        rest = image.size - counts[lowest]
        if rest == 0:
            row[...] = image
            continue
        table = (np.cumsum(counts) - counts[lowest]) * (255.0 / rest)
        row[...] = np.rint(np.clip(table, 0, 255)).astype(np.uint8)[image]
    return out
