"""Split CIFAR-100: ten tasks of ten classes each, one shared head (class-incremental).

Krizhevsky: Learning multiple layers of features from tiny images, 2009.
"""

from __future__ import annotations

from pathlib import Path

from streams.cifar import CIFAR100, open_pair
from streams.learning_tasks import TaskSet, split_by_class
from streams.options import Option

OPTIONS: dict[str, tuple[Option, str]] = {
    "class_order": ("natural", "order of the classes: natural, shuffled (by the seed) or 1993"),
}


def open_tasks(
    data_dir: Path | None, *, num_tasks: int | None, seed: int, class_order: str = "natural"
) -> TaskSet:
    """Ten tasks by default; ``num_tasks`` divides the hundred classes otherwise.

    Raises:
        StreamError: For a number or order that does not fit, or damaged or missing files.
    """
    pair = open_pair(CIFAR100, data_dir or Path("data"))
    return split_by_class(pair, num_tasks=num_tasks or 10, class_order=class_order, seed=seed)
