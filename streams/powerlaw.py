"""Power-law rehearsal: earlier tasks come back, more rarely the longer ago they were first met.

Natural Mitigation of Catastrophic Interference: Continual Learning in Power-Law Learning
Environments, 2024, arXiv:2401.10393. A schedule says how many samples of each earlier task a phase
holds beside the whole of its new one. Phases and tasks are counted from 0; task ``p`` is new in
phase ``p``.

Deviations: ``power`` is the curve behind the original's table, which has ten entries; under a
budget it is rescaled as the other schedules are. ``table`` is the original itself.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from streams.errors import StreamError
from streams.order import rng
from streams.types import Ints

Floats = NDArray[np.float64]
Mode = Literal["power", "table", "position-power", "exponential", "uniform", "joint", "none"]
MODES: tuple[str, ...] = get_args(Mode)
TABLE = (57927, 33969, 20867, 13329, 8802, 5981, 4167, 2968, 2155, 1592)
"""Samples of a task 0 to 9 phases after it was new, where a new task has 57,927."""

_NEEDS_BUDGET = ("position-power", "exponential", "uniform")
_TAKES_BUDGET = ("power", *_NEEDS_BUDGET)


@dataclass(frozen=True, kw_only=True, slots=True)
class Schedule:
    """How many samples of which task each phase holds.

    Attributes:
        num_samples: Samples ``N`` of a new task.
        mode: ``power``: ``N (1 + lag / offset) ** -exponent``, by the phases since the task was
            new; ``table``: the original's numbers of that; ``position-power``: the fourth power of
            the position among the old tasks (the original's restricted form); ``exponential``:
            ``exp(-lag / beta)``; ``uniform``; ``joint``: all of every task; ``none``: the new one.
        budget: Samples of old tasks in total, as a fraction of ``N`` (restricted); ``None`` is
            unrestricted. ``position-power``, ``exponential`` and ``uniform`` need one.
        exponent: Of ``power``.
        offset: Of ``power``, in phases.
        beta: Of ``exponential``, in phases.

    Raises:
        StreamError: For a value out of range, or a budget with a mode that takes none.
    """

    num_samples: int
    mode: Mode = "power"
    budget: float | None = None
    exponent: float = 5.6
    offset: float = 10.0
    beta: float = 1.0

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise StreamError(f"unknown mode {self.mode!r}; known: {', '.join(MODES)}")
        if self.num_samples < 1:
            raise StreamError(f"num_samples={self.num_samples} must be at least 1")
        for name in ("exponent", "offset", "beta"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise StreamError(f"{name}={value} must be above 0")
        if self.budget is None and self.mode in _NEEDS_BUDGET:
            raise StreamError(f"mode {self.mode!r} needs a budget, such as 1.0 or 0.1")
        if self.budget is not None and self.mode not in _TAKES_BUDGET:
            raise StreamError(f"mode {self.mode!r} takes no budget, got {self.budget}")
        if self.budget is not None and not (math.isfinite(self.budget) and self.budget >= 0):
            raise StreamError(f"budget={self.budget} must be at least 0")

    def counts(self, phase: int) -> tuple[int, ...]:
        """Samples of tasks 0 to ``phase`` in a phase; the last is the new task's.

        Raises:
            StreamError: For a phase below 0, or beyond the table.
        """
        if phase < 0:
            raise StreamError(f"phase={phase} must be at least 0")
        if self.mode == "table" and phase >= len(TABLE):
            raise StreamError(
                f"phase={phase} is beyond the table's {len(TABLE)} phases: take mode 'power'"
            )
        old = self._old(np.arange(phase)) if phase else np.zeros(0)
        # A task never gives more than it has; only a budget above 1 could ask for it.
        kept = np.minimum(np.floor(old), self.num_samples).astype(np.int64)
        return (*kept.tolist(), self.num_samples)

    def matrix(self, phases: int) -> Ints:
        """Samples of each task ``(rows)`` in each phase ``(columns)``, ``(phases, phases)``."""
        made = np.zeros((phases, phases), dtype=np.int64)
        for phase in range(phases):
            made[: phase + 1, phase] = self.counts(phase)
        return made

    def draw(self, phase: int, *, seed: int) -> tuple[Ints, Ints]:
        """Task ``(M,)`` and sample in ``[0, num_samples)`` ``(M,)`` of a phase, uniformly mixed.

        Each task's samples are drawn without replacement, anew in every phase: a task is revisited,
        not a stored buffer replayed.
        """
        counts = self.counts(phase)
        parts = [
            rng(seed, "power-law", task, phase).permutation(self.num_samples)[:count]
            for task, count in enumerate(counts)
        ]
        tasks = np.repeat(np.arange(len(counts)), counts)
        mixed = rng(seed, "power-law", "mixed", phase).permutation(len(tasks))
        return tasks[mixed], np.concatenate(parts)[mixed]

    def _old(self, tasks: Ints) -> Floats:
        """Samples of the old tasks ``(P,)``, before rounding down."""
        lags, size = len(tasks) - tasks, self.num_samples
        weights: Floats
        if self.mode == "table":
            # Whole numbers: the original's own size must give the original's own counts.
            return (size * np.array(TABLE)[lags] // TABLE[0]).astype(np.float64)
        if self.mode in ("joint", "none"):
            return np.full(len(tasks), float(size if self.mode == "joint" else 0))
        if self.mode == "power":
            weights = np.power(1 + lags / self.offset, -self.exponent)
        elif self.mode == "position-power":
            weights = 5 * np.power(0.10 + 0.01 * tasks, 4)
        elif self.mode == "exponential":
            weights = np.exp(-lags / self.beta).astype(np.float64) / self.beta
        else:
            weights = np.ones(len(tasks))
        if self.budget is None:
            # To the nearest: the curve meets the table so.
            return np.rint(size * weights)
        weights *= math.floor(size * self.budget) // weights.sum()
        return weights


def recurrence_probabilities(
    last_seen: ArrayLike, time: int, *, exponent: float = 1.0, offset: float = 1.0
) -> Floats:
    """Probability of each task ``(T,)`` at a time: ``(time - last_seen + offset) ** -exponent``.

    Args:
        last_seen: Time at which each task was last seen ``(T,)``, before ``time``.
        time: The present, in samples.
        exponent: 0 is uniform; large values hold on to the task seen last.
        offset: Above 0, in samples.

    Raises:
        StreamError: For an offset that is not above 0.
    """
    if not offset > 0:
        raise StreamError(f"offset={offset} must be above 0")
    logs = -exponent * np.log(time - np.asarray(last_seen, dtype=np.float64) + offset)
    weights: Floats = np.exp(logs - logs.max())
    weights /= weights.sum()
    return weights


def recurring_tasks(
    starts: Sequence[int],
    length: int,
    *,
    exponent: float = 1.0,
    offset: float = 1.0,
    seed: int,
) -> Ints:
    """Task of each sample ``(length,)`` of a stream in which tasks recur by a power law.

    Args:
        starts: First time of each task, rising from 0; there the task is certain.
        length: Samples of the stream.
        exponent: Of ``recurrence_probabilities``; neither has a value in the paper.
        offset: Of ``recurrence_probabilities``, in samples.
        seed: Seed of the draws.

    Raises:
        StreamError: For starts that do not rise from 0 or lie beyond the stream.
    """
    rising = all(a < b for a, b in pairwise(starts))
    if not starts or starts[0] != 0 or not rising or starts[-1] >= length:
        raise StreamError(f"starts={tuple(starts)} must rise from 0 and stay below {length}")
    uniform = rng(seed, "power-law", "recurrence").random(length)
    last_seen = np.zeros(len(starts), dtype=np.int64)
    tasks = np.empty(length, dtype=np.int64)
    known = 0
    for time in range(length):
        if known < len(starts) and time == starts[known]:
            task = known
            known += 1
        else:
            chances = recurrence_probabilities(
                last_seen[:known], time, exponent=exponent, offset=offset
            )
            task = min(int(np.searchsorted(np.cumsum(chances), uniform[time], "right")), known - 1)
        tasks[time] = task
        last_seen[task] = time
    return tasks
