"""Domains in turn with labels correlated in time, borders inside batches (RoTTA's PTTA, 2023).

Robust Test-Time Adaptation in Dynamic Scenarios, 2023, arXiv:2303.13899. Its order of domains is
``order="rotta"``; its images come in the order of the data set, ``shuffle=False``.
"""

from __future__ import annotations

import numpy as np

from streams import order, order_labels
from streams.options import Option
from streams.settings import Request
from streams.types import Domain, Ints

OPTIONS: dict[str, tuple[Option, str]] = {
    "gamma": (0.1, "Dirichlet concentration of a class over the slots; small is more correlated"),
    "slots": (0, "slots of a domain; 0 is the number of classes, 100 at most"),
}


def plan(request: Request) -> order.Plan:
    """Domain after domain, in Dirichlet slots; batches cross borders.

    A last batch of a single sample is left out, unless all batches are.

    Raises:
        StreamError: For an option out of range.
    """
    visits = [
        (number, in_slots(request, domain, request.positions))
        for number, domain in enumerate(request.domains)
    ]
    made = order.of_visits(request.domains, visits, batch_size=request.batch_size, cross=True)
    return order.without_single_end(made)


def in_slots(request: Request, domain: Domain, positions: Ints, *purpose: int | str) -> Ints:
    """Positions of one domain, slot after slot, the classes of a slot in a random order.

    Raises:
        StreamError: For an option out of range.
    """
    gamma = request.number("gamma", 0, open_low=True)
    classes = int(request.labels.max()) + 1
    slots = int(request.number("slots", 0)) or min(classes, 100)
    given = order.domain_order(domain, positions, seed=request.seed, shuffle=request.shuffle)
    members = order_labels.by_label(given, request.labels)
    sizes = np.bincount(request.labels[positions], minlength=classes)
    generator = order.rng(request.seed, "practical", domain.corruption, domain.severity, *purpose)
    counts = order_labels.slot_counts(sizes, slots, gamma, generator)
    return order_labels.emit(counts, members, generator)
