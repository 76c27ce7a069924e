"""Split Fashion-MNIST: five tasks of two classes each, one shared head (class-incremental)."""

from __future__ import annotations

from pathlib import Path

from streams.learning_fashion import open_pair
from streams.learning_tasks import TaskSet, split_by_class
from streams.options import Option

OPTIONS: dict[str, tuple[Option, str]] = {
    "class_order": ("natural", "order of the classes: natural, shuffled (by the seed) or 1993"),
}


def open_tasks(
    data_dir: Path | None, *, num_tasks: int | None, seed: int, class_order: str = "natural"
) -> TaskSet:
    """Five tasks by default; ``num_tasks`` divides the ten classes otherwise.

    Raises:
        StreamError: For a number or order that does not fit, or damaged or missing files.
    """
    pair = open_pair(data_dir)
    return split_by_class(pair, num_tasks=num_tasks or 5, class_order=class_order, seed=seed)
