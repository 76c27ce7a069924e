"""Learning and adapting in turns: after an experience, unlabelled corrupted test images.

The images are test images of the classes seen so far, corrupted by our engine; an adapter works on
them, then learning goes on.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from streams import settings
from streams.clean import GeneratedSource
from streams.corruptions.names import CORRUPTIONS
from streams.errors import StreamError
from streams.learning_settings import Arrangement, Request, one_each
from streams.learning_tasks import balanced_order
from streams.learning_types import Item, Segment
from streams.options import Option
from streams.types import Domain, Ints, Stream

OPTIONS: dict[str, tuple[Option, str]] = {
    "corruptions": ("", "names between commas, in order; empty: the 15 standard ones"),
    "severity": (5, "severity of the corruptions, 1 to 5"),
    "segment_examples": (200, "images in each corruption, class-balanced; 0: all"),
    "batch_size": (100, "images a step of an adapter"),
    "when": ("every", "every: after every experience; last: after the last alone"),
    "segments": ("together", "together: one segment of all corruptions; each: a segment each"),
    "order": ("continual", "setting that orders the images of a segment, as of other streams"),
}


def arrange(request: Request) -> Arrangement:
    """One experience a task, segments after them.

    Every corruption of a segment has the same images, drawn anew for every experience.

    Raises:
        StreamError: For an option out of range, or tests that are no clean images.
    """
    asked = _asked(request)
    items: list[Item] = []
    last = len(request.tasks) - 1
    every = request.options.choice("when", ("every", "last")) == "every"
    together = request.options.choice("segments", ("together", "each")) == "together"
    for number, experience in enumerate(one_each(request.tasks)):
        items.append(experience)
        if not every and number < last:
            continue
        positions = _images(request, number)
        for domains in [asked.domains] if together else [(domain,) for domain in asked.domains]:
            what = "segment" if together else domains[0].name
            items.append(
                Segment(
                    name=f"{what}_after_{experience.name}",
                    stream=_stream(request, asked, domains, positions, number),
                )
            )
    return Arrangement(tasks=request.tasks, items=tuple(items))


@dataclass(frozen=True, kw_only=True, slots=True)
class _Asked:
    """What all segments share."""

    source: GeneratedSource
    domains: tuple[Domain, ...]


def _asked(request: Request) -> _Asked:
    clean = request.set.clean
    if clean is None:
        raise StreamError(
            "mixed-life corrupts clean test images, and the tests of these tasks are none; take a "
            "split stream"
        )
    source = GeneratedSource(clean=clean, profile=request.set.profile)
    severity = request.options.whole("severity", 1, 5)
    names = request.options.words("corruptions") or CORRUPTIONS
    if len(set(names)) != len(names):
        raise StreamError(f"corruptions={request.options.of['corruptions']!r} names one twice")
    domains = tuple(Domain(name=name, corruption=name, severity=severity) for name in names)
    for domain in domains:
        source.check(domain)
    return _Asked(source=source, domains=domains)


def _images(request: Request, number: int) -> Ints:
    """Positions of test images of the tasks up to ``number``."""
    tests = [task.test for task in request.tasks[: number + 1]]
    # Tasks that differ in their domain have the same images.
    positions = np.unique(np.concatenate([test.positions for test in tests]))
    count = request.options.whole("segment_examples", 0) or len(positions)
    labels = tests[0].source.labels[positions]
    chosen = balanced_order(labels, request.seed, "mixed-life", "images", number)[:count]
    return positions[np.sort(chosen)]


def _stream(
    request: Request, asked: _Asked, domains: tuple[Domain, ...], positions: Ints, number: int
) -> Stream:
    setting = str(request.options.of["order"])
    if settings.domain_maker(setting) is not None:
        raise StreamError(f"order={setting!r} changes the severity; take another one")
    batch_size = request.options.whole("batch_size", 1)
    ordered = settings.Request(
        domains=domains,
        positions=positions,
        labels=asked.source.labels,
        batch_size=batch_size,
        # Another seed for each segment: the orders differ.
        seed=int(request.draw("mixed-life", "segment", number).integers(2**31)),
        shuffle=True,
    )
    return Stream(
        name="mixed-life",
        source=asked.source,
        plan=settings.make_plan(setting, ordered),
        setting=setting,
        batch_size=batch_size,
        seed=ordered.seed,
    )
