"""What a learner meets: labelled experiences, unlabelled segments, requests to forget."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from streams.errors import StreamError
from streams.types import CLEAN, Domain, ImageSource, Ints, Stream, to_unit

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Samples:
    """Labelled images by reference: nothing is read before ``images`` or ``batch``.

    All samples of one stream's training side share ``source`` and ``domains``, so that ``keys``
    name an image in all of them; so do all of its test side.

    Attributes:
        source: Where the pixels come from.
        positions: Positions ``(N,)`` in the source.
        labels: Labels ``(N,)`` that the learner is given; they may differ from the source's.
        tasks: Task ``(N,)`` to which each sample belongs.
        domains: Domains of the source that occur in the stream.
        domain_ids: Positions ``(N,)`` in ``domains``.
    """

    source: ImageSource
    positions: Ints
    labels: Ints
    tasks: Ints
    domains: tuple[Domain, ...] = (CLEAN,)
    domain_ids: Ints | None = None

    def __post_init__(self) -> None:
        if self.domain_ids is None:
            object.__setattr__(self, "domain_ids", np.zeros(len(self.positions), dtype=np.int64))
        sizes = {len(self.positions), len(self.labels), len(self.tasks), len(self._ids)}
        if len(sizes) != 1:
            raise StreamError(f"positions, labels, tasks and domains differ in length: {sizes}")

    def __len__(self) -> int:
        return len(self.positions)

    @property
    def _ids(self) -> Ints:
        assert self.domain_ids is not None
        return self.domain_ids

    @property
    def keys(self) -> Ints:
        """Id ``(N,)`` of each image (with its domain) among all of the source."""
        keys: Ints = self._ids * len(self.source.labels) + self.positions
        return keys

    def take(self, at: Ints) -> Samples:
        """The samples at the given places ``(M,)``, in that order; places may repeat."""
        return Samples(
            source=self.source,
            positions=self.positions[at],
            labels=self.labels[at],
            tasks=self.tasks[at],
            domains=self.domains,
            domain_ids=self._ids[at],
        )

    def relabelled(self, labels: Ints) -> Samples:
        """The same images with other labels ``(N,)``."""
        return Samples(
            source=self.source,
            positions=self.positions,
            labels=labels,
            tasks=self.tasks,
            domains=self.domains,
            domain_ids=self._ids,
        )

    def of_task(self, task: int) -> Samples:
        """The same samples, all of the given task."""
        return replace(self, tasks=np.full(len(self), task, dtype=np.int64))

    def images(self, at: Ints) -> Tensor:
        """Images ``(M, C, H, W)`` uint8 at the given places."""
        import torch

        ids, positions = self._ids[at], self.positions[at]
        parts = {int(d): np.flatnonzero(ids == d) for d in np.unique(ids)}
        made = [self.source.images(positions[p], self.domains[d]) for d, p in parts.items()]
        if len(made) == 1:
            return made[0]
        order = np.argsort(np.concatenate(list(parts.values())))
        return torch.cat(made)[torch.from_numpy(order)]

    def batch(self, at: Ints, dtype: torch.dtype | None = None) -> tuple[Tensor, Tensor]:
        """Images ``(M, C, H, W)`` in [0, 1] and labels ``(M,)`` int64 at the given places."""
        import torch

        x = to_unit(self.images(at), dtype or torch.float32)
        return x, torch.from_numpy(self.labels[at])


def joined(parts: Sequence[Samples]) -> Samples:
    """Samples one after the other.

    Raises:
        StreamError: If they are not of one source, or there are none.
    """
    if not parts:
        raise StreamError("there are no samples to join")
    first = parts[0]
    if any(p.source is not first.source or p.domains != first.domains for p in parts):
        raise StreamError("samples of several sources cannot be joined")
    return Samples(
        source=first.source,
        positions=np.concatenate([p.positions for p in parts]),
        labels=np.concatenate([p.labels for p in parts]),
        tasks=np.concatenate([p.tasks for p in parts]),
        domains=first.domains,
        domain_ids=np.concatenate([p._ids for p in parts]),
    )


@dataclass(frozen=True, kw_only=True)
class Task:
    """One learning problem with its own test.

    Attributes:
        name: Column name in results.
        train: Samples to learn from.
        test: Samples to be tested on.
        classes: Labels that occur in it.
    """

    name: str
    train: Samples
    test: Samples
    classes: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Experience:
    """Labelled samples that come together.

    Attributes:
        name: Name in results.
        train: Samples to learn from; ``train.tasks`` says which task each is of.
        task: The task that is in focus (newest of the samples' tasks).
        epochs: Passes over it; ``None`` leaves it to the learner.
    """

    name: str
    train: Samples
    task: int
    epochs: int | None = None

    @property
    def tasks(self) -> tuple[int, ...]:
        """Tasks of the samples, ascending."""
        return tuple(np.unique(self.train.tasks).tolist())


@dataclass(frozen=True, kw_only=True)
class Segment:
    """Unlabelled test images between experiences: what an adapter works on.

    Attributes:
        name: Name in results.
        stream: The images; labels are for metrics alone.
    """

    name: str
    stream: Stream


@dataclass(frozen=True, kw_only=True)
class ForgetRequest:
    """A request that what was learnt from given samples be forgotten.

    Attributes:
        name: Name in results.
        kind: ``samples`` (a part of what was seen) or ``class``.
        samples: What to forget, all of it seen before.
        label: The class, for ``class``.
    """

    name: str
    kind: Literal["samples", "class"]
    samples: Samples
    label: int | None = None


Item = Experience | Segment | ForgetRequest


@dataclass(frozen=True, kw_only=True)
class LearningStream:
    """Items in order, and a test for each task.

    Attributes:
        name: Name of the stream (``split-fashion-mnist``).
        setting: Name of the setting that ordered the items.
        tasks: The tasks; ``tasks[i].test`` is the test of task ``i``.
        items: What the learner meets, in order.
        num_classes: Width ``K`` of the shared head.
        seed: Seed of classes, orders and draws.
        options: Options of source and setting that were changed.
        image_shape: ``(C, H, W)``.
    """

    name: str
    setting: str
    tasks: tuple[Task, ...]
    items: tuple[Item, ...]
    num_classes: int
    seed: int
    image_shape: tuple[int, int, int]
    options: dict[str, float | int | str] = field(default_factory=dict)

    def __len__(self) -> int:
        """Number of items."""
        return len(self.items)

    @property
    def experiences(self) -> tuple[Experience, ...]:
        """The labelled items, in order."""
        return tuple(item for item in self.items if isinstance(item, Experience))

    @property
    def provenance(self) -> str:
        """Where the training and the test images come from."""
        train, test = self.tasks[0].train.source, self.tasks[0].test.source
        return f"train: {train.provenance}; test: {test.provenance}"

    @cached_property
    def hash(self) -> str:
        """Hex digest of pixels' identity, labels and order of all items and tests."""
        made = hashlib.sha256()
        made.update(
            repr((self.name, self.setting, self.seed, sorted(self.options.items()))).encode()
        )
        for task in self.tasks:
            for side in (task.train, task.test):
                made.update(side.source.digest.encode())
                _add(made, side)
        for item in self.items:
            made.update(f"{type(item).__name__}/{item.name}".encode())
            if isinstance(item, Segment):
                made.update(item.stream.hash.encode())
            elif isinstance(item, Experience):
                made.update(repr((item.task, item.epochs)).encode())
                _add(made, item.train)
            else:
                made.update(repr((item.kind, item.label)).encode())
                _add(made, item.samples)
        return made.hexdigest()

    def describe(self) -> dict[str, Any]:
        """The plan in plain values."""
        return {
            "stream": self.name,
            "setting": self.setting,
            "options": dict(self.options),
            "classes": self.num_classes,
            "seed": self.seed,
            "provenance": self.provenance,
            "hash": self.hash,
            "tasks": [
                {
                    "name": t.name,
                    "classes": list(t.classes),
                    "train": len(t.train),
                    "test": len(t.test),
                }
                for t in self.tasks
            ],
            "items": [_said(item) for item in self.items],
        }


def _add(made: Any, samples: Samples) -> None:
    for values in (samples.positions, samples.labels, samples.tasks, samples._ids):
        made.update(np.ascontiguousarray(values, dtype=np.int64).data)


def _said(item: Item) -> dict[str, Any]:
    if isinstance(item, Segment):
        return {"kind": "segment", "name": item.name, "samples": len(item.stream.plan.positions)}
    if isinstance(item, ForgetRequest):
        return {"kind": "forget", "name": item.name, "samples": len(item.samples)}
    ids, counts = np.unique(item.train.tasks, return_counts=True)
    return {
        "kind": "experience",
        "name": item.name,
        "samples": len(item.train),
        "samples_by_task": dict(zip(ids.tolist(), counts.tolist(), strict=True)),
    }
