"""CIFAR-10: the 10,000 clean test images, one domain.

Krizhevsky: Learning multiple layers of features from tiny images, 2009.
"""

from __future__ import annotations

from pathlib import Path

from streams.cifar import CIFAR10, open_clean
from streams.single import CleanSource

# Training images of the source models: what methods with source data are fitted on.
training_images = CIFAR10.find_train


def open_source(data_dir: Path | None = None) -> CleanSource:
    """Open CIFAR-10 below ``data_dir`` (``data`` by default).

    Raises:
        StreamError: If it is not there, or damaged.
    """
    return open_clean(CIFAR10, data_dir or Path("data"))
