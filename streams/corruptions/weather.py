"""Weather: snow, frost and fog."""

from __future__ import annotations

import numpy as np

from streams.corruptions import rng
from streams.corruptions.registry import Array, Job, corruption
from streams.corruptions.resample import clipped_zoom, motion
from streams.corruptions.textures import frost_textures

_GREY = np.array([0.299, 0.587, 0.114], np.float32).reshape(3, 1, 1)


@corruption("snow")
def snow(job: Job) -> Array:
    """Falling flakes before a whitened scene."""
    mean, deviation, zoom, threshold, radius, motion_deviation, keep = job.level
    batch, _, height, width = job.images.shape
    layer = np.empty((batch, height, width), job.real)
    degrees = np.empty(batch)
    for index, generator in enumerate(job.draws):
        if job.fast:
            layer[index] = rng.normal(generator, (height, width))
            layer[index] *= deviation
            layer[index] += mean
        else:
            layer[index] = generator.normal(mean, deviation, (height, width))
        degrees[index] = generator.uniform(-135, -45)
    layer = clipped_zoom(np.ascontiguousarray(layer.transpose(1, 2, 0)), zoom).transpose(2, 0, 1)
    layer[layer < threshold] = 0
    flakes = (np.minimum(layer, 1) * 255).astype(np.uint8)
    flakes = motion(flakes[:, None], radius, motion_deviation, degrees, dtype=job.real)
    both = flakes.astype(np.int16) + flakes[:, :, ::-1, ::-1]

    x = job.images / np.float32(255)
    grey = x[:, :1] * _GREY[0] + x[:, 1:2] * _GREY[1] + x[:, 2:] * _GREY[2]
    whitened = np.maximum(x, grey * np.float32(1.5) + np.float32(0.5))
    x *= np.float32(keep)
    whitened *= np.float32(1 - keep)
    x += whitened
    out: Array = (x + both / job.real(255)) * 255
    return out


@corruption("frost")
def frost(job: Job) -> Array:
    """Ice crystals on a window: a piece of a frost texture over the image."""
    keep, weight = job.level
    height, width = job.images.shape[2:]
    textures = frost_textures(job.profile.frost_scale, height, width)
    ice = np.empty(job.images.shape, np.uint8)
    for row, generator in zip(ice, job.draws, strict=True):
        texture = textures[generator.integers(len(textures))]
        top = generator.integers(texture.shape[1] - height)
        left = generator.integers(texture.shape[2] - width)
        row[...] = texture[:, top : top + height, left : left + width]
    out = job.images.astype(job.real)
    out *= keep
    covered = ice.astype(job.real)
    covered *= weight
    out += covered
    return out


@corruption("fog")
def fog(job: Job) -> Array:
    """A cloud of plasma over the image, whose range shrinks in turn."""
    weight, decay = job.level
    height, width = job.images.shape[2:]
    side = job.profile.fog_map
    while side < max(height, width):
        side *= 2
    draws = np.empty((len(job.draws), side * side - 1), job.real)
    for row, generator in zip(draws, job.draws, strict=True):
        if job.fast:
            row[...] = rng.uniform(generator, 0, 1, row.shape)
        else:
            generator.random(out=row)
    cloud = plasma(draws, side, decay)[:, None, :height, :width]
    highest = job.images.max(axis=(1, 2, 3), keepdims=True).astype(job.real)
    if job.fast:
        x = job.images.astype(job.real)
        x += 255 * weight * cloud
        x *= highest / (highest + 255 * weight)
        return x
    highest /= 255
    x = job.unit()
    x += weight * cloud
    x *= highest
    x /= highest + weight
    x *= 255
    return x


def plasma(draws: Array, side: int, decay: float) -> Array:
    """Diamond-square height maps on a torus, scaled to [0, 1].

    Fournier, Fussell, Carpenter: Computer rendering of stochastic models, 1982.

    Args:
        draws: Uniform in [0, 1), float64 or float32 ``(B, side * side - 1)``.
        side: A power of two.
        decay: Factor by which the roughness falls from one octave to the next.

    Returns:
        ``(B, side, side)`` of the dtype of ``draws``.
    """
    height = np.zeros((len(draws), side, side), draws.dtype)
    used, step, wibble = 0, side, 100.0

    def wobbled(total: Array) -> Array:
        nonlocal used
        count = total.shape[1] * total.shape[2]
        noise = draws[:, used : used + count].reshape(total.shape)
        used += count
        noise = 2 * noise
        noise -= 1
        noise *= wibble * wibble
        total /= 4
        total += noise
        return total

    while step >= 2:
        half = step // 2
        corners = np.ascontiguousarray(height[:, ::step, ::step])
        below = _rolled(corners, 1, 1)
        pairs = corners + below
        centres = wobbled(pairs + _rolled(pairs, 2, 1))
        height[:, half::step, half::step] = centres
        across = centres + _rolled(centres, 1, -1)
        across += corners
        across += _rolled(corners, 2, 1)
        height[:, ::step, half::step] = wobbled(across)
        along = centres + _rolled(centres, 2, -1)
        along += corners
        along += below
        height[:, half::step, ::step] = wobbled(along)
        step = half
        wibble /= decay
    height -= height.min(axis=(1, 2), keepdims=True)
    height /= height.max(axis=(1, 2), keepdims=True)
    return height


def _rolled(values: Array, axis: int, places: int) -> Array:
    """The values ``places`` (1 or -1) further along the axis, which wraps around."""
    if axis == 1:
        return np.concatenate((values[:, places:], values[:, :places]), axis=1)
    return np.concatenate((values[:, :, places:], values[:, :, :places]), axis=2)
