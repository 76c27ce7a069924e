"""Settings of the literature, one file each: ``plan(request) -> Plan``.

A file here is a setting; its name is the file's, with ``-`` for ``_``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from streams import order
from streams.scan import scan
from streams.types import Domain, Ints


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
    """

    domains: tuple[Domain, ...]
    positions: Ints
    labels: Ints
    batch_size: int
    seed: int
    shuffle: bool


_SCAN = scan("streams.settings", "setting")


def list_settings() -> list[str]:
    """Sorted names of the settings."""
    return _SCAN.names()


def summary(name: str) -> str:
    """What a setting is, in one line."""
    return _SCAN.summary(name)


def make_plan(setting: str, request: Request) -> order.Plan:
    """Order a request as the named setting does.

    Raises:
        StreamError: If there is no such setting, with the nearest name.
    """
    plan: Callable[[Request], order.Plan] = _SCAN.load(setting).plan
    return plan(request)
