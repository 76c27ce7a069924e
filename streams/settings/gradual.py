"""Each corruption climbs from severity 1 to 5 and back, never reset (CoTTA, 2022).

Continual Test-Time Domain Adaptation, 2022, arXiv:2203.13591. Form ``up-down`` is the 1 to 5 to 1
for every corruption that later papers use: 135 visits. Form ``cotta`` starts the first corruption
at severity 5: 131.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from streams import order
from streams.errors import StreamError
from streams.factory import domains_of
from streams.options import Option
from streams.settings import Request
from streams.types import Domain

OPTIONS: dict[str, tuple[Option, str]] = {
    "form": ("up-down", "up-down: 1 to 5 to 1 for all; cotta: the first corruption 5 to 1 alone"),
}


def domains(corruptions: Sequence[str], severity: int | Sequence[int]) -> list[Domain]:
    """Every severity up to the given one, corruption after corruption.

    Raises:
        StreamError: For several severities, or one outside 1 to 5.
    """
    peaks = {domain.severity for domain in domains_of(corruptions, severity)}
    if len(peaks) > 1:
        raise StreamError(f"severity={severity} is several: gradual climbs to one, such as 5")
    climbed = domains_of(corruptions, range(1, max(peaks) + 1))
    places = {name: place for place, name in enumerate(corruptions)}
    return sorted(climbed, key=lambda domain: (places[domain.corruption], domain.severity))


def plan(request: Request) -> order.Plan:
    """All images at each severity, up and down again, corruption after corruption.

    Raises:
        StreamError: For domains that have no severity, or an unknown form.
    """
    form = request.choice("form", ("up-down", "cotta"))
    climbs: dict[str, list[int]] = {}
    for number, domain in enumerate(request.domains):
        if not domain.severity:
            raise StreamError(f"domain {domain.name!r} has no severity: gradual needs corruptions")
        climbs.setdefault(domain.corruption, []).append(number)
    visited: list[int] = []
    for climb in climbs.values():
        climb.sort(key=lambda number: request.domains[number].severity)
        if form == "up-down" or visited:
            visited += climb[:-1]
        visited += climb[::-1]
    # The same permutation at both visits of a severity, as where every loader is seeded alike.
    orders = [
        order.domain_order(d, request.positions, seed=request.seed, shuffle=request.shuffle)
        for d in request.domains
    ]
    made = order.of_visits(
        request.domains, [(d, orders[d]) for d in visited], batch_size=request.batch_size
    )
    starts = np.arange(len(visited)) * len(request.positions)
    return order.with_visits(made, starts)
