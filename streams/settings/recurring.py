"""All domains visited again and again, never reset (PeTTA, 2024, arXiv:2311.18193).

Persistent Test-time Adaptation in Recurring Testing Scenarios, 2024, arXiv:2311.18193: 20 visits of
the practical order, ``base=practical``; ``base=continual`` is that without label correlation
(ReservoirTTA's continual structured change, 2025, arXiv:2505.14511).
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from streams import order
from streams.errors import StreamError
from streams.options import Option
from streams.settings import Request, make_plan
from streams.settings.practical import OPTIONS as PRACTICAL

OPTIONS: dict[str, tuple[Option, str]] = {
    "visits": (20, "how often each domain comes"),
    "base": ("continual", "order of one round: continual, or practical as PeTTA's"),
    "redraw": (0, "1 draws the order inside the domains anew in each round"),
    **PRACTICAL,
}


def plan(request: Request) -> order.Plan:
    """Rounds of the base order, the domains always in the same order.

    Raises:
        StreamError: For an option out of range.
    """
    base = str(request.choice("base", ("continual", "practical")))
    rounds = int(request.number("visits", 1, 10_000))
    redraw = request.choice("redraw", (0, 1))
    passed = {key: request.options[key] for key in PRACTICAL}
    asked = replace(request, options=passed)
    if base == "practical":
        # One sample left over in a round is the first of the next batch, and not skipped.
        asked = replace(asked, batch_size=len(request.positions) * len(request.domains))
    else:
        asked = replace(asked, options={})
        if stray := [key for key, value in passed.items() if value != PRACTICAL[key][0]]:
            raise StreamError(f"{stray[0]} has no effect on base={base!r}: give base='practical'")
    seeds = [request.seed] * rounds
    if redraw:
        again = (order.rng(request.seed, "round", n) for n in range(1, rounds))
        seeds[1:] = [int(generator.integers(1 << 62)) for generator in again]
    plans = {seed: make_plan(base, replace(asked, seed=seed)) for seed in dict.fromkeys(seeds)}
    joined = order.joined([plans[seed] for seed in seeds])
    size = len(request.positions)
    starts = np.arange(rounds * len(request.domains)) * size
    if base == "practical":
        offsets = order.in_batches([len(joined.positions)], request.batch_size)
        joined = order.without_single_end(replace(joined, offsets=offsets))
    # Set last: a sample left out may have been a visit of its own.
    return order.with_visits(joined, starts)
