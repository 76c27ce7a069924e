"""Fashion-MNIST test images (embedded, 10,000), corrupted on the fly with the CIFAR-C parameters.

Xiao, Rasul, Vollgraf: Fashion-MNIST, 2017, arXiv:1708.07747 (MIT licence, beside the data).
"""

from __future__ import annotations

from functools import lru_cache
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import numpy as np

from streams.clean import CleanImages, GeneratedSource, in_memory
from streams.readers.idx import read_images, read_labels

NUM_CLASSES = 10
_PAD = 2  # 28 -> 32, zeros on each side


def open_source(data_dir: Path | None = None) -> GeneratedSource:
    """The embedded images; ``data_dir`` is not needed and not read."""
    return GeneratedSource(clean=_clean())


def training_images(folder: Path) -> CleanImages | None:
    """The 60,000 training images, where ``folder`` holds the idx files; else ``None``."""
    from streams.learning_fashion import find_train

    return find_train(folder)


@lru_cache(maxsize=1)
def _clean() -> CleanImages:
    folder = files("streams") / "sources" / "data" / "fashion_mnist"
    with as_file(folder.joinpath("t10k-images-idx3-ubyte.gz")) as path:
        images = to_rgb32(read_images(path))
    with as_file(folder.joinpath("t10k-labels-idx1-ubyte.gz")) as path:
        labels = read_labels(path)
    return in_memory(images, labels, name="Fashion-MNIST test", num_classes=NUM_CLASSES)


def to_rgb32(images: Any) -> Any:
    """Grey images ``(N, 28, 28)`` uint8 to ``(N, 32, 32, 3)``, padded with zeros."""
    padded = np.pad(images, ((0, 0), (_PAD, _PAD), (_PAD, _PAD)))
    return np.repeat(padded[..., None], 3, axis=3)
