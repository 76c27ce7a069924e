"""ImageNet: the 50,000 clean validation images, one domain.

Russakovsky et al.: ImageNet large scale visual recognition challenge, 2014, arXiv:1409.0575.
"""

from __future__ import annotations

from pathlib import Path

from streams.errors import StreamError
from streams.imagenet import CLEAN_WANTED, check_subset, find_validation
from streams.npy_corruptions import missing
from streams.single import CleanSource


def open_source(data_dir: Path | None = None, *, subset: str = "full") -> CleanSource:
    """Open the validation images below ``data_dir`` (``data`` by default).

    Args:
        data_dir: The data folder, or the folder of classes.
        subset: ``full``, or ``robustbench-5k``: RobustBench's 5,000 images in its order.

    Raises:
        StreamError: If they are not there, damaged, or images of the subset are missing.
    """
    check_subset(subset)
    base = data_dir or Path("data")
    found = find_validation(base, subset)
    if found is None:
        raise StreamError(
            f"no ImageNet validation images in {base}: put there {missing(CLEAN_WANTED)}; "
            "--data-dir names another folder"
        )
    return CleanSource(clean=found.clean_images())
