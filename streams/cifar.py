"""CIFAR-10 and CIFAR-100: the clean test images in three layouts, and the official -C arrays."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from streams.clean import CleanImages, GeneratedSource, in_memory
from streams.errors import StreamError
from streams.npy_corruptions import missing, open_npy_folder
from streams.readers.cifar_pickle import read_batch
from streams.readers.parquet import read_images
from streams.single import CleanSource
from streams.types import ImageSource

PARQUET = "test-00000-of-00001.parquet"


@dataclass(frozen=True, kw_only=True, slots=True)
class Cifar:
    """Names, files and origins of one of the two data sets.

    Attributes:
        name: ``CIFAR-10`` or ``CIFAR-100``.
        num_classes: Number of classes.
        hub: Folder of the hub's parquet files, and the hub's data set.
        batch: torchvision's folder and file of the test split.
        label: Key of the labels in that file.
        record: Zenodo record of the corrupted arrays.
    """

    name: str
    num_classes: int
    hub: tuple[str, str]
    batch: tuple[str, str]
    label: str
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
        for folder in (base / self.hub[0], base, base / "plain_text"):
            if (folder / PARQUET).is_file():
                return _read(self, folder / PARQUET)
        for folder in (base / self.batch[0], base, base / self.hub[0] / self.batch[0]):
            if (folder / self.batch[1]).is_file():
                return _read(self, folder / self.batch[1])
        return None


CIFAR10 = Cifar(
    name="CIFAR-10",
    num_classes=10,
    hub=("cifar10", "uoft-cs/cifar10"),
    batch=("cifar-10-batches-py", "test_batch"),
    label="labels",
    record=2535967,
)
CIFAR100 = Cifar(
    name="CIFAR-100",
    num_classes=100,
    hub=("cifar100", "uoft-cs/cifar100"),
    batch=("cifar-100-python", "test"),
    label="fine_labels",
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


def _read(data: Cifar, path: Path) -> CleanImages:
    return _read_once(data, path.resolve(), path.stat().st_mtime_ns)


@lru_cache(maxsize=1)
def _read_once(data: Cifar, path: Path, mtime_ns: int) -> CleanImages:
    if path.suffix == ".parquet":
        images, labels, digest = read_images(path, (32, 32))
    else:
        images, labels, digest = read_batch(path, data.label)
    return in_memory(
        images, labels, name=f"{data.name} test", num_classes=data.num_classes, digest=digest
    )
