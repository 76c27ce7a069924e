"""Domains one after the other, one pass, never reset (CoTTA, 2022, arXiv:2203.13591)."""

from __future__ import annotations

from streams import order
from streams.settings import Request


def plan(request: Request) -> order.Plan:
    """Domain after domain; the method is told no border."""
    return order.domain_after_domain(
        request.domains,
        request.positions,
        batch_size=request.batch_size,
        seed=request.seed,
        shuffle=request.shuffle,
    )
