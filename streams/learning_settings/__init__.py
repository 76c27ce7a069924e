"""Ways to order tasks into items, one file each: ``arrange(request) -> Arrangement``.

A file here is a setting of learning streams; its name is the file's, with ``-`` for ``_``. It may
declare ``OPTIONS``, a ``(default, what it is)`` by name.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from streams.learning_tasks import TaskSet
from streams.learning_types import Experience, Item, Samples, Task
from streams.options import Values
from streams.order import rng
from streams.types import Ints


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """What a setting orders.

    Attributes:
        set: The tasks, and what is known of their images.
        seed: Seed of every draw.
        options: Options of the setting, defaults filled in.
    """

    set: TaskSet
    seed: int
    options: Values

    @property
    def tasks(self) -> tuple[Task, ...]:
        """The tasks."""
        return self.set.tasks

    def draw(self, *purpose: int | str) -> np.random.Generator:
        """Generator keyed by the seed and a purpose."""
        return rng(self.seed, "learning", *purpose)

    def mixed(self, task: int, *purpose: int | str) -> Samples:
        """Training samples of a task in a random order."""
        samples = self.tasks[task].train
        return samples.take(self.draw(*purpose, task).permutation(len(samples)))


@dataclass(frozen=True, kw_only=True, slots=True)
class Arrangement:
    """What a setting makes of tasks.

    Attributes:
        tasks: The tasks, whose tests the learner is tested on.
        items: What it meets, in order.
    """

    tasks: tuple[Task, ...]
    items: tuple[Item, ...]


def one_each(tasks: tuple[Task, ...]) -> tuple[Experience, ...]:
    """One experience a task, in order."""
    return tuple(
        Experience(name=task.name, train=task.train, task=number)
        for number, task in enumerate(tasks)
    )


def in_chunks(
    stream: Samples, offsets: Ints, name: str, epochs: int | None = None
) -> tuple[Experience, ...]:
    """Experiences of the samples between offsets ``(M + 1,)``; the newest task is in focus.

    Args:
        stream: Samples in order.
        offsets: First sample of each experience, and the end.
        name: Name of each, with a place for its number.
        epochs: As in ``Experience``.
    """
    return tuple(
        Experience(
            name=name.format(number),
            train=(part := stream.take(np.arange(first, last))),
            task=int(part.tasks.max()),
            epochs=epochs,
        )
        for number, (first, last) in enumerate(pairwise(offsets.tolist()))
    )
