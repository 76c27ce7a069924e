"""ImageNet-C: the official folders where they are found, else generated from validation images.

Hendrycks, Dietterich: Benchmarking neural network robustness to common corruptions and
perturbations, 2019, arXiv:1903.12261. Labels come from RobustBench's map of the 1,000 classes, not
from the folders that happen to exist.
"""

from __future__ import annotations

from pathlib import Path

from streams.clean import GeneratedSource
from streams.corruptions.names import CORRUPTIONS, EXTRA_CORRUPTIONS
from streams.errors import StreamError
from streams.imagenet import CLEAN_WANTED, check_subset, find_validation
from streams.npy_corruptions import missing
from streams.official_folders import open_official
from streams.types import ImageSource

_NAMES = CORRUPTIONS + EXTRA_CORRUPTIONS
_GROUPS = ("noise", "blur", "weather", "digital", "extra")
_WANTED = {
    "ImageNet-C/<corruption>/<severity>/<wnid>/*.JPEG": (
        "Zenodo record 2235448: noise.tar, blur.tar, weather.tar, digital.tar, 48 GB"
    ),
    **CLEAN_WANTED,
}


def open_source(
    data_dir: Path | None = None, *, subset: str = "full", jpeg_quality: int | None = 85
) -> ImageSource:
    """Open ImageNet-C below ``data_dir`` (``data`` by default).

    Args:
        data_dir: The data folder, or the folder of corruptions, or that of classes.
        subset: ``full``, or ``robustbench-5k``: RobustBench's 5,000 images in its order.
        jpeg_quality: Quality at which generated images are encoded again, as the original's are;
            ``None`` leaves it out. Official images are read as they are.

    Raises:
        StreamError: If neither form is there (says what is expected, from where, how large), or
            it is damaged, or images of the subset are missing.
    """
    check_subset(subset)
    base = data_dir or Path("data")
    official = open_official("ImageNet-C", base, corruptions=_NAMES, groups=_GROUPS, subset=subset)
    if official is not None:
        return official
    clean = find_validation(base, subset)
    if clean is not None:
        return GeneratedSource(
            clean=clean.clean_images(), profile="imagenet", jpeg_quality=jpeg_quality
        )
    raise StreamError(
        f"no ImageNet-C in {base}: put there {missing(_WANTED)}; --data-dir names another folder"
    )
