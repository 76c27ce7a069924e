"""Frost textures: photographs where an installed distribution brings them, else computed ones."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from importlib import metadata
from pathlib import Path

import numpy as np

from streams.corruptions.registry import Array

# Distributions that install the photographs of the original benchmark. Only their files are
# read: their code is not imported.
_DISTRIBUTIONS = ("imagecorruptions", "imagecorruptions-imaug", "imgcorr", "corrupt-tta")
_PHOTOGRAPH = re.compile(r"frost([1-6])\.(?:png|jpe?g)", re.IGNORECASE)
# The original draws from the first five of its six photographs.
_COUNT = 5


@dataclass(frozen=True, kw_only=True)
class _Look:
    """Statistics of a photograph of frost, in grey levels and cycles per pixel.

    ``shade`` and ``grain`` are the deviations of RGB along two independent random fields. The
    power spectrum of the shade falls with the fourth power of the frequency; that of the grain is
    flat below ``corner`` and falls as ``frequency ** -slope`` above. The logarithm of the local
    strength of the grain has the deviation ``uneven``: frost has smooth and rough places.
    """

    mean: tuple[float, float, float]
    shade: tuple[float, float, float]
    grain: tuple[float, float, float]
    corner: float
    slope: float
    uneven: float


_PALE = _Look(
    mean=(201, 205, 214),
    shade=(12, 12, 12),
    grain=(16, 16, 16),
    corner=0.031,
    slope=2.1,
    uneven=0.35,
)
_LOOKS = (
    _Look(
        mean=(78, 149, 166),
        shade=(24, 10, 6),
        grain=(12, 12, 12),
        corner=0,
        slope=1.7,
        uneven=0.3,
    ),
    _PALE,
    _PALE,  # the second and third photograph have the same statistics
    _Look(
        mean=(138, 153, 166),
        shade=(14, 14, 14),
        grain=(24, 24, 24),
        corner=0.056,
        slope=2.0,
        uneven=0.4,
    ),
    _Look(
        mean=(112, 123, 135),
        shade=(20, 20, 20),
        grain=(33, 32, 31),
        corner=0.022,
        slope=2.2,
        uneven=0.45,
    ),
)


def frost_source() -> str:
    """Say where the frost textures come from.

    Returns:
        ``"photographs from <distribution>"`` or ``"procedural"``.
    """
    distribution, _ = _photographs()
    return f"photographs from {distribution}" if distribution else "procedural"


@lru_cache(maxsize=1)
def frost_digest() -> str:
    """SHA-256 of the textures in use, to be stored beside results."""
    digest = sha256()
    for texture in _sources():
        digest.update(repr(texture.shape).encode())
        digest.update(texture.tobytes())
    return digest.hexdigest()


@lru_cache(maxsize=4)
def frost_textures(scale: float, height: int, width: int) -> tuple[Array, ...]:
    """Textures from which an image of ``height`` by ``width`` pixels can be cropped.

    Args:
        scale: Factor of the resizing, enlarged where a texture would be smaller than the image.
        height: Rows of the crop.
        width: Columns of the crop.

    Returns:
        uint8 ``(3, H, W)`` RGB each, ``H > height`` and ``W > width``.
    """
    return tuple(_resized(texture, scale, height, width) for texture in _sources())


def clear_textures() -> None:
    """Forget the textures, so that a distribution installed since is found."""
    for cached in (_photographs, _sources, frost_digest, frost_textures):
        cached.cache_clear()


@lru_cache(maxsize=1)
def _photographs() -> tuple[str, tuple[Path, ...]]:
    for name in _DISTRIBUTIONS:
        try:
            files = metadata.files(name) or []
        except metadata.PackageNotFoundError:
            continue
        found = {}
        for file in files:
            match = _PHOTOGRAPH.fullmatch(file.name)
            path = Path(str(file.locate()))
            if match and path.is_file():
                found[int(match.group(1))] = path
        paths = tuple(found[i] for i in range(1, _COUNT + 1) if i in found)
        if len(paths) == _COUNT:
            return name, paths
    return "", ()


@lru_cache(maxsize=1)
def _sources() -> tuple[Array, ...]:
    _, paths = _photographs()
    if not paths:
        return tuple(_procedural(index) for index in range(_COUNT))
    from PIL import Image

    opened = (Image.open(path, formats=("JPEG", "PNG")) for path in paths)
    return tuple(np.asarray(image.convert("RGB")).transpose(2, 0, 1) for image in opened)


def _resized(texture: Array, scale: float, height: int, width: int) -> Array:
    """Bilinear sampling at pixel centres, without smoothing, as the original resizes."""
    scale = max(scale, (height + 1) / texture.shape[1], (width + 1) / texture.shape[2])
    out = texture.astype(np.float64)
    for axis in (1, 2):
        size = texture.shape[axis]
        centre = (np.arange(round(size * scale)) + 0.5) / scale - 0.5
        lower = np.clip(np.floor(centre).astype(np.int64), 0, size - 1)
        upper = np.minimum(lower + 1, size - 1)
        shape = [-1 if other == axis else 1 for other in range(3)]
        part = np.clip(centre - lower, 0, 1).reshape(shape)
        out = out.take(lower, axis) * (1 - part) + out.take(upper, axis) * part
    return _levels(out)


def _procedural(index: int) -> Array:
    """A computed texture, uint8 ``(3, 400, 600)``: noise with the spectrum and colours of frost."""
    look = _LOOKS[index]
    generator = np.random.Generator(np.random.Philox(key=index))
    rows, columns = 400, 600
    frequency = np.hypot(np.fft.fftfreq(rows)[:, None], np.fft.rfftfreq(columns))
    frequency[0, 0] = np.inf  # no constant part

    def field(amplitude: Array) -> Array:
        spectrum = np.fft.rfft2(generator.standard_normal((rows, columns))) * amplitude
        values: Array = np.fft.irfft2(spectrum, (rows, columns))
        values /= values.std()
        return values

    shade = field(frequency**-2)
    grain = field((look.corner**2 + frequency**2) ** (-look.slope / 4))
    grain *= np.exp(look.uneven * field((0.01**2 + frequency**2) ** -1.5))
    grain /= grain.std()
    mean, shade_rgb, grain_rgb = (
        np.array(rgb).reshape(3, 1, 1) for rgb in (look.mean, look.shade, look.grain)
    )
    return _levels(mean + shade_rgb * shade + grain_rgb * grain)


def _levels(values: Array) -> Array:
    out: Array = np.clip(np.rint(values), 0, 255).astype(np.uint8)
    return out
