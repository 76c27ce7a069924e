"""Digital effects: tone, geometry, resolution, compression."""

from __future__ import annotations

from io import BytesIO

import numpy as np

from streams.corruptions.registry import Array, Job, corruption
from streams.corruptions.resample import sample, smooth


@corruption("brightness")
def brightness(job: Job) -> Array:
    """Raise the value of HSV: daylight."""
    (added,) = job.level
    x = job.images / 255.0
    value = x.max(axis=1, keepdims=True)
    share = _divide(value - x, value, 0.0)
    value += added
    np.minimum(value, 1, out=value)
    out: Array = (1 - share) * value * 255
    return out


@corruption("saturate")
def saturate(job: Job) -> Array:
    """Scale and shift the saturation of HSV."""
    factor, added = job.level
    x = job.images / 255.0
    value = x.max(axis=1, keepdims=True)
    chroma = value - x.min(axis=1, keepdims=True)
    saturation = np.clip(_divide(chroma, value, 0.0) * factor + added, 0, 1)
    # Grey has the hue of red in HSV: only red stays at full value when saturation is added.
    hue = _divide(value - x, chroma, np.array([0.0, 1.0, 1.0]).reshape(3, 1, 1))
    out: Array = (1 - saturation * hue) * value * 255
    return out


def _divide(numerator: Array, denominator: Array, otherwise: Array | float) -> Array:
    out = np.empty(numerator.shape)
    out[...] = otherwise
    return np.divide(numerator, denominator, out=out, where=denominator > 0)


@corruption("contrast")
def contrast(job: Job) -> Array:
    """Pull values towards the mean of their channel."""
    (factor,) = job.level
    x = job.images / 255.0
    # A sum of integers is exact in any order, so it does not depend on the batch.
    total = job.images.sum(axis=(2, 3), keepdims=True, dtype=np.int64)
    mean = total / (255.0 * x.shape[2] * x.shape[3])
    x -= mean
    x *= factor
    x += mean
    x *= 255
    return x


@corruption("elastic_transform")
def elastic_transform(job: Job) -> Array:
    """Stretch by a random affine map, then move pixels along a smooth random field."""
    amplitude, smoothness, reach = job.level
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


def _affine(moved: Array, height: int, width: int) -> tuple[Array, Array]:
    """Positions to read for the affine map that moves three corners of a square by ``moved``."""
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
    rows, columns = np.indices((height, width), np.float64)
    to_x = columns - end[:, 0, 0, None, None]
    to_y = rows - end[:, 0, 1, None, None]
    along_a = (to_x * _wide(by) - to_y * _wide(bx)) / _wide(determinant)
    along_b = (to_y * _wide(ax) - to_x * _wide(ay)) / _wide(determinant)
    x = start[0, 0] + along_a * old[0, 0] + along_b * old[1, 0]
    y = start[0, 1] + along_a * old[0, 1] + along_b * old[1, 1]
    # The reference interpolates at steps of 1/32 pixel.
    return (np.rint(y * 32) / 32).astype(np.float32), (np.rint(x * 32) / 32).astype(np.float32)


def _wide(values: Array) -> Array:
    return values[:, None, None]


@corruption("pixelate")
def pixelate(job: Job) -> Array:
    """Shrink and enlarge by averaging over boxes: an upsampled thumbnail."""
    from PIL import Image

    (share,) = job.level
    height, width = job.images.shape[2:]
    small = (int(width * share), int(height * share))
    out = np.empty((len(job.images), height, width, 3), np.uint8)
    for row, pixels in zip(out, job.images.transpose(0, 2, 3, 1), strict=True):
        image = Image.fromarray(np.ascontiguousarray(pixels))
        image = image.resize(small, Image.Resampling.BOX)
        row[...] = np.asarray(image.resize((width, height), Image.Resampling.BOX))
    return np.ascontiguousarray(out.transpose(0, 3, 1, 2))


@corruption("jpeg_compression")
def jpeg_compression(job: Job) -> Array:
    """Encode and decode as JPEG."""
    from PIL import Image

    (quality,) = job.level
    out = np.empty((len(job.images), *job.images.shape[2:], 3), np.uint8)
    for row, pixels in zip(out, job.images.transpose(0, 2, 3, 1), strict=True):
        encoded = BytesIO()
        Image.fromarray(np.ascontiguousarray(pixels)).save(encoded, "JPEG", quality=int(quality))
        row[...] = np.asarray(Image.open(encoded))
    return np.ascontiguousarray(out.transpose(0, 3, 1, 2))
