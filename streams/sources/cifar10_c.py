"""CIFAR-10-C: the official arrays where they are found, else generated from CIFAR-10.

Hendrycks, Dietterich: Benchmarking neural network robustness to common corruptions and
perturbations, 2019, arXiv:1903.12261; Krizhevsky: Learning multiple layers of features, 2009.
"""

from __future__ import annotations

from pathlib import Path

from streams.cifar import CIFAR10, PARQUET, open_corrupted
from streams.types import ImageSource

# Training images of the source models: what methods with source data are fitted on.
training_images = CIFAR10.find_train

__all__ = ["PARQUET", "open_source"]


def open_source(data_dir: Path | None = None) -> ImageSource:
    """Open CIFAR-10-C below ``data_dir`` (``data`` by default).

    Raises:
        StreamError: If it is not there in any form (says which files, from where, how large), or
            is damaged.
    """
    return open_corrupted(CIFAR10, data_dir or Path("data"))
