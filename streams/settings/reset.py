"""Domains one after the other, source model again before each (Tent, 2021, arXiv:2006.10726)."""

from __future__ import annotations

from dataclasses import replace

from streams import order
from streams.settings import Request, continual


def plan(request: Request) -> order.Plan:
    """The continual order with a full reset at every change of domain."""
    made = continual.plan(request)
    return replace(made, reset_steps=order.domain_starts(made))
