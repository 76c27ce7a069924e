"""Any folder of <corruption>.npy (uint8, N x H x W x 3, or five severities) and labels.npy."""

from __future__ import annotations

from pathlib import Path

from streams.cifar import CIFAR10, CIFAR100
from streams.clean import CleanImages
from streams.errors import StreamError
from streams.npy_corruptions import NpyCorruptions, open_npy_folder


def open_source(data_dir: Path | None = None) -> NpyCorruptions:
    """Open the folder.

    Raises:
        StreamError: If no folder is named, or its labels are missing or damaged.
    """
    if data_dir is None:
        raise StreamError(
            "npy-folder needs --data-dir: a folder of <corruption>.npy and labels.npy"
        )
    return open_npy_folder(data_dir, name=data_dir.name)


def training_images(folder: Path) -> CleanImages | None:
    """Training images of CIFAR-10 or CIFAR-100 below ``folder``; ``None`` without them."""
    return CIFAR10.find_train(folder) or CIFAR100.find_train(folder)
