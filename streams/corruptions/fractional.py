"""Severities between the integers: the parameter tables, read as piecewise linear functions.

The definition is ours. Between two integer severities every parameter is interpolated linearly.
Severity 0 is the image itself, and between 0 and 1 the parameters run from a row of no effect to
the first row of the table. Three details: counts of photons run as ``first / severity`` below 1,
as no effect means infinitely many; parameters that count (reach and passes of ``glass_blur``,
JPEG quality) are rounded; a corruption without a row of no effect (``glass_blur``, ``spatter``,
those of others) mixes, below 1, the image and its severity 1. Where a row of ``spatter`` turns
from water to mud the nearer severity is taken.
"""

from __future__ import annotations

from math import floor, isfinite

from streams.corruptions.parameters import Level, Profile
from streams.corruptions.registry import find_level
from streams.errors import StreamError

# Parameters without effect; None stands for those of severity 1.
_NO_EFFECT: dict[str, tuple[float | None, ...]] = {
    "gaussian_noise": (0,),
    "speckle_noise": (0,),
    "impulse_noise": (0,),
    "gaussian_blur": (0,),
    "defocus_blur": (0, 0),
    "motion_blur": (None, 0),
    "zoom_blur": (1, None),
    "snow": (None, None, None, None, None, None, 1),  # and a threshold that no flake reaches
    "frost": (1, 0),
    "fog": (0, None),
    "brightness": (0,),
    "contrast": (1,),
    "saturate": (1, 0),
    "elastic_transform": (0, None, 0),
    "pixelate": (1,),
    "jpeg_compression": (100,),
}
_COUNTS = {"glass_blur": (1, 2), "jpeg_compression": (0,)}
_FLAGS = {"spatter": 5}


def find_between(profile: str, name: str, severity: float) -> tuple[Profile, Level, float]:
    """Facts, parameters, and the share of the corrupted image, for a severity in (0, 5].

    Args:
        profile: Table of strengths.
        name: Corruption.
        severity: Above 0 and at most 5; at integers the row of the table.

    Raises:
        StreamError: If the profile or its table is unknown, or the severity is out of range.
    """
    if isinstance(severity, bool) or not isfinite(severity) or not 0 < severity <= 5:
        raise StreamError(f"severity must be a number above 0 and at most 5, got {severity!r}")
    low, part = floor(severity), severity - floor(severity)
    facts, upper = find_level(profile, name, min(low + 1, 5))
    if low == 0:
        if name == "shot_noise":
            return facts, (upper[0] / severity,), 1.0
        lower = _no_effect(name, upper)
        if lower is None:
            return facts, upper, part
    else:
        lower = find_level(profile, name, low)[1]
    flag = _FLAGS.get(name)
    if flag is not None and lower[flag] != upper[flag]:
        return facts, lower if part < 0.5 else upper, 1.0
    level = [a + part * (b - a) for a, b in zip(lower, upper, strict=True)]
    for at in _COUNTS.get(name, ()):
        level[at] = float(floor(level[at] + 0.5))
    return facts, tuple(level), 1.0


def _no_effect(name: str, first: Level) -> Level | None:
    given = _NO_EFFECT.get(name)
    if given is None:
        return None
    row = [b if a is None else float(a) for a, b in zip(given, first, strict=True)]
    if name == "snow":
        row[3] = first[0] + 4 * first[1]  # four deviations above the mean of the flakes
    return tuple(row)
