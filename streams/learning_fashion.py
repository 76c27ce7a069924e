"""Fashion-MNIST as a training and a test side: embedded images, or the four idx files.

Xiao, Rasul, Vollgraf: Fashion-MNIST, 2017, arXiv:1708.07747.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np

from streams.clean import CleanImages, in_memory
from streams.errors import StreamError
from streams.learning_tasks import Pair, balanced_order
from streams.readers.idx import read_images, read_labels
from streams.sources import fashion_mnist_c

NUM_CLASSES = 10
EMBEDDED_TRAIN = 8000
"""Of the 10,000 embedded test images; the other 2,000 are the test."""

_SHAPE = (3, 32, 32)
_FOLDERS = ("", "fashion-mnist")


def open_pair(data_dir: Path | None) -> Pair:
    """The two sides.

    Without ``data_dir`` they are parts of the 10,000 embedded images, which are Fashion-MNIST's
    TEST images: 8,000 to learn from and 2,000 to be tested on, equally many of each class, drawn
    once for all seeds. With it they are the published 60,000 and 10,000.

    Raises:
        StreamError: If one of the four files is missing or damaged.
    """
    return _embedded() if data_dir is None else _published(data_dir)


@lru_cache(maxsize=1)
def _embedded() -> Pair:
    clean = fashion_mnist_c.open_source().clean
    order = balanced_order(clean.labels, 0, "embedded fashion-mnist", "train and test")
    left = len(order) - EMBEDDED_TRAIN
    # The two names are all that tells the sides apart: positions are those of the embedded images.
    name = "{:,} of the 10,000 Fashion-MNIST test images, kept for {}"
    return Pair(
        train=replace(clean, name=name.format(EMBEDDED_TRAIN, "training")),
        train_at=np.sort(order[:EMBEDDED_TRAIN]),
        test=replace(clean, name=name.format(left, "testing")),
        test_at=np.sort(order[EMBEDDED_TRAIN:]),
        image_shape=_SHAPE,
    )


def _published(data_dir: Path) -> Pair:
    train, test = (_read(data_dir, split) for split in ("train", "t10k"))
    # Corruptions are keyed by image id: no training image shares its draws with a test image.
    train = replace(train, ids=np.arange(len(train.labels)) + len(test.labels))
    return Pair(
        train=train,
        train_at=np.arange(len(train.labels)),
        test=test,
        test_at=np.arange(len(test.labels)),
        image_shape=_SHAPE,
    )


def find_train(data_dir: Path) -> CleanImages | None:
    """The 60,000 training images; ``None`` where the files are not there.

    Raises:
        StreamError: If they are damaged.
    """
    if any(_path(data_dir, f"train-{part}") is None for part in _PARTS):
        return None
    return _read(data_dir, "train")


def _read(data_dir: Path, split: str) -> CleanImages:
    paths = tuple(_find(data_dir, f"{split}-{part}") for part in _PARTS)
    return _read_once(split, *((path.resolve(), path.stat().st_mtime_ns) for path in paths))


_PARTS = ("images-idx3-ubyte", "labels-idx1-ubyte")


def _path(data_dir: Path, name: str) -> Path | None:
    for folder in _FOLDERS:
        for path in (data_dir / folder / f"{name}.gz", data_dir / folder / name):
            if path.is_file():
                return path
    return None


def _find(data_dir: Path, name: str) -> Path:
    path = _path(data_dir, name)
    if path is not None:
        return path
    raise StreamError(
        f"no {name}.gz in {data_dir}: fetch the four files with 'tta-bench data fetch "
        "fashion-mnist', name the folder that holds them, or leave the folder out and learn from "
        "the embedded images"
    )


@lru_cache(maxsize=2)
def _read_once(split: str, images: tuple[Path, int], labels: tuple[Path, int]) -> CleanImages:
    pixels, targets = read_images(images[0]), read_labels(labels[0])
    if len(pixels) != len(targets) or not len(pixels):
        raise StreamError(
            f"{images[0]} has {len(pixels)} images, {labels[0].name} {len(targets)} labels; "
            "take both files from one distribution"
        )
    if pixels.shape[1:] != (28, 28):
        raise StreamError(f"{images[0]}: images are {pixels.shape[1:]}, expected (28, 28)")
    return in_memory(
        fashion_mnist_c.to_rgb32(pixels),
        targets,
        name=f"Fashion-MNIST {'train' if split == 'train' else 'test'}",
        num_classes=NUM_CLASSES,
    )
