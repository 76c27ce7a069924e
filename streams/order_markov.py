"""Orders that a Markov chain over domains and classes generates."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from streams.types import Ints

Floats = NDArray[np.float64]
_REDRAWS = 8
_BLOCK = 1 << 16


@dataclass(frozen=True, kw_only=True)
class Chain:
    """Stays with probability ``keep``; otherwise draws the next state from ``weights``.

    Its stationary distribution is ``weights (n,)``; state i follows itself with probability
    ``keep + (1 - keep) * weights[i]``.
    """

    weights: Floats
    keep: float

    @property
    def transitions(self) -> Floats:
        """Transition matrix ``(n, n)``; rows are the present state."""
        size = len(self.weights)
        made: Floats = self.keep * np.eye(size) + (1 - self.keep) * self.weights
        return made


def tail_weights(size: int, imbalance: float) -> Floats:
    """Exponentially falling weights ``(size,)``, the first ``imbalance`` times the last."""
    made: Floats = np.power(imbalance, -np.arange(size) / max(size - 1, 1))
    made /= made.sum()
    return made


def keep_of(stay: float, size: int) -> float:
    """``keep`` whose mean self-transition over the states is ``stay``; 0 is independent draws.

    The mean of ``keep + (1 - keep) * weights`` is ``keep + (1 - keep) / size`` for any weights.
    """
    return 0.0 if stay == 0 or size == 1 else max((stay - 1 / size) / (1 - 1 / size), 0.0)


def walk(
    stock: Ints, domains: Chain, classes: Chain, *, stop: bool, generator: np.random.Generator
) -> tuple[Ints, Ints]:
    """Domain and class of each step of a walk that takes one image of its state a step.

    The two chains move independently. A state without images left is passed over: the step is
    drawn again among those that have some. With ``stop`` the walk ends there instead.

    Args:
        stock: Images of each state ``(D, K)``.
        domains: Chain over the ``D`` domains.
        classes: Chain over the ``K`` classes.
        stop: Whether the first state found empty ends the walk.
        generator: Source of the draws.

    Returns:
        Domains ``(T,)`` and classes ``(T,)``, ``T`` at most the sum of ``stock``.
    """
    left = stock.tolist()
    remaining = int(stock.sum())
    open_states = _OpenStates(stock > 0, domains, classes)
    domain_cdf, class_cdf = _cdf(domains.weights), _cdf(classes.weights)
    domain, label = -1, -1  # before the first step there is nothing to keep
    uniform = _uniforms(generator)
    walked: list[tuple[int, int]] = []
    while remaining:
        for _ in range(_REDRAWS):
            d, k = domain, label
            if d < 0 or next(uniform) >= domains.keep:
                d = bisect_right(domain_cdf, next(uniform))
            if k < 0 or next(uniform) >= classes.keep:
                k = bisect_right(class_cdf, next(uniform))
            if left[d][k] or stop:
                break
        else:
            d, k = open_states.draw(domain, label, next(uniform), next(uniform), next(uniform))
        if not left[d][k]:
            break
        left[d][k] -= 1
        remaining -= 1
        if not left[d][k]:
            open_states.close(d, k)
        domain, label = d, k
        walked.append((d, k))
    made = np.array(walked, dtype=np.int64).reshape(-1, 2)
    return made[:, 0].copy(), made[:, 1].copy()


def take(domain_ids: Ints, numbers: Ints, members: Ints, sizes: Ints) -> Ints:
    """Position of each step ``(T,)``: the next of its state.

    Args:
        domain_ids: Domain of each step ``(T,)``.
        numbers: Class of each step ``(T,)``, from 0 to ``K - 1``.
        members: Positions by class, a row a domain ``(D, N)``.
        sizes: Images of each class in a row ``(K,)``.
    """
    states = domain_ids * len(sizes) + numbers
    by_state = np.argsort(states, kind="stable")
    counts = np.bincount(states)
    earlier = np.empty(len(states), dtype=np.int64)
    earlier[by_state] = np.arange(len(states)) - np.repeat(np.cumsum(counts) - counts, counts)
    firsts = np.cumsum(sizes) - sizes
    taken: Ints = members[domain_ids, firsts[numbers] + earlier]
    return taken


class _OpenStates:
    """The states that have images; draws the next of them as endless redrawing would."""

    def __init__(self, is_open: NDArray[np.bool_], domains: Chain, classes: Chain) -> None:
        self.is_open = is_open
        self.domains, self.classes = domains, classes
        self.of_domain = is_open @ classes.weights  # weight of the open classes of each domain
        self.of_class = domains.weights @ is_open

    def close(self, domain: int, label: int) -> None:
        """Take a state out."""
        self.is_open[domain, label] = False
        self.of_domain[domain] = self.is_open[domain] @ self.classes.weights
        self.of_class[label] = self.domains.weights @ self.is_open[:, label]

    def draw(self, domain: int, label: int, *uniform: float) -> tuple[int, int]:
        """Domain and class of the next step, given those of the last."""
        keep_d = self.domains.keep if domain >= 0 else 0.0
        keep_k = self.classes.keep if label >= 0 else 0.0
        moves = float(self.domains.weights @ self.of_domain)
        # Which of the two chains keeps its state, by the open weight that each case leads to.
        cases = np.array(
            [
                keep_d * keep_k * self.is_open[domain, label],
                keep_d * (1 - keep_k) * self.of_domain[domain],
                (1 - keep_d) * keep_k * self.of_class[label],
                (1 - keep_d) * (1 - keep_k) * moves,
            ]
        )
        # A chain that never leaves a state without images is made to.
        case = _pick(cases, uniform[0]) if cases.any() else 3
        if case == 0:
            return domain, label
        if case == 2:
            return _pick(self.domains.weights * self.is_open[:, label], uniform[1]), label
        if case == 3:
            domain = _pick(self.domains.weights * self.of_domain, uniform[1])
        return domain, _pick(self.classes.weights * self.is_open[domain], uniform[2])


def _pick(weights: Floats, uniform: float) -> int:
    cdf = np.cumsum(weights)
    place = int(np.searchsorted(cdf, uniform * cdf[-1], side="right"))
    return min(place, int(np.flatnonzero(weights)[-1]))


def _cdf(weights: Floats) -> list[float]:
    # Without the last entry a uniform draw above a rounded 1 still names the last state.
    bounds: list[float] = np.cumsum(weights)[:-1].tolist()
    return bounds


def _uniforms(generator: np.random.Generator) -> Iterator[float]:
    while True:
        yield from generator.random(_BLOCK).tolist()
