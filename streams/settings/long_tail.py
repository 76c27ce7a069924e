"""The practical order over long-tailed classes (TRIBE's GLI-TTA, 2023, arXiv:2309.14949).

Towards Real-World Test-Time Adaptation: Tri-Net Self-Training with Balanced Normalization, 2023,
arXiv:2309.14949: imbalance 1, 10, 100 or 200.
"""

from __future__ import annotations

import numpy as np

from streams import order, order_labels
from streams.options import Option
from streams.settings import Request
from streams.settings.practical import OPTIONS as PRACTICAL
from streams.settings.practical import in_slots

OPTIONS: dict[str, tuple[Option, str]] = {
    "imbalance": (10.0, "size of the largest class over that of the smallest"),
    "tail": ("constant", "constant: by label in all domains; dynamic: permuted in each"),
    **PRACTICAL,
}


def plan(request: Request) -> order.Plan:
    """Of each domain a long tail, in Dirichlet slots; batches cross borders.

    Raises:
        StreamError: For an option out of range.
    """
    imbalance = request.number("imbalance", 1)
    dynamic = request.choice("tail", ("constant", "dynamic")) == "dynamic"
    classes = int(request.labels.max()) + 1
    visits = []
    for number, domain in enumerate(request.domains):
        name = ("long-tail", domain.corruption, domain.severity)
        ranks = np.arange(classes)
        if dynamic:
            ranks = order.shuffled(ranks, request.seed, *name, "ranks")
        given = request.positions
        if request.shuffle:
            given = order.shuffled(given, request.seed, *name, "images")
        kept = order_labels.long_tail(given, request.labels, imbalance, ranks)
        visits.append((number, in_slots(request, domain, kept, "long-tail")))
    made = order.of_visits(request.domains, visits, batch_size=request.batch_size, cross=True)
    return order.without_single_end(made)
