"""Collapse: predictions that are no numbers, or at chance where the source's are not; guards."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from benchmarks.report.data import Entry, Group, Run
from benchmarks.report.steps import Ints, Steps

# A stretch near chance is an event from so many steps and images on: fewer may be bad luck.
MIN_STEPS = 3
MIN_IMAGES = 50
# Share of the error of chance from which on an error counts as one of chance.
NEAR = 0.95


@dataclass(frozen=True, kw_only=True)
class Event:
    """One collapse, or one act of a guard.

    Attributes:
        entry: The entry of the run.
        run: The run.
        step: First step of it; ``None`` for what was found after the last.
        steps: Steps that it lasts.
        domain: Domain.
        reason: What was seen.
    """

    entry: Entry
    run: Run
    step: int | None
    steps: int
    domain: str
    reason: str


def collapses(group: Group, num_classes: int | None) -> list[Event]:
    """Events of all runs of a group.

    Args:
        group: The group.
        num_classes: Classes ``K`` to choose from, which make chance level; without it only
            predictions that are not finite are found.
    """
    found: list[Event] = []
    for entry in group.entries:
        for run in entry.runs:
            if run.steps is not None:
                found += _not_finite(entry, run, run.steps)
                found += [
                    Event(
                        entry=entry,
                        run=run,
                        step=at,
                        steps=1,
                        domain=domain,
                        reason=f"guard: {said}",
                    )
                    for at, domain, said in run.steps.guard
                ]
            # The source model is what the others are held against.
            if num_classes and not group.learning and entry.method != "source":
                if run.steps is not None:
                    found += _at_chance(
                        entry, run, run.steps, _source_errors(group, run), num_classes
                    )
                found += _clean_at_chance(entry, run, num_classes)
    return found


def _source_errors(group: Group, run: Run) -> dict[str, float]:
    """Error of the source model by domain; its mean error where the group has no source run."""
    mean = run.row.get("source_error_pct")
    names = run.steps.names if run.steps else ()
    if group.source is None:
        return {} if mean is None else dict.fromkeys(names, float(mean))
    runs = group.source.runs
    same = next((other for other in runs if other.row["seed"] == run.row["seed"]), runs[0])
    errors = {name: same.row.get(f"error_pct_{name}") for name in names}
    return {name: float(error) for name, error in errors.items() if error is not None}


def _not_finite(entry: Entry, run: Run, steps: Steps) -> Iterator[Event]:
    rows = steps.rows
    for domain, at in _visits(steps):
        for part in _stretches(at, rows.non_finite[at] > 0):
            images = int(rows.non_finite[part].sum())
            yield Event(
                entry=entry,
                run=run,
                step=int(rows.step[part[0]]),
                steps=len(part),
                domain=domain,
                reason=f"{images} prediction{'s' * (images > 1)} with NaN or infinity",
            )


def _at_chance(
    entry: Entry, run: Run, steps: Steps, source: dict[str, float], num_classes: int
) -> Iterator[Event]:
    """Stretches near chance; those of several domains that touch are one event."""
    rows, level = steps.rows, near_chance(num_classes)
    found = []
    for domain, at in _visits(steps):
        at = at[rows.n[at] > 0]
        if source.get(domain, level) < level:
            bad = _bad_windows(rows.n[at], rows.correct[at], level)
            found += [(domain, part) for part in _stretches(at, bad)]
    found.sort(key=lambda pair: int(rows.step[pair[1][0]]))
    while found:
        names, parts = [found[0][0]], [found.pop(0)[1]]
        last = int(rows.step[parts[0][-1]])
        while found and rows.step[found[0][1][0]] <= last + 1:
            names.append(found[0][0])
            parts.append(found.pop(0)[1])
            last = max(last, int(rows.step[parts[-1][-1]]))
        images = np.array([rows.n[part].sum() for part in parts])
        hits = sum(int(rows.correct[part].sum()) for part in parts)
        reference = float(np.average([source[name] for name in names], weights=images))
        first = int(rows.step[parts[0][0]])
        yield Event(
            entry=entry,
            run=run,
            step=first,
            steps=last - first + 1,
            domain=_domains(names),
            reason=f"error {100 * (1 - hits / images.sum()):.1f} % over {images.sum()} images, "
            f"chance {_chance(num_classes):.1f} %, source {reference:.1f} %",
        )


def _domains(names: list[str]) -> str:
    different = list(dict.fromkeys(names))
    if len(different) < 3:
        return ", ".join(different)
    return f"{different[0]} to {different[-1]} ({len(different)} domains)"


def _bad_windows(n: Ints, correct: Ints, level: float) -> NDArray[np.bool_]:
    """Rows of a visit inside any shortest window that is long enough and near chance."""
    bad = np.zeros(len(n), dtype=bool)
    images, hits = np.r_[0, np.cumsum(n)], np.r_[0, np.cumsum(correct)]
    for first in range(len(n)):
        end = max(first + MIN_STEPS, int(np.searchsorted(images, images[first] + MIN_IMAGES)))
        if end > len(n):
            break
        if 100 * (1 - (hits[end] - hits[first]) / (images[end] - images[first])) >= level:
            bad[first:end] = True
    return bad


def _clean_at_chance(entry: Entry, run: Run, num_classes: int) -> Iterator[Event]:
    after, before = run.row.get("clean_error_pct"), run.row.get("source_clean_error_pct")
    level = near_chance(num_classes)
    if after is not None and before is not None and after >= level > before:
        yield Event(
            entry=entry,
            run=run,
            step=None,
            steps=0,
            domain="clean",
            reason=f"clean error {after:.1f} % after the run, "
            f"chance {_chance(num_classes):.1f} %, source {before:.1f} %",
        )


def near_chance(num_classes: int) -> float:
    """Error in percent from which on a method counts as collapsed."""
    return NEAR * _chance(num_classes)


def _chance(num_classes: int) -> float:
    return 100 * (1 - 1 / num_classes)


def _visits(steps: Steps) -> Iterator[tuple[str, Ints]]:
    """Rows of each visit of each domain, in the order of the steps."""
    rows = steps.rows
    keys = rows.domain * (int(rows.visit.max()) + 2) + rows.visit + 1
    order = np.argsort(keys, kind="stable")
    cuts = np.flatnonzero(np.diff(keys[order])) + 1
    for at in np.split(order, cuts):
        yield steps.names[rows.domain[at[0]]], at


def _stretches(at: Ints, bad: NDArray[np.bool_]) -> Iterator[Ints]:
    """Longest runs of rows that are bad."""
    edges = np.flatnonzero(np.diff(np.r_[False, bad, False].astype(np.int8)))
    for first, end in zip(edges[::2], edges[1::2], strict=True):
        yield at[first:end]
