"""ImageNet-R: 30,000 renditions (art, cartoons, toys) of 200 ImageNet classes.

Hendrycks et al.: The many faces of robustness, 2020, arXiv:2006.16241.
"""

from __future__ import annotations

from pathlib import Path

from streams.folders import FolderImages
from streams.imagenet_classes import open_subset

_WANTED = "imagenet-r/<wnid>/*.jpg (people.eecs.berkeley.edu/~hendrycks/imagenet-r.tar, 2.2 GB)"


def open_source(data_dir: Path | None = None) -> FolderImages:
    """Open ImageNet-R below ``data_dir`` (``data`` by default).

    Raises:
        StreamError: If it is not there, or damaged.
    """
    return open_subset(
        "imagenet-r",
        data_dir or Path("data"),
        ("imagenet-r", "ImageNet-R"),
        list_name="imagenet_r",
        wanted=_WANTED,
    )
