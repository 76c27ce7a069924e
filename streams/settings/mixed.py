"""All domains shuffled into one stream, never reset (MIX of SAR, 2023, arXiv:2302.12400).

Towards Stable Test-Time Adaptation in Dynamic Wild World, 2023, arXiv:2302.12400; ``mixed_domains``
of the universal settings of ROID, 2023, arXiv:2306.00650.
"""

from __future__ import annotations

from streams import order
from streams.settings import Request


def plan(request: Request) -> order.Plan:
    """A uniformly random order of all images of all domains.

    Without ``shuffle`` the images of a domain keep their order and the domains alone are mixed.
    """
    positions, ids = order.mixed(
        request.domains, request.positions, seed=request.seed, shuffle=request.shuffle
    )
    return order.Plan(
        domains=request.domains,
        positions=positions,
        domain_ids=ids,
        offsets=order.in_batches([len(ids)], request.batch_size),
    )
