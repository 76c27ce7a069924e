"""Digital effects: tone, geometry, resolution, compression."""

from __future__ import annotations

import os
from functools import lru_cache
from io import BytesIO
from typing import Any

import numpy as np

from streams.corruptions import rng
from streams.corruptions.registry import Array, Job, corruption
from streams.corruptions.resample import sample, smooth, smooth_cosine, warp

# Pixels from which on an image is encoded in time enough to let other threads run.
_WORTH_A_FILE = 1 << 14


@corruption("brightness")
def brightness(job: Job) -> Array:
    """Raise the value of HSV: daylight."""
    (added,) = job.level
    cell = job.images.max(axis=1, keepdims=True).astype(np.uint16) << 8 | job.images
    out: Array = _brightened(added).take(cell)
    return out


@lru_cache(maxsize=32)
def _brightened(added: float) -> Array:
    """Grey level for each maximum of a pixel's values and each value, uint8 ``(65536,)``."""
    x = np.arange(256) / 255.0
    value = x[:, None]
    share = _divide(value - x, np.broadcast_to(value, (256, 256)), 0.0)
    levels = (1 - share) * np.minimum(value + added, 1) * 255
    out: Array = np.clip(levels, 0, 255).astype(np.uint8).ravel()
    return out


@corruption("saturate")
def saturate(job: Job) -> Array:
    """Scale and shift the saturation of HSV."""
    factor, added = job.level
    x = job.unit()
    value = x.max(axis=1, keepdims=True)
    chroma = value - x.min(axis=1, keepdims=True)
    saturation = np.clip(_divide(chroma, value, 0.0) * factor + added, 0, 1)
    # Grey has the hue of red in HSV: only red stays at full value when saturation is added.
    hue = _divide(value - x, chroma, np.array([0, 1, 1], job.real).reshape(3, 1, 1))
    out: Array = (1 - saturation * hue) * value * 255
    return out


def _divide(numerator: Array, denominator: Array, otherwise: Array | float) -> Array:
    out = np.empty(numerator.shape, numerator.dtype)
    out[...] = otherwise
    return np.divide(numerator, denominator, out=out, where=denominator > 0)


@corruption("contrast")
def contrast(job: Job) -> Array:
    """Pull values towards the mean of their channel."""
    (factor,) = job.level
    levels = np.arange(256) / 255.0
    area = 255.0 * job.images.shape[2] * job.images.shape[3]
    out = np.empty_like(job.images)
    for row, image in zip(out, job.images, strict=True):
        for plane, source in zip(row, image, strict=True):
            mean = int(source.sum(dtype=np.int64)) / area
            table = ((levels - mean) * factor + mean) * 255
            np.clip(table, 0, 255).astype(np.uint8).take(source, out=plane, mode="clip")
    return out


@corruption("elastic_transform")
def elastic_transform(job: Job) -> Array:
    """Stretch by a random affine map, then move pixels along a smooth random field."""
    amplitude, smoothness, reach = job.level
    if job.fast:
        return np.stack(
            [
                _elastic(image, generator, amplitude, smoothness, reach)
                for image, generator in zip(job.images, job.draws, strict=True)
            ]
        )
    batch, _, height, width = job.images.shape
    corners = np.empty((batch, 3, 2))
    field = np.empty((batch, 2, height, width))
    for moved, noise, generator in zip(corners, field, job.draws, strict=True):
        moved[...] = generator.uniform(-reach, reach, size=moved.shape)
        noise[...] = generator.uniform(-1, 1, size=noise.shape) if amplitude else 0
    if amplitude:
        field = smooth(field, smoothness, mode="reflect", truncate=3)
        field *= amplitude
    grid = np.indices((height, width), np.float32)
    image = np.ascontiguousarray(job.images.transpose(0, 2, 3, 1)) / np.float32(255)
    y, x = _affine(corners, height, width)
    image = sample(image, y, x, repeat_edge=False)
    displacement = field.astype(np.float32)
    image = sample(
        image, grid[0] + displacement[:, 0], grid[1] + displacement[:, 1], repeat_edge=True
    )
    image *= 255
    return np.ascontiguousarray(image.transpose(0, 3, 1, 2))


def _elastic(
    image: Array, generator: np.random.Generator, amplitude: float, smoothness: float, reach: float
) -> Array:
    """One image, float32 ``(3, H, W)``."""
    height, width = image.shape[1:]
    corners = generator.uniform(-reach, reach, size=(1, 3, 2))
    # Three points fix the map.
    ends = _affine_map(corners, height, width, np.array([[0, 1, 0]]), np.array([[0, 0, 1]]))
    steps = np.arange(height)[:, None], np.arange(width)
    y, x = (
        _snapped(at[0] + (at[1] - at[0]) * steps[0] + (at[2] - at[0]) * steps[1])
        for at in (ends[0][0, 0], ends[1][0, 0])
    )
    moved = warp(image.astype(np.float32), y, x, repeat_edge=False)
    if amplitude:
        field = rng.uniform(generator, -1, 1, (2, height, width))
        field = smooth_cosine(field, smoothness, truncate=3)
        field *= amplitude
        field[0] += steps[0].astype(np.float32)
        field[1] += steps[1].astype(np.float32)
        moved = warp(moved, field[0], field[1], repeat_edge=True)
    # The cut to 8 bits must not take a level from a flat area.
    moved += np.float32(1e-3)
    return moved


def _affine(moved: Array, height: int, width: int) -> tuple[Array, Array]:
    """Positions to read for the affine map that moves three corners of a square by ``moved``."""
    rows, columns = np.indices((height, width), np.float64)
    y, x = _affine_map(moved, height, width, rows, columns)
    return _snapped(y), _snapped(x)


def _affine_map(
    moved: Array, height: int, width: int, rows: Array, columns: Array
) -> tuple[Array, Array]:
    middle_x, middle_y, side = width // 2, height // 2, min(height, width) // 3
    start = np.array(
        [
            [middle_x + side, middle_y + side],
            [middle_x + side, middle_y - side],
            [middle_x - side, middle_y - side],
        ],
        dtype=np.float64,
    )
    end = start + moved
    # A map is fixed by what it does to two edges from one corner; its inverse reads the source.
    edges = end[:, 1:] - end[:, :1]
    old = start[1:] - start[:1]
    (ax, ay), (bx, by) = edges[:, 0].T, edges[:, 1].T
    determinant = ax * by - ay * bx
    to_x = columns - end[:, 0, 0, None, None]
    to_y = rows - end[:, 0, 1, None, None]
    along_a = (to_x * _wide(by) - to_y * _wide(bx)) / _wide(determinant)
    along_b = (to_y * _wide(ax) - to_x * _wide(ay)) / _wide(determinant)
    x = start[0, 0] + along_a * old[0, 0] + along_b * old[1, 0]
    y = start[0, 1] + along_a * old[0, 1] + along_b * old[1, 1]
    return y, x


def _snapped(position: Array) -> Array:
    """Positions in steps of 1/32 pixel, at which the reference interpolates, float32."""
    snapped: Array = (np.rint(position * 32) / 32).astype(np.float32)
    return snapped


def _wide(values: Array) -> Array:
    return values[:, None, None]


@corruption("pixelate")
def pixelate(job: Job) -> Array:
    """Shrink and enlarge by averaging over boxes: an upsampled thumbnail."""
    from PIL import Image

    (share,) = job.level
    height, width = job.images.shape[2:]
    small = (int(width * share), int(height * share))
    # Enlarging, a box around the centre of a pixel holds one sample.
    rows = _nearest(height, small[1])
    columns = _nearest(width, small[0])
    out = np.empty_like(job.images)
    for row, pixels in zip(out, job.images, strict=True):
        shrunk = _picture(pixels).resize(small, Image.Resampling.BOX)
        planes = np.ascontiguousarray(np.asarray(shrunk).transpose(2, 0, 1))
        planes.take(columns, axis=2).take(rows, axis=1, out=row, mode="clip")
    return out


def _nearest(size: int, small: int) -> Array:
    # In floating point, as Pillow computes it: the box is open on its left side.
    centre = (np.arange(size) + 0.5) * (small / size)
    return np.minimum(centre.astype(np.int64), small - 1)


@corruption("jpeg_compression")
def jpeg_compression(job: Job) -> Array:
    """Encode and decode as JPEG."""
    (quality,) = job.level
    out = np.empty_like(job.images)
    for row, image in zip(out, job.images, strict=True):
        row[...] = through_jpeg(image, int(quality))
    return out


def through_jpeg(image: Array, quality: int) -> Array:
    """Encode and decode an image, uint8 ``(3, H, W)``, as Pillow does by default."""
    from PIL import Image

    encoded = _encoded(_picture(image), quality)
    decoded: Array = np.asarray(Image.open(encoded, formats=("JPEG",)))
    planes: Array = decoded.transpose(2, 0, 1)
    return planes


def _encoded(picture: Any, quality: int) -> BytesIO:
    # Pillow lets other threads run while it writes to a file, but not while it writes to memory.
    if picture.width * picture.height >= _WORTH_A_FILE and _has_memory_files():
        with os.fdopen(os.memfd_create("jpeg"), "w+b") as file:
            picture.save(file, "JPEG", quality=quality)
            file.seek(0)
            return BytesIO(file.read())
    encoded = BytesIO()
    picture.save(encoded, "JPEG", quality=quality)
    return encoded


@lru_cache(maxsize=1)
def _has_memory_files() -> bool:
    try:
        os.close(os.memfd_create("jpeg"))
    except (AttributeError, OSError):  # not Linux, or a sandbox that refuses
        return False
    return True


def _picture(image: Array) -> Any:
    """A Pillow image of uint8 ``(3, H, W)``."""
    from PIL import Image

    return Image.merge("RGB", [Image.fromarray(plane) for plane in image])
