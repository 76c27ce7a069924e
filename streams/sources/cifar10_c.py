"""CIFAR-10-C: the official arrays where they are found, else generated from CIFAR-10 parquet.

Hendrycks, Dietterich: Benchmarking neural network robustness to common corruptions and
perturbations, 2019, arXiv:1903.12261; Krizhevsky: Learning multiple layers of features, 2009.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from streams.clean import CleanImages, GeneratedSource, in_memory
from streams.errors import StreamError
from streams.npy_corruptions import missing, open_npy_folder
from streams.readers.parquet import read_images
from streams.types import ImageSource

NUM_CLASSES = 10
PARQUET = "test-00000-of-00001.parquet"
_WANTED = {
    "CIFAR-10-C/<corruption>.npy and labels.npy": "Zenodo record 2535967, CIFAR-10-C.tar, 2.9 GB",
    f"cifar10/{PARQUET}": "CIFAR-10 test split as parquet, hub data set uoft-cs/cifar10, 24 MB",
}


def open_source(data_dir: Path | None = None) -> ImageSource:
    """Open CIFAR-10-C below ``data_dir`` (``data`` by default).

    Raises:
        StreamError: If neither form is there (says which files, from where, how large), or one is
            damaged.
    """
    root = data_dir or Path("data")
    for folder in (root / "CIFAR-10-C", root):
        if (folder / "labels.npy").is_file():
            return open_npy_folder(
                folder, name="CIFAR-10-C", num_classes=NUM_CLASSES, kind="official"
            )
    for folder in (root / "cifar10", root, root / "plain_text"):
        if (folder / PARQUET).is_file():
            return GeneratedSource(clean=_clean(folder / PARQUET))
    raise StreamError(
        f"no CIFAR-10-C in {root}: put there {missing(_WANTED)}; --data-dir names another folder"
    )


@lru_cache(maxsize=1)
def _clean(path: Path) -> CleanImages:
    images, labels, digest = read_images(path, (32, 32))
    return in_memory(images, labels, name="CIFAR-10 test", num_classes=NUM_CLASSES, digest=digest)
