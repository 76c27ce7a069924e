"""Orders as index permutations, computed before the first image is read.

A setting is a composition of the small functions here; see ``streams/settings``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from streams.types import Domain, Ints


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Which image, in which domain, at which step.

    Attributes:
        domains: The domains that ``domain_ids`` index.
        positions: Position in the source of each sample ``(N,)``.
        domain_ids: Domain of each sample ``(N,)``.
        offsets: First sample of each step, and ``N`` at the end ``(steps + 1,)``.
        reset_steps: Steps before which the adapter goes back to the source model.
    """

    domains: tuple[Domain, ...]
    positions: Ints
    domain_ids: Ints
    offsets: Ints
    reset_steps: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def step(self, step: int) -> tuple[Ints, Ints]:
        """Positions and domain ids ``(B,)`` of one step."""
        part = slice(self.offsets[step], self.offsets[step + 1])
        return self.positions[part], self.domain_ids[part]

    def digest(self, *context: str) -> str:
        """Hex SHA-256 of the plan and of ``context``."""
        made = hashlib.sha256()
        for text in (*context, repr(self.domains), repr(self.reset_steps)):
            made.update(f"{len(text)}:{text}".encode())
        for array in (self.positions, self.domain_ids, self.offsets):
            made.update(np.ascontiguousarray(array, dtype="<i8").tobytes())
        return made.hexdigest()

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
    parts = [
        shuffled(positions, seed, "order", d.corruption, d.severity) if shuffle else positions
        for d in domains
    ]
    return Plan(
        domains=tuple(domains),
        positions=np.concatenate(parts),
        domain_ids=np.repeat(np.arange(len(parts)), len(positions)),
        offsets=in_batches([len(positions)] * len(parts), batch_size),
    )


def domain_starts(plan: Plan) -> tuple[int, ...]:
    """Steps at which the domain changes, step 0 included."""
    first = plan.domain_ids[plan.offsets[:-1]]
    return (0, *(np.flatnonzero(np.diff(first)) + 1).tolist())
