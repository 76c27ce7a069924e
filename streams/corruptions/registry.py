"""What a corruption is, and how the files of this folder register theirs."""

from __future__ import annotations

import pkgutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streams.corruptions.parameters import PARAMETERS, PROFILES, Level, Profile
from streams.corruptions.rng import Draws
from streams.errors import StreamError

Array = NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class Job:
    """One call of a corruption.

    Args:
        images: RGB images, uint8 ``(B, 3, H, W)``; read only.
        level: The row of the parameter table for the severity.
        draws: The random streams, one per image.
        profile: Facts of scale.
    """

    images: Array
    level: Level
    draws: Draws
    profile: Profile

    @property
    def fast(self) -> bool:
        """Whether the profile draws and computes as the second generation does."""
        return self.profile.generation > 1

    @property
    def real(self) -> type[np.floating[Any]]:
        """The dtype to compute in: float64 in the first generation, float32 in the second."""
        return np.float32 if self.fast else np.float64

    def unit(self) -> Array:
        """The images in [0, 1], of dtype :attr:`real`."""
        out = self.images.astype(self.real)
        out /= 255
        return out


Corruption = Callable[[Job], Array]
"""Returns ``(B, 3, H, W)`` grey levels of any real dtype; the engine clips to [0, 255] and cuts."""

_CORRUPTIONS: dict[str, Corruption] = {}
_OWN_LEVELS: dict[tuple[str, str], tuple[Level, ...]] = {}


def corruption(name: str, **levels: Sequence[Level]) -> Callable[[Corruption], Corruption]:
    """Register a function as the corruption ``name``.

    Args:
        name: The name that ``corrupt`` takes.
        levels: Five parameter tuples by profile, for a corruption that is not in ``PARAMETERS``.

    Raises:
        StreamError: If the name is taken or a table has not five rows.
    """

    def register(function: Corruption) -> Corruption:
        if name in _CORRUPTIONS:
            owner = _CORRUPTIONS[name].__module__
            raise StreamError(f"corruption {name!r} is already defined in {owner}; rename yours")
        for profile, rows in levels.items():
            if len(rows) != 5:
                raise StreamError(
                    f"corruption {name!r} gives {len(rows)} rows for {profile!r}; give five, "
                    "one per severity"
                )
            _OWN_LEVELS[profile, name] = tuple(rows)
        _CORRUPTIONS[name] = function
        return function

    return register


@lru_cache(maxsize=1)
def _scan() -> None:
    package = __name__.rpartition(".")[0]
    for module in pkgutil.iter_modules([str(Path(__file__).parent)]):
        import_module(f"{package}.{module.name}")


def find(name: str) -> Corruption:
    """The function behind a name.

    Raises:
        StreamError: If there is none; the message gives the nearest name.
    """
    _scan()
    if not isinstance(name, str) or name not in _CORRUPTIONS:
        raise StreamError(f"unknown corruption {name!r}; {_hint(name, _CORRUPTIONS)}")
    return _CORRUPTIONS[name]


def find_level(profile: str, name: str, severity: int) -> tuple[Profile, Level]:
    """The facts and the row of parameters for a corruption and severity.

    Raises:
        StreamError: If the profile is unknown or has no such table, or the severity is not 1 to 5.
    """
    if profile not in PROFILES:
        raise StreamError(f"unknown profile {profile!r}; {_hint(profile, PROFILES)}")
    whole = hasattr(severity, "__index__") and not isinstance(severity, bool)
    if not whole or not 1 <= severity <= 5:
        raise StreamError(f"severity must be an integer from 1 to 5, got {severity!r}")
    rows = PARAMETERS[profile].get(name) or _OWN_LEVELS.get((profile, name))
    if rows is None:
        raise StreamError(
            f"corruption {name!r} has no parameters for profile {profile!r}; add five rows"
        )
    return PROFILES[profile], tuple(float(value) for value in rows[severity - 1])


def _hint(name: object, choices: Iterable[str]) -> str:
    near = get_close_matches(str(name), list(choices), n=1)
    if near:
        return f"did you mean {near[0]!r}?"
    return "choose one of " + ", ".join(sorted(choices))
