"""Where unknown images come in a stream: the plan of known ones, and others spread among them."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from streams.order import Plan, in_batches, rng
from streams.types import Ints

Pool = Callable[[int], Ints]


def mixed_plan(
    plan: Plan,
    known: NDArray[np.bool_],
    pool: Pool,
    *,
    ratio: float,
    seed: int,
    batch_size: int,
) -> Plan:
    """The known samples in their order, with unknown ones spread uniformly at random.

    Batches are cut anew; they cross the borders of domains where those of the plan do.

    Args:
        plan: Order of the known samples.
        known: Which of its samples are known ``(N,)``; the others are left out.
        pool: Positions of the unknown images of a domain, by its id.
        ratio: Unknown for each known one; at most the pool once in a visit.
        seed: Key of the draws, with the domain: each visit of a domain is mixed alike.
        batch_size: Samples a step.
    """
    kept = np.concatenate([[0], np.cumsum(known)])
    positions = plan.positions[known].astype(np.int64)
    ids = plan.domain_ids[known].astype(np.int64)
    visits = kept[np.array(plan.visit_starts, dtype=np.int64)]
    visits = visits[visits < len(ids)]  # a visit without known images at the end
    resets = kept[plan.offsets[np.array(plan.reset_steps, dtype=np.int64)]]
    changes = np.flatnonzero(np.diff(ids)) + 1
    # More changes than domains or visits: the domains are shuffled together.
    shuffled = len(changes) + 1 > max(len(visits), len(np.unique(ids)))
    borders = [[0], visits, resets, [] if shuffled else changes]
    starts = np.unique(np.concatenate([np.asarray(part, dtype=np.int64) for part in borders]))
    starts = starts[starts < len(ids)]
    ends = [*starts[1:].tolist(), len(ids)]
    mixed = [
        _segment(plan, positions[a:b], ids[a:b], pool, ratio, seed)
        for a, b in zip(starts.tolist(), ends, strict=True)
    ]
    lengths = [len(part) for part, _ in mixed]
    moved = np.concatenate([[0], np.cumsum(lengths)])
    place = dict(zip([*starts.tolist(), len(ids)], moved.tolist(), strict=True))
    # Batches that cross one border of the plan cross them all, resets excepted.
    apart = np.isin(starts, kept[plan.offsets]).all()
    cuts = moved if apart else np.unique([0, *(place[int(at)] for at in resets), moved[-1]])
    offsets = in_batches([b - a for a, b in pairwise(cuts.tolist())], batch_size)
    return Plan(
        domains=plan.domains,
        positions=np.concatenate([part for part, _ in mixed]),
        domain_ids=np.concatenate([part for _, part in mixed]),
        offsets=offsets,
        reset_steps=tuple(
            np.searchsorted(offsets, [place[int(at)] for at in resets]).astype(int).tolist()
        ),
        visit_starts=tuple(place[int(at)] for at in visits),
    )


def _segment(
    plan: Plan, positions: Ints, ids: Ints, pool: Pool, ratio: float, seed: int
) -> tuple[Ints, Ints]:
    """Positions and domain ids of one stretch after the mixing."""
    there, count = np.unique(ids), len(ids)
    pools = {int(number): pool(int(number)) for number in there}
    most = sum(len(images) for images in pools.values())
    extra = min(round(ratio * count), most)
    first = plan.domains[there[0]]
    key = (first.corruption, first.severity) if len(there) == 1 else ("mixed", 0)
    generator = rng(seed, "open-set", *key)
    slots = np.sort(generator.choice(count + extra, extra, replace=False))
    unknown = np.zeros(count + extra, dtype=bool)
    unknown[slots] = True
    before = np.maximum(np.cumsum(~unknown) - 1, 0)  # the known sample before; the first has none
    made_ids = ids[before]
    made = positions[before]
    for number, images in pools.items():
        here = np.flatnonzero(unknown & (made_ids == number))
        # Shuffled domains do not get equal shares: one that gets more than it has takes some again.
        made[here] = np.resize(generator.permutation(images), len(here)) if len(images) else 0
    return made, made_ids
