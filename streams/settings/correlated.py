"""Labels correlated in time inside each domain, domain after domain (NOTE, 2022, arXiv:2208.05117).

NOTE: Robust Continual Test-time Adaptation Against Temporal Correlation, 2022, arXiv:2208.05117,
for ``delta`` above 0; ``delta`` 0, sorted by label, is the limit that ROID reports (Universal
Test-time Adaptation, 2023, arXiv:2306.00650).
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from streams import order, order_labels
from streams.options import Option
from streams.settings import Request
from streams.types import Ints

OPTIONS: dict[str, tuple[Option, str]] = {
    "delta": (0.0, "Dirichlet concentration; 0 sorts by label, large values come near i.i.d."),
    "min_chunk": (10, "images that each of the K chunks must hold, for delta above 0"),
    "reset": (0, "1 resets before each domain, as NOTE's protocol does"),
}


def plan(request: Request) -> order.Plan:
    """The continual order, each domain ordered by label.

    Raises:
        StreamError: For an option out of range, or a ``delta`` too small for so few images.
    """
    reset = request.choice("reset", (0, 1))
    visits = []
    for number, domain in enumerate(request.domains):
        given = order.domain_order(
            domain, request.positions, seed=request.seed, shuffle=request.shuffle
        )
        places = ordered(request, request.labels[given], domain.corruption, domain.severity)
        visits.append((number, given[places]))
    made = order.of_visits(request.domains, visits, batch_size=request.batch_size)
    return replace(made, reset_steps=order.domain_starts(made)) if reset else made


def ordered(request: Request, labels: Ints, *purpose: int | str) -> Ints:
    """Permutation ``(N,)`` that correlates samples of the given labels ``(N,)``.

    Raises:
        StreamError: For an option out of range, or a ``delta`` too small for so few samples.
    """
    delta = request.number("delta", 0)
    min_chunk = int(request.number("min_chunk", 0))
    members = order_labels.by_label(np.arange(len(labels)), labels)
    if delta == 0:
        return members
    generator = order.rng(request.seed, "correlated", *purpose)
    sizes = np.bincount(labels)
    counts = order_labels.chunk_counts(sizes, len(sizes), delta, min_chunk, generator)
    return order_labels.emit(counts, members, generator)
