"""CCC: ImageNet under pairs of corruptions that change all the time, generated as it runs.

Press et al.: RDumb: A simple approach that questions our progress in continual test-time
adaptation, 2023, arXiv:2306.05401. It needs an accuracy matrix of your model, made once by
``tta-bench data ccc-matrix ccc --backbone NAME --data-dir DIR``.
"""

from __future__ import annotations

from pathlib import Path

from streams.ccc import PAPER_IMAGES, CccSource, Pipeline, open_ccc
from streams.errors import StreamError
from streams.imagenet import CLEAN_WANTED, find_validation
from streams.npy_corruptions import missing


def open_pipeline(data_dir: Path | None = None) -> Pipeline:
    """Open the validation images below ``data_dir`` (``data`` by default).

    Raises:
        StreamError: If they are not there, or damaged.
    """
    base = data_dir or Path("data")
    found = find_validation(base, "full")
    if found is None:
        raise StreamError(
            f"no ImageNet validation images in {base}: put there {missing(CLEAN_WANTED)}; "
            "--data-dir names another folder"
        )
    return Pipeline(
        stream="ccc",
        clean=found.clean_images(),
        side=224,
        profile="imagenet",
        least=0.08,
        jpeg_quality=85,
    )


def open_source(
    data_dir: Path | None = None,
    *,
    level: str = "medium",
    speed: int | str = 1000,
    seed: int | str = 43,
    total_images: int | str = PAPER_IMAGES,
    matrix: str = "",
    noises: str = "",
) -> CccSource:
    """Open CCC over the validation images below ``data_dir`` (``data`` by default).

    Args:
        data_dir: The data folder, or the folder of classes.
        level: ``easy``, ``medium`` or ``hard``.
        speed: Images at each grid step; 1000, 2000 and 5000 in the paper.
        seed: Of the stream; 43, 44 and 45 in the paper.
        total_images: Length; another than the paper's 7.5 million says so in the provenance.
        matrix: Start of a matrix's key or name of its backbone, where there are several.
        noises: Corruptions, separated by commas, instead of the level's.

    Raises:
        StreamError: If the images or the matrix are missing, or for a wrong option.
    """
    return open_ccc(
        open_pipeline(data_dir),
        level=level,
        speed=speed,
        seed=seed,
        total=total_images,
        matrix=matrix,
        noises=noises,
    )
