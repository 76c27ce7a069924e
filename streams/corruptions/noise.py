"""Noise: independent errors of single values."""

from __future__ import annotations

import numpy as np

from streams.corruptions.registry import Array, Job, corruption


def _normal(job: Job) -> Array:
    """Standard normal values, float32 ``(B, 3, H, W)``."""
    out = np.empty(job.images.shape, np.float32)
    for row, generator in zip(out, job.draws, strict=True):
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
    rate = job.images / 255.0 * photons
    counts = np.empty(rate.shape)
    for row, mean, generator in zip(counts, rate, job.draws, strict=True):
        row[...] = generator.poisson(mean)
    counts /= photons
    counts *= 255
    return counts


@corruption("impulse_noise")
def impulse_noise(job: Job) -> Array:
    """Set values to black or white, each with half the probability: dead and stuck pixels."""
    (share,) = job.level
    draw = _uniform(job)
    out = np.where(draw < share, np.uint8(0), _requantised(job.images))
    out[draw < share / 2] = 255
    return out


def _uniform(job: Job) -> Array:
    out = np.empty(job.images.shape, np.float32)
    for row, generator in zip(out, job.draws, strict=True):
        generator.random(dtype=np.float32, out=row)
    return out


def _requantised(images: Array) -> Array:
    """Values after the way to [0, 1] and back, where the cut loses a level on a few of them."""
    levels = (np.arange(256) / 255.0 * 255).astype(np.uint8)
    return levels[images]
