"""Runs over steps, short enough for a page: pooled over neighbouring steps, mean over seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.report.data import Entry, Group, Row
from benchmarks.report.steps import MIXED, Floats, Ints, Steps

# Points of a line at most; a stretch of one domain keeps one at least.
MAX_POINTS = 150
# Images of a point at least, where the stretch has as many: fewer make nothing but noise.
MIN_IMAGES = 10
Points = list[float | None]


@dataclass(frozen=True, kw_only=True)
class Band:
    """A stretch of one domain: steps ``first`` to ``end``, ``end`` excluded."""

    name: str
    first: int
    end: int


@dataclass(frozen=True, kw_only=True)
class Axis:
    """The steps of a group.

    Attributes:
        bands: Stretches of one domain; empty where batches hold several, or the seeds differ.
        starts: First step of each point ``(P,)``.
        steps: Steps of the axis.
    """

    bands: tuple[Band, ...]
    starts: Ints
    steps: int

    @property
    def centres(self) -> list[float]:
        """Where each point lies."""
        ends = np.r_[self.starts[1:], self.steps]
        centres: list[float] = np.round((self.starts + ends - 1) / 2, 1).tolist()
        return centres

    @property
    def names(self) -> list[str]:
        """Domain of each point; empty texts without bands."""
        at = np.searchsorted([band.first for band in self.bands], self.starts, side="right") - 1
        return [self.bands[place].name if self.bands else "" for place in at]

    def pooled(self, values: Floats | Ints) -> Floats:
        """Sums ``(P,)`` of values of the steps."""
        summed: Floats = np.add.reduceat(values[: self.steps].astype(np.float64), self.starts)
        return summed


@dataclass(frozen=True, kw_only=True)
class Line:
    """Mean over the seeds, and one sample standard deviation below and above it."""

    mean: Points
    low: Points
    high: Points


def axis_of(group: Group) -> Axis | None:
    """The axis that all runs of a group share; ``None`` where none has steps."""
    steps = [run.steps for run in group.runs if run.steps is not None]
    if not steps:
        return None
    length = min(map(len, steps))
    bands = _bands(steps, length)
    edges = [band.first for band in bands] or [0]
    images = max(1.0, float(np.mean(steps[0].images)))
    width = int(max(1, np.ceil(length / MAX_POINTS), np.ceil(MIN_IMAGES / images)))
    if len(edges) > MAX_POINTS:
        starts = np.arange(0, length, width)
    else:
        ends = [*edges[1:], length]
        parts = [np.arange(first, end, width) for first, end in zip(edges, ends, strict=True)]
        starts = np.concatenate(parts)
    return Axis(bands=bands, starts=starts.astype(np.int64), steps=length)


def error_line(entry: Entry, axis: Axis) -> Line | None:
    """Error in percent."""
    steps = [run.steps for run in entry.runs if run.steps is not None]
    return _line([_error(axis.pooled(s.correct), axis.pooled(s.n)) for s in steps])


def selected_line(entry: Entry, axis: Axis) -> Line | None:
    """Share of the images learnt from, in percent; ``None`` where the method never leaves one."""
    made = []
    for run in entry.runs:
        if run.steps is not None and (run.steps.selected < 1).any():
            images = np.where(np.isnan(run.steps.selected), 0, run.steps.images)
            taken = np.nan_to_num(run.steps.selected) * run.steps.images
            made.append(100 - _error(axis.pooled(taken), axis.pooled(images)))
    return _line(made)


def moments(values: Sequence[Floats]) -> tuple[Floats, Floats]:
    """Mean and sample standard deviation over the first axis, NaN left out; 0 for one value."""
    stacked = np.stack(list(values))
    count = (~np.isnan(stacked)).sum(0)
    mean = np.nansum(stacked, 0) / np.where(count, count, np.nan)
    squares = np.nansum((stacked - mean) ** 2, 0)
    return mean, np.sqrt(squares / np.maximum(count - 1, 1))


def row_values(row: Row, keys: Sequence[str]) -> Floats:
    """Numbers of a row; NaN where it has none."""
    return np.array([np.nan if row.get(key) is None else row[key] for key in keys], np.float64)


def points(values: Floats, digits: int = 2) -> Points:
    """Rounded numbers; ``None`` for NaN."""
    return [None if value != value else value for value in np.round(values, digits).tolist()]


def _line(values: Sequence[Floats]) -> Line | None:
    if not values:
        return None
    mean, deviation = moments(values)
    low, high = np.clip(mean - deviation, 0, 100), np.clip(mean + deviation, 0, 100)
    return Line(mean=points(mean), low=points(low), high=points(high))


def _error(correct: Floats, n: Floats) -> Floats:
    made: Floats = 100 * (1 - correct / np.where(n > 0, n, np.nan))
    return made


def _bands(steps: Sequence[Steps], length: int) -> tuple[Band, ...]:
    """Stretches of one domain, where all runs have the same."""
    first = _names(steps[0], length)
    if any(not np.array_equal(_names(other, length), first) for other in steps[1:]):
        return ()
    if (steps[0].domain[:length] == MIXED).any():
        return ()
    starts = np.flatnonzero(np.r_[True, first[1:] != first[:-1]])
    ends = np.r_[starts[1:], length]
    return tuple(
        Band(name=str(first[start]), first=int(start), end=int(end))
        for start, end in zip(starts, ends, strict=True)
    )


def _names(steps: Steps, length: int) -> np.ndarray[tuple[int], np.dtype[np.str_]]:
    names = np.array([*steps.names, ""])  # the last one stands for several
    return names[steps.domain[:length]]
