"""CCC over the CIFAR-10 test images: pairs of corruptions that change all the time.

Press et al.: RDumb: A simple approach that questions our progress in continual test-time
adaptation, 2023, arXiv:2306.05401, made for ImageNet. Crops keep 64 % of the area or more, images
are not encoded, and a stream has 150,000 images: these three are ours.
"""

from __future__ import annotations

from pathlib import Path

from streams.ccc import SMALL_IMAGES, CccSource, Pipeline, open_ccc, small_pipeline
from streams.cifar import CIFAR10, open_clean

# Training images of the source models: what methods with source data are fitted on.
training_images = CIFAR10.find_train


def open_pipeline(data_dir: Path | None = None) -> Pipeline:
    """Open CIFAR-10 below ``data_dir`` (``data`` by default).

    Raises:
        StreamError: If it is not there, or damaged.
    """
    clean = open_clean(CIFAR10, data_dir or Path("data")).clean
    return small_pipeline("cifar10-ccc", clean)


def open_source(
    data_dir: Path | None = None,
    *,
    level: str = "medium",
    speed: int | str = 1000,
    seed: int | str = 43,
    total_images: int | str = SMALL_IMAGES,
    matrix: str = "",
    noises: str = "",
) -> CccSource:
    """Open the walk; the options are those of ``ccc``.

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
