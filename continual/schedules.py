"""Learning rates and fractions of the data as plain functions of time.

Time ``t`` counts steps that will have been taken: 0 before the first step, ``total`` with the last
one, so that the last step is taken at the end value itself.
"""

from __future__ import annotations

import math
from typing import Literal

Cooldown = Literal["cosine", "linear", "inverse-sqrt"]


def rewarm_cosine(
    t: float, total: float, *, peak: float, floor: float, warmup: float, start: float = 0.0
) -> float:
    """Linear warm-up, then half a cosine down to the floor.

    Args:
        t: Time in ``[0, total]``; later times give the floor.
        total: Length of the schedule, in steps.
        peak: Learning rate at the end of the warm-up.
        floor: Learning rate at ``total``.
        warmup: Length of the warm-up, in steps.
        start: Learning rate at 0.

    Example:
        >>> rewarm_cosine(5, 10, peak=1.0, floor=0.0, warmup=0)
        0.5
    """
    if t < warmup:
        return start + (peak - start) * t / warmup
    return _half_cosine(peak, floor, _part(t, warmup, total))


def infinite(
    t: float,
    total: float,
    *,
    peak: float,
    constant: float,
    floor: float,
    warmup: float,
    cooldown: float,
    anneal: float,
    first: bool = True,
    shape: Cooldown = "cosine",
) -> float:
    """Warm-up and cool-down once, a constant rate for as long as is wished, exponential annealing.

    Args:
        t: Time in ``[0, total]``; later times give the floor.
        total: End ``N`` of the annealing, in steps.
        peak: Learning rate at the end of the warm-up.
        constant: Learning rate between cool-down and annealing.
        floor: Learning rate at ``total``.
        warmup: End ``W`` of the warm-up, in steps.
        cooldown: End ``C`` of the cool-down.
        anneal: Start ``K`` of the annealing.
        first: Whether this is the first data set; later ones start at ``constant`` at once.
        shape: Of the cool-down.

    Example:
        >>> ends = dict(peak=3e-4, constant=1.65e-4, floor=3e-5)
        >>> f"{infinite(90, 100, **ends, warmup=5, cooldown=15, anneal=80):.3e}"
        '7.036e-05'
    """
    if t > anneal:
        return constant * math.pow(floor / constant, _part(t, anneal, total))
    if not first or t >= cooldown:
        return constant
    if t < warmup:
        return peak * t / warmup
    part = _part(t, warmup, cooldown)
    if shape == "linear":
        return peak + (constant - peak) * part
    if shape == "inverse-sqrt":
        return peak + (constant - peak) * _inverse_sqrt(part) / _inverse_sqrt(1.0)
    return _half_cosine(peak, constant, part)


def cyclical_fractions(
    budget: float, *, start: float = 0.25, factor: float = 0.5, end: float = 1.0, trim: bool = False
) -> tuple[float, ...]:
    """Fraction of the data in each epoch: up from ``start`` to ``end`` and down again, in cycles.

    Args:
        budget: Epochs over all of the data that the fractions amount to.
        start: Smallest fraction, in ``(0, 1]``.
        factor: Ratio of neighbours, in ``(0, 1)``.
        end: Largest fraction, at least ``start``.
        trim: Shorten the last epoch so that the sum is the budget; otherwise the sequence stops
            once its sum has reached it.

    Example:
        >>> cyclical_fractions(2)
        (0.25, 0.5, 1.0, 0.5)
    """
    fractions: list[float] = []
    now, up = start, True
    while sum(fractions) < budget - 1e-9:
        fractions.append(now)
        up = now < end if now == start else up and now != end
        now = min(now / factor, end) if up else max(now * factor, start)
    if trim and fractions:
        fractions[-1] -= sum(fractions) - budget
    return tuple(fractions)


def _half_cosine(high: float, low: float, part: float) -> float:
    return low + 0.5 * (high - low) * (1 + math.cos(math.pi * part))


def _part(t: float, begin: float, end: float) -> float:
    """Where ``t`` is between two times, 1 from the end on."""
    return 1.0 if t >= end else (t - begin) / (end - begin)


def _inverse_sqrt(u: float) -> float:
    return 1 / math.sqrt(1 + 10 * u) - 1
