"""Fashion-MNIST's four idx files as training tensors: reading, padding, augmentation."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from streams.errors import StreamError
from streams.readers import idx

# File -> size in bytes, as the project publishes it (Debian packs a few bytes tighter).
FILES: dict[str, int] = {
    "train-images-idx3-ubyte.gz": 26_421_880,
    "train-labels-idx1-ubyte.gz": 29_515,
    "t10k-images-idx3-ubyte.gz": 4_422_102,
    "t10k-labels-idx1-ubyte.gz": 5_148,
}
DEBIAN_PACKAGE = "dataset-fashion-mnist"
DEBIAN_FOLDER = "/usr/share/datasets/fashion-mnist"
PROJECT = "https://github.com/zalandoresearch/fashion-mnist"
_SIDE = 32


def load_split(data_dir: Path, split: str, num_classes: int) -> tuple[Tensor, Tensor]:
    """Read one split as it is stored.

    Args:
        data_dir: Folder of the four idx files, gzip-compressed or not.
        split: ``"train"`` or ``"t10k"``.
        num_classes: Number of classes; labels lie below it.

    Returns:
        Images ``(N, H, W)`` uint8 in [0, 255] and labels ``(N,)`` int64.

    Raises:
        StreamError: If one of the four files is missing or damaged, the counts differ, or a
            label is out of range.
    """
    images_path, labels_path = find_files(data_dir)[0 if split == "train" else 1]
    images, labels = idx.read_images(images_path), idx.read_labels(labels_path)
    if len(images) != len(labels) or not len(images):
        raise StreamError(
            f"{images_path.name} has {len(images)} images, {labels_path.name} {len(labels)} "
            "labels; take both files from one distribution"
        )
    if int(labels.max()) >= num_classes:
        raise StreamError(
            f"{labels_path.name} has the label {int(labels.max())}, the model {num_classes} "
            "classes; use the labels of Fashion-MNIST"
        )
    return torch.from_numpy(images), torch.from_numpy(labels)


def find_files(data_dir: Path) -> tuple[tuple[Path, Path], tuple[Path, Path]]:
    """Locate the four idx files, with or without ``.gz``.

    Returns:
        ``(train images, train labels), (test images, test labels)``.

    Raises:
        StreamError: If one is missing; the message says where to get all four.
    """
    found: list[Path] = []
    for name in FILES:
        candidates = [data_dir / name, data_dir / name.removesuffix(".gz")]
        path = next((candidate for candidate in candidates if candidate.is_file()), None)
        if path is None:
            listing = ", ".join(f"{file} ({size:,} bytes)" for file, size in FILES.items())
            raise StreamError(
                f"no {name} in {data_dir}; training needs {listing}: install Debian's package "
                f"{DEBIAN_PACKAGE} (they land in {DEBIAN_FOLDER}) or download them from {PROJECT}"
            )
        found.append(path)
    return (found[0], found[1]), (found[2], found[3])


def pad_to(images: Tensor, side: int = _SIDE) -> Tensor:
    """Centre images ``(N, H, W)`` uint8 on a black ``side`` x ``side`` canvas.

    Raises:
        StreamError: If the images are larger than the canvas.
    """
    height, width = images.shape[1:]
    if max(height, width) > side:
        raise StreamError(f"images of {height}x{width} do not fit {side}x{side}; resize them first")
    top, left = (side - height) // 2, (side - width) // 2
    return F.pad(images, (left, side - width - left, top, side - height - top))


def to_input(images: Tensor) -> Tensor:
    """Turn grey bytes ``(B, H, W)`` into model input ``(B, 3, H, W)``, float32 in [0, 1]."""
    return images.unsqueeze(1).expand(-1, 3, -1, -1).to(torch.float32) / 255.0


def augment(images: Tensor, max_shift: int, generator: torch.Generator) -> Tensor:
    """Flip each image with probability 1/2 and shift it, with zeros moving in.

    Args:
        images: ``(B, S, S)`` uint8.
        max_shift: Largest shift in pixels along each axis.
        generator: Source of all draws.

    Returns:
        ``(B, S, S)`` uint8.
    """
    count, side = len(images), images.shape[-1]
    padded = F.pad(images, (max_shift,) * 4)
    shifts = torch.randint(0, 2 * max_shift + 1, (2, count, 1), generator=generator)
    flip = torch.rand(count, 1, generator=generator) < 0.5
    line = torch.arange(side)
    rows = shifts[0] + line
    columns = shifts[1] + torch.where(flip, side - 1 - line, line)
    return padded[torch.arange(count)[:, None, None], rows[:, :, None], columns[:, None, :]]
