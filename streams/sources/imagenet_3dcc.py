"""ImageNet-3DCC: the official folders of the twelve 3D common corruptions.

Kar et al.: 3D common corruptions and data augmentation, 2022, arXiv:2203.01441. They are rendered
with the depth of the scene, so nothing is generated here.
"""

from __future__ import annotations

from pathlib import Path

from streams.errors import StreamError
from streams.imagenet import check_subset
from streams.official_folders import open_official
from streams.types import ImageSource

CORRUPTIONS = (
    "near_focus",
    "far_focus",
    "bit_error",
    "color_quant",
    "flash",
    "fog_3d",
    "h265_abr",
    "h265_crf",
    "iso_noise",
    "low_light",
    "xy_motion_blur",
    "z_motion_blur",
)
"""What the stream visits where no corruptions are asked for."""


def open_source(data_dir: Path | None = None, *, subset: str = "full") -> ImageSource:
    """Open ImageNet-3DCC below ``data_dir`` (``data`` by default).

    Args:
        data_dir: The data folder, or the folder of corruptions.
        subset: ``full``, or ``robustbench-5k``: RobustBench's 5,000 images in its order.

    Raises:
        StreamError: If it is not there, damaged, or images of the subset are missing.
    """
    check_subset(subset)
    base = data_dir or Path("data")
    official = open_official("ImageNet-3DCC", base, corruptions=CORRUPTIONS, subset=subset)
    if official is None:
        raise StreamError(
            f"no ImageNet-3DCC in {base}: put there "
            "ImageNet-3DCC/<corruption>/<severity>/<wnid>/*.JPEG (3dcommoncorruptions.epfl.ch; "
            "60 sets of 50,000 images, each about as large as one of ImageNet-C, 0.6 GB); "
            "--data-dir names another folder"
        )
    return official
