"""Permuted Fashion-MNIST: ten tasks, each all ten classes with the pixels in another fixed order.

The permuted task of Goodfellow et al.: An empirical investigation of catastrophic forgetting in
gradient-based neural networks, 2013, arXiv:1312.6211. The inner 28x28 pixels are permuted.
"""

from __future__ import annotations

from pathlib import Path

from streams.errors import StreamError
from streams.learning_fashion import open_pair
from streams.learning_tasks import TaskSet, split_by_domain
from streams.options import Option
from streams.sources.permuted_mnist import PermutedImages
from streams.types import CLEAN, Domain

OPTIONS: dict[str, tuple[Option, str]] = {
    "identity_first": (0, "1 leaves the pixels of the first task where they are"),
}


def open_tasks(
    data_dir: Path | None, *, num_tasks: int | None, seed: int, identity_first: int = 0
) -> TaskSet:
    """Ten tasks by default, 1,000 at most; the permutations are drawn from ``seed``.

    Raises:
        StreamError: For a number out of range, or damaged or missing files.
    """
    if identity_first not in (0, 1):
        raise StreamError(f"identity_first={identity_first} must be 0 or 1")
    pair = open_pair(data_dir)
    sides = [
        PermutedImages(clean=clean, seed=seed, name=f"permuted {clean.name}")
        for clean in (pair.train, pair.test)
    ]
    count = 10 if num_tasks is None else num_tasks
    names = [f"permutation_{n}" for n in range(1, count + 1 - identity_first)]
    domains = [Domain(name=name, corruption=name, severity=0) for name in names]
    return TaskSet(
        tasks=split_by_domain(pair, sides, [CLEAN] * identity_first + domains),
        num_classes=pair.train.num_classes,
        image_shape=pair.image_shape,
    )
