"""ImageNet's validation images, wherever and however they are stored."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from streams.clean import CleanImages, check_labels
from streams.errors import StreamError
from streams.imagenet_classes import WHAT
from streams.readers.class_folders import folders_of, list_classes
from streams.readers.images import (
    EVALUATION,
    SUFFIXES,
    DecodedImages,
    Prepare,
    read_image,
)
from streams.readers.label_list import read_validation_labels
from streams.readers.parquet_shards import Shards, open_shards
from streams.robustbench_bridge import imagenet_5k_list, imagenet_class_to_id
from streams.types import Ints

if TYPE_CHECKING:
    from torch import Tensor

SUBSETS = ("full", "robustbench-5k")
NUM_CLASSES = 1000
CLEAN_WANTED = {
    "imagenet/val/<wnid>/*.JPEG, or parquet shards validation-*.parquet": (
        "ILSVRC2012_img_val.tar of image-net.org, 6.7 GB"
    ),
}
_PLACES = ("imagenet/val", "val", "ImageNet/val", "imagenet", "ImageNet")
_LABEL_FILES = (
    "LOC_val_solution.csv",
    "imagenet_2012_validation_synset_labels.txt",
    "val.txt",
    "labels.txt",
)
_NUMBER = re.compile(r"ILSVRC2012_val_(\d{8})")
_WNID = re.compile(r"(?<![a-z0-9])n\d{8}(?!\d)")


@dataclass(frozen=True, kw_only=True)
class Validation:
    """Clean images, decoded when they are asked for: resize 256, centre crop 224.

    Attributes:
        root: Folder of the files, or of the shards.
        files: Path of each image; with shards, its row as text.
        labels: Class of each image ``(N,)``.
        ids: Image ids ``(N,)``: the number in the file name where every name has one, so that an
            image gets the same corruption in every subset, else the position.
        subset: ``full`` or ``robustbench-5k``.
        shards: Where ``files`` are rows of parquet shards.
        cache: Images decoded last.
    """

    root: Path
    files: tuple[str, ...]
    labels: Ints
    ids: Ints
    subset: str
    shards: Shards | None = None
    cache: DecodedImages = field(default_factory=DecodedImages, repr=False, compare=False)

    @cached_property
    def digest(self) -> str:
        """Hash of the list of files, their labels, and of the shards' sizes."""
        made = hashlib.sha256("\n".join(self.files).encode())
        made.update(np.ascontiguousarray(self.labels, dtype="<i8").tobytes())
        made.update(f"{EVALUATION}/{self.shards.sizes if self.shards else ''}".encode())
        return made.hexdigest()

    def clean_images(self) -> CleanImages:
        """The images as a source reads them."""
        return CleanImages(
            name="ImageNet validation",
            labels=self.labels,
            num_classes=NUM_CLASSES,
            read=self.read,
            digest=self.digest,
            ids=self.ids,
            raw=self.raw,
            facts={
                "images": str(len(self.labels)),
                "subset": self.subset,
                "prepared": str(EVALUATION),
            },
        )

    def read(self, positions: Ints) -> Tensor:
        """Images ``(B, 3, 224, 224)`` uint8.

        Raises:
            StreamError: For an image that is missing or damaged, with its path and position.
        """
        import torch

        out = np.empty((len(positions), 224, 224, 3), dtype=np.uint8)
        for row in np.argsort(positions, kind="stable"):  # a row group of a shard is read once
            out[row] = self._image(int(positions[row]))
        return torch.from_numpy(out).permute(0, 3, 1, 2).contiguous()

    def raw(self, position: int) -> NDArray[np.uint8]:
        """One image ``(H, W, 3)`` uint8 as it is stored.

        Raises:
            StreamError: If it is missing or damaged, with its path and position.
        """
        return self._decode(position, None)

    def _image(self, position: int) -> NDArray[np.uint8]:
        return self.cache.get(position, lambda: self._decode(position, EVALUATION))

    def _decode(self, position: int, prepare: Prepare | None) -> NDArray[np.uint8]:
        if self.shards is None:
            path = self.root / self.files[position]
            return read_image(path, prepare, f"{path} (image {position})")
        row = int(self.files[position])
        return read_image(self.shards.read(row), prepare, self.shards.where(row))


def check_subset(subset: str) -> None:
    """Raise ``StreamError`` for an unknown subset."""
    if subset not in SUBSETS:
        raise StreamError(f"subset={subset!r} is unknown; write one of {', '.join(SUBSETS)}")


def find_validation(base: Path, subset: str) -> Validation | None:
    """Clean validation images below ``base``: class folders, a flat folder, or parquet shards.

    Raises:
        StreamError: If they are damaged, or the subset has images that are not there.
    """
    classes = imagenet_class_to_id()
    for root in (*(base / place for place in _PLACES), base):
        if any(name in classes for name in folders_of(root)):
            found = list_classes(root, classes, WHAT)
            return _of_files(root, [f for f, _ in found], [label for _, label in found], subset)
        flat = sorted(p.name for p in root.glob("ILSVRC2012_val_*") if p.suffix.lower() in SUFFIXES)
        if flat:
            return _of_files(root, flat, _flat_labels(root, flat), subset)
        for folder in (root, root / "data"):
            if paths := sorted(
                [*folder.glob("val-*.parquet"), *folder.glob("validation-*.parquet")]
            ):
                return _of_shards(folder, paths, subset)
    return None


def _of_files(root: Path, files: list[str], labels: list[int], subset: str) -> Validation:
    keep = _selection([Path(file).name for file in files], labels, subset, str(root))
    chosen = tuple(files[i] for i in keep)
    return Validation(
        root=root,
        files=chosen,
        labels=np.array([labels[i] for i in keep], dtype=np.int64),
        ids=_ids(chosen),
        subset=subset,
    )


def _of_shards(folder: Path, paths: list[Path], subset: str) -> Validation:
    shards = open_shards(tuple(paths))
    check_labels(shards.labels, NUM_CLASSES, str(folder))
    labels = shards.labels.tolist()
    classes = imagenet_class_to_id()
    for row, (name, label) in enumerate(zip(shards.names, labels, strict=True)):
        wnid = _WNID.search(name)
        if wnid and classes.get(wnid[0]) != label:
            raise StreamError(
                f"{shards.where(row)}: label {label}, but {name} is of class "
                f"{classes.get(wnid[0])}; the labels count in another order"
            )
    keep = _selection(shards.names, labels, subset, str(folder))
    return Validation(
        root=folder,
        files=tuple(map(str, keep)),
        labels=shards.labels[np.array(keep, dtype=np.int64)],
        ids=_ids([shards.names[i] for i in keep]),
        subset=subset,
        shards=shards,
    )


def _flat_labels(root: Path, files: list[str]) -> list[int]:
    path = next(
        (f / name for f in (root, root.parent) for name in _LABEL_FILES if (f / name).is_file()),
        None,
    )
    if path is None:
        raise StreamError(
            f"{root} has images but no labels: put {_LABEL_FILES[0]} beside them, or sort them "
            "into folders of their wnid"
        )
    labels = read_validation_labels(path, imagenet_class_to_id())
    stems = [Path(file).stem for file in files]
    for stem, file in zip(stems, files, strict=True):
        if stem not in labels:
            raise StreamError(f"{path} has no label for {root / file}; fetch the list again")
    return [labels[stem] for stem in stems]


def selection_5k(names: Sequence[str], labels: Sequence[int], where: str) -> list[int]:
    """Positions of RobustBench's 5,000 images among ``names``, in the published order.

    Args:
        names: File names; the number of the validation image is what counts.
        labels: Their classes.
        where: The folder, for messages.

    Raises:
        StreamError: For an image that is not there, or has another class than the list says.
    """
    classes = imagenet_class_to_id()
    have = {found[0]: i for i, name in enumerate(names) if (found := _NUMBER.search(name))}
    made = []
    for entry in imagenet_5k_list():
        wnid, _, file = entry.partition("/")
        at = have.get(file.partition(".")[0])
        if at is None:
            raise StreamError(
                f"{where} has no {entry}, one of the 5,000 images of subset robustbench-5k; "
                "unpack all of it, or use subset full"
            )
        if labels[at] != classes[wnid]:
            raise StreamError(
                f"{where}: {names[at]} (image {at}) has class {labels[at]}, the list of the 5,000 "
                f"says {wnid} = {classes[wnid]}; the labels are mixed up"
            )
        made.append(at)
    return made


def _selection(names: Sequence[str], labels: list[int], subset: str, where: str) -> list[int]:
    if subset == "full":
        return list(range(len(names)))
    return selection_5k(names, labels, where)


def _ids(names: Sequence[str]) -> Ints:
    found = [_NUMBER.search(name) for name in names]
    if all(found):
        return np.array([int(match[1]) for match in found if match], dtype=np.int64)
    return np.arange(len(names))
