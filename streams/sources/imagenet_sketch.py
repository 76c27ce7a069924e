"""ImageNet-Sketch: 50,889 black and white sketches of the 1,000 ImageNet classes.

Wang et al.: Learning robust global representations by penalizing local predictive power, 2019,
arXiv:1905.13549.
"""

from __future__ import annotations

from pathlib import Path

from streams.folders import FolderImages
from streams.imagenet_classes import open_subset

_WANTED = "sketch/<wnid>/*.JPEG (ImageNet-Sketch.zip, github.com/HaohanWang/ImageNet-Sketch, 8 GB)"


def open_source(data_dir: Path | None = None) -> FolderImages:
    """Open ImageNet-Sketch below ``data_dir`` (``data`` by default).

    Raises:
        StreamError: If it is not there, or damaged.
    """
    return open_subset(
        "imagenet-sketch",
        data_dir or Path("data"),
        ("sketch", "imagenet-sketch", "ImageNet-Sketch"),
        list_name=None,
        wanted=_WANTED,
    )
