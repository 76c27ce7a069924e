"""CIFAR-10 and CIFAR-100: the clean images in three layouts, and the official -C arrays."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np

from streams.clean import CleanImages, GeneratedSource, in_memory
from streams.errors import StreamError
from streams.learning_tasks import Pair
from streams.npy_corruptions import missing, open_npy_folder
from streams.readers.cifar_pickle import read_batch
from streams.readers.parquet import read_images
from streams.single import CleanSource
from streams.types import ImageSource

PARQUET = "test-00000-of-00001.parquet"
TRAIN_PARQUET = "train-00000-of-00001.parquet"


@dataclass(frozen=True, kw_only=True, slots=True)
class Cifar:
    """Names, files and origins of one of the two data sets.

    Attributes:
        name: ``CIFAR-10`` or ``CIFAR-100``.
        num_classes: Number of classes.
        hub: Folder of the hub's parquet files, and the hub's data set.
        batch: torchvision's folder and file of the test split.
        label: Key of the labels in that file.
        train_batches: Files of the training split beside it.
        record: Zenodo record of the corrupted arrays.
    """

    name: str
    num_classes: int
    hub: tuple[str, str]
    batch: tuple[str, str]
    label: str
    train_batches: tuple[str, ...]
    record: int

    def wanted(self, corrupted: bool) -> dict[str, str]:
        """Files that would do, with origin and size."""
        folder, data_set = self.hub
        archive = self.batch[0].replace("-batches-py", "-python")
        official = {
            f"{self.name}-C/<corruption>.npy and labels.npy": (
                f"Zenodo record {self.record}, {self.name}-C.tar, 2.9 GB"
            )
        }
        clean = {
            f"{folder}/{PARQUET}": (
                f"{self.name} test split as parquet, hub data set {data_set}, 24 MB"
            ),
            "/".join(self.batch): f"www.cs.toronto.edu/~kriz/{archive}.tar.gz, 170 MB",
        }
        return official | clean if corrupted else clean

    def find_clean(self, base: Path) -> CleanImages | None:
        """The clean test images below ``base``; ``None`` where there are none.

        Raises:
            StreamError: If they are damaged.
        """
        return self._find(base, PARQUET, (self.batch[1],), "test")

    def find_train(self, base: Path) -> CleanImages | None:
        """The clean training images below ``base``; ``None`` where they are not all there.

        Raises:
            StreamError: If they are damaged.
        """
        return self._find(base, TRAIN_PARQUET, self.train_batches, "train")

    def _find(
        self, base: Path, parquet: str, batches: tuple[str, ...], split: str
    ) -> CleanImages | None:
        for folder in (base / self.hub[0], base, base / "plain_text"):
            if (folder / parquet).is_file():
                return _read(self, [folder / parquet], split)
        for folder in (base / self.batch[0], base, base / self.hub[0] / self.batch[0]):
            files = [folder / name for name in batches]
            if all(file.is_file() for file in files):
                return _read(self, files, split)
        return None


CIFAR10 = Cifar(
    name="CIFAR-10",
    num_classes=10,
    hub=("cifar10", "uoft-cs/cifar10"),
    batch=("cifar-10-batches-py", "test_batch"),
    label="labels",
    train_batches=tuple(f"data_batch_{number}" for number in range(1, 6)),
    record=2535967,
)
CIFAR100 = Cifar(
    name="CIFAR-100",
    num_classes=100,
    hub=("cifar100", "uoft-cs/cifar100"),
    batch=("cifar-100-python", "test"),
    label="fine_labels",
    train_batches=("train",),
    record=3555552,
)


def open_corrupted(data: Cifar, base: Path) -> ImageSource:
    """The official arrays where they are found, else corruptions of the clean images.

    Raises:
        StreamError: If neither is there (says which files, from where, how large), or one is
            damaged.
    """
    name = f"{data.name}-C"
    for folder in (base / name, base):
        if (folder / "labels.npy").is_file():
            return open_npy_folder(folder, name=name, num_classes=data.num_classes, kind="official")
    clean = data.find_clean(base)
    if clean is not None:
        return GeneratedSource(clean=clean)
    raise StreamError(
        f"no {name} in {base}: put there {missing(data.wanted(corrupted=True))}; --data-dir names "
        "another folder"
    )


def open_clean(data: Cifar, base: Path) -> CleanSource:
    """The clean test images as one domain.

    Raises:
        StreamError: If they are not there, or damaged.
    """
    clean = data.find_clean(base)
    if clean is None:
        raise StreamError(
            f"no {data.name} in {base}: put there {missing(data.wanted(corrupted=False))}; "
            "--data-dir names another folder"
        )
    return CleanSource(clean=clean)


def open_pair(data: Cifar, base: Path) -> Pair:
    """Training and test images, to learn from and to be tested on.

    Raises:
        StreamError: If one of the two splits is not there, or damaged.
    """
    sides = {"train": data.find_train(base), "test": data.find_clean(base)}
    for split, side in sides.items():
        if side is None:
            folder, data_set = data.hub
            batches = ", ".join(data.train_batches if split == "train" else data.batch[1:])
            raise StreamError(
                f"no {split} split of {data.name} in {base}: put there "
                f"{folder}/{split}-00000-of-00001.parquet (hub data set {data_set}; 'tta-bench "
                f"data fetch {folder} --file {split}-00000-of-00001.parquet') or "
                f"{data.batch[0]}/ with {batches}; --data-dir names another folder"
            )
    train, test = sides["train"], sides["test"]
    assert train is not None
    assert test is not None
    # Corruptions are keyed by image id: no training image shares its draws with a test image.
    train = replace(train, ids=np.arange(len(train.labels)) + len(test.labels))
    return Pair(
        train=train,
        train_at=np.arange(len(train.labels)),
        test=test,
        test_at=np.arange(len(test.labels)),
        image_shape=(3, 32, 32),
    )


def _read(data: Cifar, paths: list[Path], split: str) -> CleanImages:
    stamped = tuple((path.resolve(), path.stat().st_mtime_ns) for path in paths)
    return _read_once(data, stamped, split)


@lru_cache(maxsize=2)
def _read_once(data: Cifar, paths: tuple[tuple[Path, int], ...], split: str) -> CleanImages:
    read = [
        read_images(path, (32, 32)) if path.suffix == ".parquet" else read_batch(path, data.label)
        for path, _ in paths
    ]
    images, labels, digests = zip(*read, strict=True)
    one = len(paths) == 1
    return in_memory(
        images[0] if one else np.concatenate(images),
        labels[0] if one else np.concatenate(labels),
        name=f"{data.name} {split}",
        num_classes=data.num_classes,
        digest=digests[0] if one else hashlib.sha256("".join(digests).encode()).hexdigest(),
    )
