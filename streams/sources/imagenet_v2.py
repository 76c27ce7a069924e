"""ImageNet-V2 (matched frequency): 10,000 newly collected images of the 1,000 classes.

Recht et al.: Do ImageNet classifiers generalize to ImageNet?, 2019, arXiv:1902.10811. Its folders
are the numbers of the classes; sorted as text (0, 1, 10, 100) they would give other labels.
"""

from __future__ import annotations

from pathlib import Path

from streams.errors import StreamError
from streams.folders import FolderImages, find_folder, open_class_folders
from streams.imagenet_classes import WHAT

_NAMES = ("imagenetv2-matched-frequency-format-val", "imagenet-v2", "ImageNet-V2")
_CLASSES = {str(number): number for number in range(1000)}


def open_source(data_dir: Path | None = None) -> FolderImages:
    """Open ImageNet-V2 below ``data_dir`` (``data`` by default).

    Raises:
        StreamError: If it is not there, or damaged.
    """
    base = data_dir or Path("data")
    root = find_folder(base, _NAMES, _CLASSES)
    if root is None:
        raise StreamError(
            f"no imagenet-v2 in {base}: put there {_NAMES[0]}/<0 to 999>/*.jpeg (hub data set "
            "vaishaal/ImageNetV2, imagenetv2-matched-frequency.tar.gz, 1.3 GB); --data-dir names "
            "another folder"
        )
    ids = tuple(range(1000))
    return open_class_folders("imagenet-v2", root, _CLASSES, f"{WHAT}' numbers", class_ids=ids)
