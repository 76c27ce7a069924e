"""Noise: independent errors of single values."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from streams.corruptions import rng
from streams.corruptions.registry import Array, Job, corruption


def _normal(job: Job) -> Array:
    """Standard normal values, float32 ``(B, 3, H, W)``."""
    out = np.empty(job.images.shape, np.float32)
    for row, generator in zip(out, job.draws, strict=True):
        if job.fast:
            row[...] = rng.normal(generator, row.shape)
        else:
            generator.standard_normal(dtype=np.float32, out=row)
    return out


@corruption("gaussian_noise")
def gaussian_noise(job: Job) -> Array:
    """Add normal noise: electronic noise at low light."""
    (deviation,) = job.level
    noise = _normal(job)
    noise *= 255 * deviation
    noise += job.images
    return noise


@corruption("speckle_noise")
def speckle_noise(job: Job) -> Array:
    """Add normal noise in proportion to the value."""
    (deviation,) = job.level
    noise = _normal(job)
    noise *= deviation
    noise *= job.images
    noise += job.images
    return noise


@corruption("shot_noise")
def shot_noise(job: Job) -> Array:
    """Count photons: a Poisson draw whose mean is the value."""
    (photons,) = job.level
    if job.fast:
        return _tabulated(job, *photon_table(photons))
    rate = job.images / 255.0 * photons
    counts = np.empty(rate.shape)
    for row, mean, generator in zip(counts, rate, job.draws, strict=True):
        row[...] = generator.poisson(mean)
    counts /= photons
    counts *= 255
    return counts


@lru_cache(maxsize=32)
def photon_table(photons: float) -> tuple[Array, Array]:
    """Alias tables of the grey level that a Poisson count gives, for each value of a pixel.

    Walker: An efficient method for generating discrete random variables with general
    distributions, 1977. A draw takes a column and compares the rest of its bits with the share of
    the column's own level; otherwise it takes the column's other level.

    Args:
        photons: Mean count at full intensity.

    Returns:
        The share times 2**16, int32 ``(256, C)``, and the two levels, uint8 ``(256, C, 2)``
        (other, own); ``C`` is a power of two.
    """
    from scipy.special import gammaln, xlogy

    last = int(np.ceil(photons))  # more photons are as white as that many
    counts = np.arange(last)
    rate = (np.arange(256) / 255.0 * photons)[:, None]
    columns = 1 << max(last, 1).bit_length()
    mass = np.zeros((256, columns))
    mass[:, :last] = np.exp(xlogy(counts, rate) - rate - gammaln(counts + 1))
    mass[:, last] = np.maximum(1 - mass.sum(axis=1), 0)
    levels = np.zeros(columns, np.uint8)
    levels[: last + 1] = np.clip(np.arange(last + 1) / photons * 255, 0, 255)
    mass *= columns / mass.sum(axis=1, keepdims=True)
    share = np.ones((256, columns))
    pair = np.repeat(np.tile(levels, (256, 1))[:, :, None], 2, axis=2)
    row = np.arange(256)
    open_ = np.ones((256, columns), bool)
    for _ in range(columns - 1):  # the fullest fills up the emptiest, which is then done
        low = np.where(open_, mass, np.inf).argmin(axis=1)
        high = np.where(open_, mass, -np.inf).argmax(axis=1)
        share[row, low] = np.minimum(mass[row, low], 1)
        pair[row, low, 0] = levels[high]
        mass[row, high] -= 1 - share[row, low]
        open_[row, low] = False
    return np.rint(share * (1 << 16)).astype(np.int32), pair


def _tabulated(job: Job, share: Array, pair: Array) -> Array:
    columns = share.shape[1]
    first = (np.arange(256) * columns).astype(np.int32)
    flat_share, flat_pair = share.ravel(), pair.ravel()
    out = np.empty(job.images.shape, np.uint8)
    for row, image, generator in zip(out, job.images, job.draws, strict=True):
        cell = first.take(image)
        cell += rng.integers(generator, columns, image.shape)
        own = rng.words(generator, image.shape) < flat_share.take(cell)
        cell *= 2
        cell += own
        flat_pair.take(cell, out=row, mode="clip")
    return out


@corruption("impulse_noise")
def impulse_noise(job: Job) -> Array:
    """Set values to black or white, each with half the probability: dead and stuck pixels."""
    (share,) = job.level
    if job.fast:
        return _impulses(job, share)
    draw = _uniform(job)
    out = np.where(draw < share, np.uint8(0), job.images)
    out[draw < share / 2] = 255
    return out


def _impulses(job: Job, share: float) -> Array:
    out = np.empty_like(job.images)
    white, hit = (np.uint16(round(part * (1 << 16))) for part in (share / 2, share))
    for row, image, generator in zip(out, job.images, job.draws, strict=True):
        draw = rng.words(generator, row.shape)
        np.multiply(image, (draw >= hit).view(np.uint8), out=row)
        row |= np.negative((draw < white).view(np.uint8))  # 1 becomes 255
    return out


def _uniform(job: Job) -> Array:
    out = np.empty(job.images.shape, np.float32)
    for row, generator in zip(out, job.draws, strict=True):
        generator.random(dtype=np.float32, out=row)
    return out
