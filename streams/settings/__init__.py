"""Settings of the literature, one file each: ``plan(request) -> Plan``.

A file here is a setting; its name is the file's, with ``-`` for ``_``. It may declare
``OPTIONS``, a ``(default, what it is)`` by name, and ``domains(corruptions, severity)`` where it
visits other domains than each corruption at each severity.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from streams import order
from streams.errors import StreamError
from streams.options import Option, Values, changed
from streams.scan import scan
from streams.types import Domain, Ints

DomainMaker = Callable[[Sequence[str], "int | Sequence[int]"], list[Domain]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """What a setting orders.

    Attributes:
        domains: Domains in the protocol's order.
        positions: Positions of the images that take part ``(N,)``.
        labels: Labels of all images of the source.
        batch_size: Samples a step.
        seed: Seed of every permutation.
        shuffle: Whether images are permuted inside a domain.
        options: Options of the setting; ``make_plan`` checks them and adds the defaults.
    """

    domains: tuple[Domain, ...]
    positions: Ints
    labels: Ints
    batch_size: int
    seed: int
    shuffle: bool
    options: Mapping[str, Option] = field(default_factory=dict)

    def number(
        self, name: str, low: float, high: float = math.inf, *, open_low: bool = False
    ) -> float:
        """A numeric option in ``[low, high]``, or ``(low, high]`` with ``open_low``.

        Raises:
            StreamError: If it is out of range.
        """
        return Values(self.options).number(name, low, high, open_low=open_low)

    def choice(self, name: str, allowed: Sequence[Option]) -> Option:
        """An option that is one of ``allowed``.

        Raises:
            StreamError: If it is another.
        """
        value = self.options[name]
        if value not in allowed:
            raise StreamError(f"{name}={value!r} is none of {', '.join(map(repr, allowed))}")
        return value


_SCAN = scan("streams.settings", "setting")


def list_settings() -> list[str]:
    """Sorted names of the settings."""
    return _SCAN.names()


def summary(name: str) -> str:
    """What a setting is, in one line."""
    return _SCAN.summary(name)


def options(setting: str) -> dict[str, tuple[Option, str]]:
    """Options of a setting: default and what it is, by name.

    Raises:
        StreamError: If there is no such setting, with the nearest name.
    """
    return dict(getattr(_SCAN.load(setting), "OPTIONS", {}))


def changed_options(setting: str, given: Mapping[str, Option] | None) -> dict[str, Option]:
    """The given options as values of their type, sorted, without those that are the default.

    Raises:
        StreamError: For an unknown name, with the nearest, or a value of another type.
    """
    if not isinstance(given or {}, Mapping):
        raise StreamError(f"setting options must be values by name, got {given!r}")
    return changed(f"setting {setting!r}", options(setting), given)


def domain_maker(setting: str) -> DomainMaker | None:
    """The setting's own ``domains(corruptions, severity)``, where it has one.

    Raises:
        StreamError: If there is no such setting, with the nearest name.
    """
    made: DomainMaker | None = getattr(_SCAN.load(setting), "domains", None)
    return made


def make_plan(setting: str, request: Request) -> order.Plan:
    """Order a request as the named setting does.

    Raises:
        StreamError: If there is no such setting or option, with the nearest name, or for an option
            out of range.
    """
    plan: Callable[[Request], order.Plan] = _SCAN.load(setting).plan
    values = {name: default for name, (default, _) in options(setting).items()}
    values |= changed_options(setting, request.options)
    return plan(replace(request, options=values))
