"""The one entry point: check the request, run the corruption, cut to 8 bits."""

from __future__ import annotations

from collections.abc import Sequence
from operator import index

import numpy as np
import torch
from torch import Tensor

from streams.corruptions.digital import through_jpeg
from streams.corruptions.fractional import find_between
from streams.corruptions.parameters import Level, Profile
from streams.corruptions.registry import Job, find, find_level
from streams.corruptions.rng import Draws
from streams.corruptions.threads import share_out
from streams.errors import StreamError

# Values worked on at a time: temporaries of this size stay in the cache of one core.
_CHUNK_VALUES = 1 << 17


def corrupt(
    images: Tensor,
    name: str,
    severity: int,
    *,
    ids: Sequence[int],
    seed: int = 0,
    profile: str = "cifar",
    threads: int | None = None,
) -> Tensor:
    """Corrupt a batch of images.

    The pixels of an image depend on its own pixels, ``ids[i]``, ``name``, ``severity``, ``seed``
    and ``profile`` only: not on the rest of the batch, its order, the threads or the device. To
    keep that promise the arithmetic runs on the processor whatever the device of ``images``; no
    global random state is read or changed.

    Args:
        images: RGB images, uint8 ``(B, 3, H, W)``, any device.
        name: One of ``CORRUPTIONS`` or ``EXTRA_CORRUPTIONS``.
        severity: 1 (mild) to 5 (strong).
        ids: ``B`` image ids; equal ids on equal images give equal results.
        seed: Another seed draws other noise.
        profile: Table of strengths: ``"cifar"`` for images of about 32x32, ``"tiny-imagenet"`` for
            64x64, ``"imagenet"`` for 224x224.
        threads: Parts of the batch worked on at a time; by default the environment variable
            ``TTA_CORRUPTION_THREADS`` or, without it, the number of processors up to 4.

    Returns:
        uint8 ``(B, 3, H, W)`` on the device of ``images``; fractions are cut, not rounded.

    Raises:
        StreamError: If a name, the severity, the dtype, the shape, the ids or the number of threads
            are wrong.

    Example:
        >>> import torch
        >>> from streams.corruptions import corrupt
        >>> images = torch.full((2, 3, 32, 32), 100, dtype=torch.uint8)
        >>> corrupt(images, "brightness", 5, ids=[0, 1]).float().mean().item()
        176.0
    """
    find(name)
    facts, level = find_level(profile, name, severity)
    return _corrupted(images, name, severity, facts, level, ids, seed, threads)


def corrupt_between(
    images: Tensor,
    name: str,
    severity: float,
    *,
    ids: Sequence[int],
    seed: int = 0,
    profile: str = "cifar",
    threads: int | None = None,
) -> Tensor:
    """Corrupt a batch of images at a severity that need not be an integer.

    The definition is in :mod:`streams.corruptions.fractional`: parameters are interpolated linearly
    between the rows of the table, and severity 0 is the image itself. At integers the pixels are
    those of :func:`corrupt`; what they depend on is the same.

    Args:
        images: RGB images, uint8 ``(B, 3, H, W)``, any device.
        name: One of ``CORRUPTIONS`` or ``EXTRA_CORRUPTIONS``.
        severity: 0 to 5.
        ids: As for :func:`corrupt`.
        seed: As for :func:`corrupt`.
        profile: As for :func:`corrupt`.
        threads: As for :func:`corrupt`.

    Returns:
        uint8 ``(B, 3, H, W)`` on the device of ``images``; fractions are cut, not rounded.

    Raises:
        StreamError: As :func:`corrupt`, and for a severity outside 0 to 5.

    Example:
        >>> import torch
        >>> from streams.corruptions import corrupt_between
        >>> images = torch.full((1, 3, 32, 32), 100, dtype=torch.uint8)
        >>> [int(corrupt_between(images, "brightness", s, ids=[0]).max()) for s in (0, 0.5, 1)]
        [100, 106, 112]
    """
    find(name)
    if not isinstance(severity, bool) and severity == 0:
        find_level(profile, name, 1)
        _check(images)
        return images.clone()
    facts, level, share = find_between(profile, name, severity)
    key = int(severity) if severity == int(severity) else float(severity)
    made = _corrupted(images, name, key, facts, level, ids, seed, threads)
    if share == 1:
        return made
    # Between the image and its severity 1; sums of multiples of the share, cut like all others.
    mixed = images.float() + share * (made.float() - images.float())
    return mixed.floor().to(torch.uint8)


def _corrupted(
    images: Tensor,
    name: str,
    severity: float,
    facts: Profile,
    level: Level,
    ids: Sequence[int],
    seed: int,
    threads: int | None,
) -> Tensor:
    function = find(name)
    _check(images)
    if len(ids) != len(images):
        raise StreamError(f"ids must hold one id per image: {len(images)} images, {len(ids)} ids")
    keys = [_whole("an id", image_id) for image_id in ids]
    seed = _whole("seed", seed)
    pixels = images.detach().cpu().contiguous().numpy().view()
    pixels.flags.writeable = False  # shared with the caller's tensor
    out = np.empty_like(pixels)
    step = max(1, _CHUNK_VALUES // max(1, pixels[0].size)) if len(pixels) else 1

    def work(start: int) -> None:
        part = slice(start, start + step)
        draws = Draws(
            seed=seed, ids=keys[part], name=name, severity=severity, generation=facts.generation
        )
        result = function(Job(images=pixels[part], level=level, draws=draws, profile=facts))
        if result.dtype != np.uint8:
            # Fractions are cut as the reference sets were stored; a cast wraps outside [0, 255].
            np.clip(result, 0, 255, out=result)
        np.copyto(out[part], result, casting="unsafe")

    share_out(work, range(0, len(pixels), step), threads)
    return torch.from_numpy(out).to(images.device)


def recompress(images: Tensor, quality: int = 85, *, threads: int | None = None) -> Tensor:
    """Encode images as JPEG and decode them, as the original benchmark stores ImageNet-C.

    Args:
        images: RGB images, uint8 ``(B, 3, H, W)``, any device.
        quality: 1 to 95; the original stores with 85 (and smaller entropy tables, which change
            the size of the file and no pixel).
        threads: As for :func:`corrupt`.

    Returns:
        uint8 ``(B, 3, H, W)`` on the device of ``images``.

    Raises:
        StreamError: If the images, the quality or the number of threads are wrong.
    """
    _check(images)
    if not 1 <= _whole("quality", quality) <= 95:
        raise StreamError(f"quality must be an integer from 1 to 95, got {quality!r}")
    pixels = images.detach().cpu().contiguous().numpy()
    out = np.empty_like(pixels)

    def work(position: int) -> None:
        out[position] = through_jpeg(pixels[position], int(quality))

    share_out(work, range(len(pixels)), threads)
    return torch.from_numpy(out).to(images.device)


def _whole(what: str, value: int) -> int:
    try:
        return index(value)
    except TypeError:
        raise StreamError(f"{what} must be an integer, got {value!r}") from None


def _check(images: Tensor) -> None:
    if not isinstance(images, Tensor):
        raise StreamError(f"images must be a torch tensor, got {type(images).__name__}")
    if images.dtype != torch.uint8:
        raise StreamError(
            f"images must be uint8 in [0, 255], got {images.dtype}; "
            "convert with (images * 255).round().to(torch.uint8) if they are in [0, 1]"
        )
    shape = tuple(images.shape)
    if len(shape) != 4 or shape[1] != 3:
        raise StreamError(f"images must have the shape (B, 3, H, W), got {shape}")
    if min(shape[2:]) < 8:
        raise StreamError(f"images must be at least 8x8 pixels, got {shape[2]}x{shape[3]}")
