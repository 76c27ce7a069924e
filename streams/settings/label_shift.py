"""Labels that shift online from class to class, drawn with replacement (SAR, 2023).

Towards Stable Test-Time Adaptation in Dynamic Wild World, 2023, arXiv:2302.12400.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from streams import order, order_labels
from streams.options import Option
from streams.settings import Request

OPTIONS: dict[str, tuple[Option, str]] = {
    "ratio": (500_000.0, "imbalance ratio: the class in turn over any other; the paper's infinity"),
    "hold": (100, "consecutive draws for which a class is in turn"),
    "reset": (1, "0 goes on from domain to domain; 1 starts each from the source model"),
}


def plan(request: Request) -> order.Plan:
    """The same draws in every domain, ``hold`` for each class that has images.

    With ``shuffle`` the classes take their turns in one random order, otherwise by label.

    Raises:
        StreamError: For an option out of range.
    """
    reset = request.choice("reset", (0, 1))
    classes = np.unique(request.labels[request.positions])
    if request.shuffle:
        classes = order.shuffled(classes, request.seed, "label-shift", "classes")
    drawn = order_labels.shifting(
        request.positions,
        request.labels,
        ratio=request.number("ratio", 1),
        hold=int(request.number("hold", 1)),
        classes=classes,
        generator=order.rng(request.seed, "label-shift", "draws"),
    )
    visits = [(number, drawn) for number in range(len(request.domains))]
    made = order.of_visits(request.domains, visits, batch_size=request.batch_size)
    return replace(made, reset_steps=order.domain_starts(made)) if reset else made
