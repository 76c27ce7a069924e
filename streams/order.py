"""Orders as index permutations, computed before the first image is read.

A setting is a composition of the small functions here, in ``order_labels`` and in
``order_markov``; see ``streams/settings``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from streams.types import AnyInts, Domain, Ints


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Which image, in which domain, at which step.

    Attributes:
        domains: The domains that ``domain_ids`` index.
        positions: Position in the source of each sample ``(N,)``; any width of integers, as long
            streams keep 32 bits and less.
        domain_ids: Domain of each sample ``(N,)``, likewise.
        offsets: First sample of each step, and ``N`` at the end ``(steps + 1,)``.
        reset_steps: Steps before which the adapter goes back to the source model.
        visit_starts: First sample of each visit, where a domain may be visited again; empty where
            each domain comes once.
    """

    domains: tuple[Domain, ...]
    positions: AnyInts
    domain_ids: AnyInts
    offsets: Ints
    reset_steps: tuple[int, ...] = ()
    visit_starts: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def step(self, step: int) -> tuple[Ints, Ints]:
        """Positions and domain ids ``(B,)`` int64 of one step."""
        part = self.samples(step)
        wide = (self.positions[part], self.domain_ids[part])
        return wide[0].astype(np.int64, copy=False), wide[1].astype(np.int64, copy=False)

    def samples(self, step: int) -> slice:
        """Places of one step's samples in the stream."""
        return slice(int(self.offsets[step]), int(self.offsets[step + 1]))

    def visits(self, step: int) -> Ints | None:
        """Number ``(B,)`` of the visit of each sample; ``None`` where each domain comes once."""
        if not self.visit_starts:
            return None
        part = self.samples(step)
        starts = np.asarray(self.visit_starts)
        return np.searchsorted(starts, np.arange(part.start, part.stop), side="right") - 1

    def digest(self, *context: str) -> str:
        """Hex SHA-256 of the plan and of ``context``."""
        made = hashlib.sha256()
        texts = [*context, repr(self.domains), repr(self.reset_steps)]
        if self.visit_starts:
            texts.append(f"visits {self.visit_starts!r}")
        for text in texts:
            made.update(f"{len(text)}:{text}".encode())
        for array in (self.positions, self.domain_ids, self.offsets):
            made.update(np.ascontiguousarray(array, dtype="<i8").tobytes())
        return made.hexdigest()

    def distinct_per_step(self, values: AnyInts) -> float:
        """Mean number of distinct values among the samples ``(N,)`` of a step."""
        steps = np.repeat(np.arange(len(self)), np.diff(self.offsets))
        low = int(values.min())  # labels of unknown classes are below 0
        return len(np.unique(steps * (int(values.max()) - low + 1) + (values - low))) / len(self)

    def domain_table(self) -> Iterator[tuple[Domain, int, int]]:
        """Domain, number of samples and first step, in the order of appearance."""
        ids, first, counts = np.unique(self.domain_ids, return_index=True, return_counts=True)
        for at in np.argsort(first):
            step = int(np.searchsorted(self.offsets, first[at], side="right")) - 1
            yield self.domains[ids[at]], int(counts[at]), step


def rng(seed: int, *purpose: int | str) -> np.random.Generator:
    """Generator keyed by a seed and a purpose, independent of any other draw."""
    key = "/".join(map(str, (seed, *purpose))).encode()
    return np.random.default_rng(int.from_bytes(hashlib.sha256(key).digest()[:16], "little"))


def shuffled(positions: Ints, seed: int, *purpose: int | str) -> Ints:
    """A permutation of ``positions`` that depends on seed and purpose alone."""
    return rng(seed, *purpose).permutation(positions)


def domain_order(domain: Domain, positions: Ints, *, seed: int, shuffle: bool) -> Ints:
    """Positions as one domain has them: a permutation keyed by (seed, domain), or as they are."""
    if not shuffle:
        return positions
    return shuffled(positions, seed, "order", domain.corruption, domain.severity)


def in_batches(lengths: Sequence[int], batch_size: int) -> Ints:
    """Offsets of batches that never cross a segment border; a segment's last one may be short."""
    starts = np.cumsum([0, *lengths])
    inner = [np.arange(a, b, batch_size) for a, b in pairwise(starts)]
    return np.concatenate([*inner, starts[-1:]]).astype(np.int64)


def domain_after_domain(
    domains: Sequence[Domain], positions: Ints, *, batch_size: int, seed: int, shuffle: bool
) -> Plan:
    """Every position in every domain, domains one after the other.

    The order inside a domain is a permutation keyed by (seed, domain), or that of ``positions``.
    """
    parts = [domain_order(d, positions, seed=seed, shuffle=shuffle) for d in domains]
    return Plan(
        domains=tuple(domains),
        positions=np.concatenate(parts),
        domain_ids=np.repeat(np.arange(len(parts)), len(positions)),
        offsets=in_batches([len(positions)] * len(parts), batch_size),
    )


def of_visits(
    domains: Sequence[Domain],
    visits: Sequence[tuple[int, Ints]],
    *,
    batch_size: int,
    cross: bool = False,
) -> Plan:
    """Visits ``(domain id, positions)`` one after the other; batches cross borders if told so."""
    lengths = [len(positions) for _, positions in visits]
    return Plan(
        domains=tuple(domains),
        positions=np.concatenate([positions for _, positions in visits]),
        domain_ids=np.repeat(np.array([d for d, _ in visits], dtype=np.int64), lengths),
        offsets=in_batches([sum(lengths)] if cross else lengths, batch_size),
    )


def mixed(
    domains: Sequence[Domain], positions: Ints, *, seed: int, shuffle: bool
) -> tuple[Ints, Ints]:
    """Positions and domain ids of all domains in one uniformly random interleaving.

    Inside each domain the order is that of ``domain_order``: with ``shuffle`` every permutation of
    the union is equally likely.
    """
    ids = shuffled(np.repeat(np.arange(len(domains)), len(positions)), seed, "mixed")
    mixture = np.empty(len(ids), dtype=np.int64)
    for number, domain in enumerate(domains):
        mixture[ids == number] = domain_order(domain, positions, seed=seed, shuffle=shuffle)
    return mixture, ids


def joined(plans: Sequence[Plan]) -> Plan:
    """Plans over the same domains, one after the other, without their resets."""
    lengths = [len(plan.positions) for plan in plans]
    starts = np.cumsum([0, *lengths])
    offsets = [plan.offsets[:-1] + start for plan, start in zip(plans, starts[:-1], strict=True)]
    return Plan(
        domains=plans[0].domains,
        positions=np.concatenate([plan.positions for plan in plans]),
        domain_ids=np.concatenate([plan.domain_ids for plan in plans]),
        offsets=np.concatenate([*offsets, starts[-1:]]),
    )


def with_visits(plan: Plan, starts: Ints) -> Plan:
    """The plan with the first sample ``(V,)`` of each of its visits."""
    return replace(plan, visit_starts=tuple(starts[starts < len(plan.positions)].tolist()))


def without_single_end(plan: Plan) -> Plan:
    """The plan without a last batch of one sample, which batch statistics cannot use."""
    if len(plan) < 2 or plan.offsets[-1] - plan.offsets[-2] != 1 or plan.offsets[1] == 1:
        return plan
    return replace(
        plan,
        positions=plan.positions[:-1],
        domain_ids=plan.domain_ids[:-1],
        offsets=plan.offsets[:-1],
    )


def runs(values: Ints) -> Ints:
    """Lengths of the runs of equal values, in order."""
    borders = np.flatnonzero(np.diff(values)) + 1
    return np.diff(np.concatenate([[0], borders, [len(values)]]))


def domain_starts(plan: Plan) -> tuple[int, ...]:
    """Steps at which the domain changes, step 0 included."""
    first = plan.domain_ids[plan.offsets[:-1]]
    return (0, *(np.flatnonzero(np.diff(first)) + 1).tolist())
