"""Our learning streams as Avalanche benchmarks, and Avalanche datasets as our samples."""

from __future__ import annotations

from collections.abc import Sequence
from contextvars import ContextVar
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from streams.errors import StreamError
from streams.learning_types import LearningStream, Samples, joined
from streams.types import CLEAN, Domain, Ints, Provenance

BASE_ATTRIBUTES = ("targets", "targets_task_labels", "origin_task", "index")


Reads = list[tuple["SampleImages", int, Tensor]]
READS: ContextVar[Reads | None] = ContextVar("reads of SampleImages", default=None)
"""Where set, each place that is read is noted in it: batches of Avalanche carry no index."""


class SampleImages(Dataset[tuple[Tensor, int]]):
    """Samples as a torch dataset of ``(image (C, H, W) float32 in [0, 1], label)``.

    Args:
        samples: What it holds; an image is read when its item is asked for.
    """

    def __init__(self, samples: Samples) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, place: int) -> tuple[Tensor, int]:
        x, y = self.samples.batch(np.array([place]))
        reads = READS.get()
        if reads is not None:
            reads.append((self, int(place), x[0]))
        return x[0], int(y[0])


def as_avalanche_benchmark(stream: LearningStream) -> Any:
    """The experiences of a stream as an Avalanche benchmark.

    ``train_stream`` has one experience for each of ours, ``test_stream`` one for each task. Items
    are ``(image, label, 0)``: every experience carries the task label 0, so that LwF, DER and
    feature distillation find one; our task of each sample is the data attribute ``origin_task``
    of a dataset, its id in the source the attribute ``index``. Segments and requests to forget
    have no counterpart and are left out; ``AvalancheLife`` lives them.

    Args:
        stream: Its images are read when an item is asked for, never before.

    Returns:
        An ``avalanche.benchmarks`` scenario.

    Raises:
        StreamError: If the stream has no experience.
    """
    from avalanche.benchmarks import dataset_benchmark

    if not stream.experiences:
        raise StreamError(f"{stream.name} has no experience to learn from")
    benchmark = dataset_benchmark(
        [as_dataset(experience.train) for experience in stream.experiences],
        [as_dataset(task.test) for task in stream.tasks],
    )
    classes = [np.unique(experience.train.labels).tolist() for experience in stream.experiences]
    order = [label for part in classes for label in part]
    if len(set(order)) == len(order):  # class-incremental: what iCaRL asks of a benchmark
        benchmark.n_classes_per_exp = [len(part) for part in classes]
        benchmark.classes_order = order
    return benchmark


def as_dataset(samples: Samples) -> Any:
    """Samples as an Avalanche dataset with targets and the task label 0."""
    from avalanche.benchmarks.utils import (
        DataAttribute,
        as_taskaware_classification_dataset,
        make_avalanche_dataset,
    )
    from avalanche.benchmarks.utils.flat_data import ConstantSequence

    attributes = [
        DataAttribute(samples.labels.tolist(), name="targets"),
        DataAttribute(
            ConstantSequence(0, len(samples)), name="targets_task_labels", use_in_getitem=True
        ),
        DataAttribute(samples.tasks.tolist(), name="origin_task"),
        DataAttribute(samples.keys.tolist(), name="index"),
    ]
    made = make_avalanche_dataset(SampleImages(samples), data_attributes=attributes)
    return as_taskaware_classification_dataset(made)


def origins(dataset: Any) -> tuple[list[Any], Ints, Ints]:
    """Where the items of an Avalanche dataset come from.

    Returns:
        The torch datasets at its leaves, the leaf ``(N,)`` of each item, and its place there.
    """
    from avalanche.benchmarks.utils.flat_data import FlatData

    leaves: list[Any] = []
    leaf = np.zeros(len(dataset), dtype=np.int64)
    place = np.zeros(len(dataset), dtype=np.int64)

    def walk(node: Any, items: Ints, at: Ints) -> None:
        if not isinstance(node, FlatData):
            known = [n for n, other in enumerate(leaves) if other is node]
            leaf[items] = known[0] if known else len(leaves)
            place[items] = at
            if not known:
                leaves.append(node)
            return
        if node._indices is not None:
            at = np.array([int(i) for i in node._indices], dtype=np.int64)[at]
        ends = np.cumsum([len(part) for part in node._datasets])
        which = np.searchsorted(ends, at, side="right")
        for part in np.unique(which).tolist():
            rows = which == part
            start = ends[part] - len(node._datasets[part])
            walk(node._datasets[part], items[rows], at[rows] - start)

    if len(dataset):
        everything = np.arange(len(dataset))
        walk(dataset._flat_data, everything, everything)
    return leaves, leaf, place


def as_samples(dataset: Any, foreign: DatasetSource, task: int) -> Samples:
    """The samples of an Avalanche dataset.

    Args:
        dataset: Made of one of our streams, or any other one with ``targets``.
        foreign: Takes in the images where the dataset is not of our streams.
        task: Task of each sample where the dataset has no ``origin_task``.
    """
    leaves, leaf, place = origins(dataset)
    ours = [part.samples for part in leaves if isinstance(part, SampleImages)]
    if not ours or len(ours) < len(leaves) or any(s.source is not ours[0].source for s in ours):
        return foreign.take_in(dataset, task)
    starts = np.cumsum([0, *(len(part) for part in ours)])
    return joined(ours).take(starts[leaf] + place)


class DatasetSource:
    """Images of Avalanche datasets that are not of our streams, as an ``ImageSource``.

    It grows with every dataset that is taken in; an image keeps its position. Images are what the
    datasets give, with their transforms: a normalised one is as far from [0, 1] as it was.
    """

    name = "avalanche datasets"
    digest = ""
    provenance = Provenance(kind="arrays")

    def __init__(self) -> None:
        self.labels: Ints = np.zeros(0, dtype=np.int64)
        self._leaves: list[Any] = []
        self._starts: list[int] = []
        self._datasets: list[Any] = []
        # Where each position is read: number of the dataset, item in it.
        self._where: Ints = np.zeros((0, 2), dtype=np.int64)

    @property
    def num_classes(self) -> int:
        """One more than the largest label so far."""
        return int(self.labels.max(initial=-1)) + 1

    def check(self, domain: Domain) -> None:
        """Raise ``StreamError`` for anything but the images as they are."""
        if domain != CLEAN:
            raise StreamError(f"{self.name} have images as they are alone, not {domain.name!r}")

    def take_in(self, dataset: Any, task: int) -> Samples:
        """The samples of a dataset.

        Raises:
            StreamError: If it has no ``targets``.
        """
        labels = _column(dataset, "targets", None)
        leaves, leaf, place = origins(dataset)
        starts = np.array([self._start(part) for part in leaves], dtype=np.int64)
        positions = starts[leaf] + place
        self.labels[positions] = labels
        self._where[positions] = np.stack(
            [np.full(len(positions), len(self._datasets)), np.arange(len(positions))], 1
        )
        self._datasets.append(dataset)
        tasks = _column(dataset, "origin_task", task)
        return Samples(source=self, positions=positions, labels=labels, tasks=tasks)

    def images(self, positions: Ints, domain: Domain = CLEAN) -> Tensor:
        """Images ``(B, C, H, W)``: uint8 where they are whole multiples of 1/255, else floating."""
        read = [self._datasets[n][int(item)][0] for n, item in self._where[positions]]
        scaled = torch.stack(read).to(torch.float32) * 255
        whole = scaled.round()
        pixels = (
            bool((scaled - whole).abs().max() < 1e-3) and 0 <= whole.min() <= whole.max() <= 255
        )
        return whole.to(torch.uint8) if pixels else scaled

    def _start(self, leaf: Any) -> int:
        """Position of a leaf's first image."""
        for part, start in zip(self._leaves, self._starts, strict=True):
            if part is leaf:
                return start
        start = len(self.labels)
        self._leaves.append(leaf)
        self._starts.append(start)
        self.labels = np.concatenate([self.labels, np.zeros(len(leaf), dtype=np.int64)])
        self._where = np.concatenate([self._where, np.zeros((len(leaf), 2), dtype=np.int64)])
        return start


def _column(dataset: Any, name: str, missing: int | None) -> Ints:
    """A data attribute ``(N,)`` as numbers; ``missing`` for each item where there is none."""
    values: Sequence[Any] | None = getattr(dataset, name, None)
    if values is None:
        if missing is None:
            raise StreamError(f"the dataset has no {name!r}: make it with its labels attached")
        return np.full(len(dataset), missing, dtype=np.int64)
    return np.array([int(value) for value in values], dtype=np.int64)
