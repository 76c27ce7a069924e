"""CCC over the embedded Fashion-MNIST test images: pairs of corruptions that change all the time.

Press et al.: RDumb: A simple approach that questions our progress in continual test-time
adaptation, 2023, arXiv:2306.05401, made for ImageNet. Crops keep 64 % of the area or more, images
are not encoded, and a stream has 150,000 images: these three are ours.
"""

from __future__ import annotations

from pathlib import Path

from streams.ccc import SMALL_IMAGES, CccSource, Pipeline, open_ccc, small_pipeline
from streams.sources import fashion_mnist_c

training_images = fashion_mnist_c.training_images


def open_pipeline(data_dir: Path | None = None) -> Pipeline:
    """The embedded images; ``data_dir`` is not needed and not read."""
    return small_pipeline("fashion-mnist-ccc", fashion_mnist_c.open_source().clean)


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
        StreamError: If the matrix is missing, or for a wrong option.
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
