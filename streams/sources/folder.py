"""Any folder of class folders; with a level of folders above them, each of those is a domain."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from streams.errors import StreamError
from streams.folders import FolderImages
from streams.readers.class_folders import (
    folders_of,
    has_images,
    images_of,
    interleaved,
    list_classes,
)
from streams.readers.images import EVALUATION, Prepare, image_size
from streams.robustbench_bridge import imagenet_class_to_id


def open_source(data_dir: Path | None = None) -> FolderImages:
    """Open ``data_dir/<class>/*`` (one domain, ``images``) or ``data_dir/<domain>/<class>/*``.

    Classes are the sorted folder names, of all domains together. Where they are ImageNet's wnids
    the source has ``class_ids``. Images of one size, as the first image of every class has it, are
    taken as they are; others are resized to 256 and cropped to 224.

    Raises:
        StreamError: If no folder is named, it holds no class folders, or one of them is empty.
    """
    if data_dir is None:
        raise StreamError(
            "folder needs --data-dir: a folder of class folders, or of domains with class folders"
        )
    first = folders_of(data_dir)
    if not first:
        raise StreamError(
            f"{data_dir} holds no folders: put images into {data_dir}/<class> or into "
            f"{data_dir}/<domain>/<class>"
        )
    nested = not has_images(data_dir / first[0]) and bool(folders_of(data_dir / first[0]))
    domains = {name: data_dir / name for name in first} if nested else {"images": data_dir}
    names = sorted({name for root in domains.values() for name in folders_of(root)})
    labels = {name: number for number, name in enumerate(names)}
    files: list[str] = []
    targets: list[int] = []
    parts = {}
    for domain, root in domains.items():
        found = interleaved(list_classes(root, labels, "the classes"))
        parts[domain] = np.arange(len(files), len(files) + len(found))
        files += [f"{domain}/{file}" if nested else file for file, _ in found]
        targets += [label for _, label in found]
    return FolderImages(
        name=data_dir.name,
        root=data_dir,
        files=tuple(files),
        labels=np.array(targets, dtype=np.int64),
        num_classes=len(names),
        parts=parts,
        prepare=_prepare([root / name for root in domains.values() for name in folders_of(root)]),
        class_ids=_class_ids(names),
        kind="arrays",
    )


def _prepare(folders: list[Path]) -> Prepare:
    """As they are where the first image of every folder has one size, else the usual crop."""
    sizes = {image_size(folder / min(images_of(folder))) for folder in folders}
    if len(sizes) > 1:
        return EVALUATION
    height, width = sizes.pop()
    return Prepare(resize=None, height=height, width=width)


def _class_ids(names: list[str]) -> tuple[int, ...] | None:
    """Which of the 1,000 the classes are, where all of them are wnids."""
    if not all(name[:1] == "n" and name[1:].isdigit() and len(name) == 9 for name in names):
        return None
    ids = imagenet_class_to_id()
    if len(names) == len(ids) or not all(name in ids for name in names):
        return None
    return tuple(ids[name] for name in names)  # sorted wnids have ascending classes
