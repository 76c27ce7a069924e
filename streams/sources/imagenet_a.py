"""ImageNet-A: 7,500 photographs of 200 ImageNet classes that ResNets get wrong.

Hendrycks et al.: Natural adversarial examples, 2019, arXiv:1907.07174.
"""

from __future__ import annotations

from pathlib import Path

from streams.folders import FolderImages
from streams.imagenet_classes import open_subset

_WANTED = "imagenet-a/<wnid>/*.jpg (people.eecs.berkeley.edu/~hendrycks/imagenet-a.tar, 690 MB)"


def open_source(data_dir: Path | None = None) -> FolderImages:
    """Open ImageNet-A below ``data_dir`` (``data`` by default).

    Raises:
        StreamError: If it is not there, or damaged.
    """
    return open_subset(
        "imagenet-a",
        data_dir or Path("data"),
        ("imagenet-a", "ImageNet-A"),
        list_name="imagenet_a",
        wanted=_WANTED,
    )
