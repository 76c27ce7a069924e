"""Split ImageNet-R: ten tasks of twenty classes each, one shared head (class-incremental).

Hendrycks et al.: The many faces of robustness, 2020, arXiv:2006.16241. The set has no official
training side; ours is drawn once for all seeds: of each class, 80 % of the images (rounded down,
one at least) are for training and the others, one at least, for testing.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from streams.clean import CleanImages
from streams.errors import StreamError
from streams.folders import FolderImages
from streams.learning_tasks import Pair, TaskSet, split_by_class
from streams.options import Option
from streams.order import shuffled
from streams.sources import imagenet_r
from streams.types import Domain, Ints

if TYPE_CHECKING:
    from torch import Tensor

OPTIONS: dict[str, tuple[Option, str]] = {
    "class_order": ("natural", "order of the classes: natural, shuffled (by the seed) or 1993"),
}
TRAIN_PERCENT = 80


def open_tasks(
    data_dir: Path | None, *, num_tasks: int | None, seed: int, class_order: str = "natural"
) -> TaskSet:
    """Ten tasks by default; ``num_tasks`` divides the two hundred classes otherwise.

    Raises:
        StreamError: For a number or order that does not fit, damaged or missing files, or a class
            without two images.
    """
    folder = imagenet_r.open_source(data_dir)
    train_at, test_at = split_images(folder)
    clean = CleanImages(
        name=folder.name,
        labels=folder.labels,
        num_classes=folder.num_classes,
        read=_Reader(folder),
        digest=folder.digest,
        facts=folder.provenance.detail,
    )
    name = f"{folder.name}, {{:,}} of {len(folder.labels):,} images, for {{}} (no official split)"
    pair = Pair(
        train=replace(clean, name=name.format(len(train_at), "training")),
        train_at=train_at,
        test=replace(clean, name=name.format(len(test_at), "testing")),
        test_at=test_at,
        image_shape=(3, folder.prepare.height, folder.prepare.width),
        profile="imagenet",
    )
    return split_by_class(pair, num_tasks=num_tasks or 10, class_order=class_order, seed=seed)


def split_images(folder: FolderImages) -> tuple[Ints, Ints]:
    """Sorted positions of the training and of the test images.

    Raises:
        StreamError: For a class without two images.
    """
    train, test = [], []
    for label in range(folder.num_classes):
        at = shuffled(np.flatnonzero(folder.labels == label), 0, "imagenet-r", "train", label)
        if len(at) < 2:
            raise StreamError(
                f"{folder.root} has {len(at)} images of class {label}; training and testing need "
                "one each: unpack the whole archive"
            )
        kept = max(len(at) * TRAIN_PERCENT // 100, 1)
        train.append(at[:kept])
        test.append(at[kept:])
    return np.sort(np.concatenate(train)), np.sort(np.concatenate(test))


@dataclass(frozen=True)
class _Reader:
    """Images of the folder's one domain, by position."""

    folder: FolderImages

    def __call__(self, positions: Ints) -> Tensor:
        """Images ``(B, 3, H, W)`` uint8."""
        (name,) = self.folder.parts
        return self.folder.images(positions, Domain(name=name, corruption=name, severity=0))
