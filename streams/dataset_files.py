"""The published files that the streams read: addresses, sizes, checksums, places. Data, no code.

An empty ``size`` or ``md5`` means that no value is published, or none that we are sure of; then the
length the server announces and the checksum of the first fetch take its place. Nothing is guessed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True, slots=True)
class RemoteFile:
    """One published file.

    Attributes:
        name: File name.
        urls: Direct addresses, tried in turn.
        size: Bytes, where they are published.
        md5: Hex MD5, where one is published.
        about: Rough size for people.
        unpack: Whether it is an archive that is unpacked into the data set's folder.
    """

    name: str
    urls: tuple[str, ...]
    size: int | None = None
    md5: str | None = None
    about: str = ""
    unpack: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Dataset:
    """Files that belong together.

    Attributes:
        name: Name on the command line.
        title: One line for people.
        folder: Folder below the data folder that files are put or unpacked into.
        files: The files.
        optional: Names of files that are fetched only when asked for by name.
        page: Page to read, and to download from by hand.
        streams: Streams that read it.
    """

    name: str
    title: str
    folder: str
    files: tuple[RemoteFile, ...]
    page: str
    optional: tuple[str, ...] = ()
    streams: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """One place below the data folder where a stream looks, and what it takes it for."""

    pattern: str
    gives: Literal["official", "generated", "arrays"]


def _zenodo(record: int, name: str) -> tuple[str, ...]:
    # The file itself, twice: the description of the record, whose keys have changed, is not read.
    return (
        f"https://zenodo.org/records/{record}/files/{name}?download=1",
        f"https://zenodo.org/api/records/{record}/files/{name}/content",
    )


def _hub(repository: str, path: str) -> tuple[str, ...]:
    return (f"https://huggingface.co/datasets/{repository}/resolve/main/{path}",)


def _fashion_mnist(name: str, size: int, md5: str) -> RemoteFile:
    urls = (
        f"https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion/{name}",
        f"https://storage.googleapis.com/tensorflow/tf-keras-datasets/{name}",
    )
    return RemoteFile(name=name, urls=urls, size=size, md5=md5)


def _imagenet_c(name: str, md5: str, about: str) -> RemoteFile:
    return RemoteFile(name=name, urls=_zenodo(2235448, name), md5=md5, about=about, unpack=True)


_SPLITS = ("train-00000-of-00001.parquet", "test-00000-of-00001.parquet")

DATASETS: tuple[Dataset, ...] = (
    Dataset(
        name="cifar10-c",
        title="CIFAR-10-C, official arrays (19 corruptions, 5 severities)",
        folder="CIFAR-10-C",
        page="https://zenodo.org/records/2535967",
        streams=("cifar10-c",),
        files=(
            RemoteFile(
                name="CIFAR-10-C.tar",
                urls=_zenodo(2535967, "CIFAR-10-C.tar"),
                size=2_918_471_680,
                md5="56bf5dcef84df0e2308c6dcbcbbd8499",
                unpack=True,
            ),
        ),
    ),
    Dataset(
        name="cifar100-c",
        title="CIFAR-100-C, official arrays (19 corruptions, 5 severities)",
        folder="CIFAR-100-C",
        page="https://zenodo.org/records/3555552",
        streams=("cifar100-c",),
        files=(
            RemoteFile(
                name="CIFAR-100-C.tar",
                urls=_zenodo(3555552, "CIFAR-100-C.tar"),
                size=2_918_473_216,
                md5="11f0ed0f1191edbf9fa23466ae6021d3",
                unpack=True,
            ),
        ),
    ),
    Dataset(
        name="imagenet-c",
        title="ImageNet-C, official JPEG folders (15 corruptions; extra.tar: 4 more)",
        folder="ImageNet-C",
        page="https://zenodo.org/records/2235448",
        streams=("imagenet-c",),
        optional=("extra.tar",),
        files=(
            _imagenet_c("noise.tar", "e80562d7f6c3f8834afb1ecf27252745", "21 GB"),
            _imagenet_c("blur.tar", "2d8e81fdd8e07fef67b9334fa635e45c", "7 GB"),
            _imagenet_c("weather.tar", "33ffea4db4d93fe4a428c40a6ce0c25d", "12 GB"),
            _imagenet_c("digital.tar", "89157860d7b10d5797849337ca2e5c03", "8 GB"),
            _imagenet_c("extra.tar", "d492dfba5fc162d8ec2c3cd8ee672984", "15 GB"),
        ),
    ),
    Dataset(
        name="cifar10",
        title="CIFAR-10 as parquet (clean; cifar10-c is generated from the test split)",
        folder="cifar10",
        page="https://huggingface.co/datasets/uoft-cs/cifar10",
        streams=("cifar10-c", "cifar10"),
        optional=(_SPLITS[0],),
        files=tuple(
            RemoteFile(name=name, urls=_hub("uoft-cs/cifar10", f"plain_text/{name}"), about=about)
            for name, about in zip(_SPLITS, ("120 MB", "24 MB"), strict=True)
        ),
    ),
    Dataset(
        name="cifar100",
        title="CIFAR-100 as parquet (clean)",
        folder="cifar100",
        page="https://huggingface.co/datasets/uoft-cs/cifar100",
        streams=("cifar100-c", "cifar100"),
        optional=(_SPLITS[0],),
        files=tuple(
            RemoteFile(name=name, urls=_hub("uoft-cs/cifar100", f"cifar100/{name}"), about=about)
            for name, about in zip(_SPLITS, ("120 MB", "24 MB"), strict=True)
        ),
    ),
    Dataset(
        name="cifar10-python",
        title="CIFAR-10 as pickled batches (clean, train and test)",
        folder="cifar-10-batches-py",
        page="https://www.cs.toronto.edu/~kriz/cifar.html",
        streams=("cifar10-c", "cifar10"),
        files=(
            RemoteFile(
                name="cifar-10-python.tar.gz",
                urls=("https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",),
                size=170_498_071,
                md5="c58f30108f718f92721af3b95e74349a",
                unpack=True,
            ),
        ),
    ),
    Dataset(
        name="cifar100-python",
        title="CIFAR-100 as pickled batches (clean, train and test)",
        folder="cifar-100-python",
        page="https://www.cs.toronto.edu/~kriz/cifar.html",
        streams=("cifar100-c", "cifar100"),
        files=(
            RemoteFile(
                name="cifar-100-python.tar.gz",
                urls=("https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",),
                md5="eb9058c3a382ffc7106e4002c42a8d85",
                about="169 MB",
                unpack=True,
            ),
        ),
    ),
    Dataset(
        name="fashion-mnist",
        title="Fashion-MNIST, four idx files ('tta-bench pretrain' reads them)",
        folder="fashion-mnist",
        page="https://github.com/zalandoresearch/fashion-mnist",
        files=(
            _fashion_mnist(
                "train-images-idx3-ubyte.gz", 26_421_880, "8d4fb7e6c68d591d4c3dfef9ec88bf0d"
            ),
            _fashion_mnist(
                "train-labels-idx1-ubyte.gz", 29_515, "25c81989df183df01b3e8a0aad5dffbe"
            ),
            _fashion_mnist(
                "t10k-images-idx3-ubyte.gz", 4_422_102, "bef4ecab320f06d8554ea6380940ec79"
            ),
            _fashion_mnist("t10k-labels-idx1-ubyte.gz", 5_148, "bb300cfdad3c16e7a12a480ee83cd310"),
        ),
    ),
)


def _clean_places(hub: str, batch: str) -> tuple[Place, ...]:
    parquet, file = _SPLITS[1], batch.rpartition("/")[2]
    patterns = (f"{hub}/{parquet}", parquet, f"plain_text/{parquet}", batch, file, f"{hub}/{batch}")
    return tuple(Place(pattern=pattern, gives="generated") for pattern in patterns)


def _corrupted_places(folder: str, clean: tuple[Place, ...]) -> tuple[Place, ...]:
    arrays = (f"{folder}/labels.npy", "labels.npy")
    return tuple(Place(pattern=pattern, gives="official") for pattern in arrays) + clean


_CIFAR10 = _clean_places("cifar10", "cifar-10-batches-py/test_batch")
_CIFAR100 = _clean_places("cifar100", "cifar-100-python/test")

PLACES: dict[str, tuple[Place, ...]] = {
    "cifar10-c": _corrupted_places("CIFAR-10-C", _CIFAR10),
    "cifar100-c": _corrupted_places("CIFAR-100-C", _CIFAR100),
    "fashion-mnist-c": (),
    "imagenet-c": (
        Place(pattern="ImageNet-C/*/[1-5]", gives="official"),
        Place(pattern="*/[1-5]", gives="official"),
    ),
    "npy-folder": (Place(pattern="labels.npy", gives="arrays"),),
}
"""Where the streams over known files look below the data folder, first match first.

An empty entry needs no file. Streams that are not here are described in docs/streams.md.
"""
