"""Domains mixed, then labels correlated in time over the union (ROID, 2023, arXiv:2306.00650).

Universal Test-time Adaptation through Weight Ensembling, Diversity Weighting, and Prior Correction,
2023, arXiv:2306.00650: ``delta`` .01 on ImageNet-C, .1 on ImageNet-D109.
"""

from __future__ import annotations

from dataclasses import replace

from streams import order
from streams.options import Option
from streams.settings import Request, mixed
from streams.settings.correlated import OPTIONS as CORRELATED
from streams.settings.correlated import ordered

OPTIONS: dict[str, tuple[Option, str]] = {
    "delta": (0.01, CORRELATED["delta"][1]),
    "min_chunk": CORRELATED["min_chunk"],
}


def plan(request: Request) -> order.Plan:
    """The mixed order, then ordered by label as one domain.

    Raises:
        StreamError: For an option out of range, or a ``delta`` too small for so few images.
    """
    made = mixed.plan(request)
    places = ordered(request, request.labels[made.positions], "mixed")
    return replace(made, positions=made.positions[places], domain_ids=made.domain_ids[places])
