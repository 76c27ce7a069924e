"""Random flip and random resized crop of one image, as training pipelines draw them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

_RATIO = (3 / 4, 4 / 3)
_TRIES = 10


def flip_and_crop(
    image: NDArray[np.uint8], side: int, least: float, generator: np.random.Generator
) -> NDArray[np.uint8]:
    """Mirror with probability 1/2, cut a random part, resize it by bilinear interpolation.

    The draws are those of torchvision's ``RandomResizedCrop``: a share of the area, uniform in
    ``[least, 1]``, and the logarithm of an aspect ratio, uniform between 3/4 and 4/3; after ten
    parts that do not fit, the centre.

    Args:
        image: ``(H, W, 3)`` uint8.
        side: Rows and columns of the result.
        least: Smallest share of the area, in (0, 1].
        generator: Draws.

    Returns:
        ``(side, side, 3)`` uint8.
    """
    from PIL import Image

    flip = generator.random() < 0.5
    top, left, rows, columns = _part(image.shape[0], image.shape[1], least, generator)
    if flip:
        image = image[:, ::-1]
    if (rows, columns) == (side, side):
        return image[top : top + side, left : left + side]
    box = (left, top, left + columns, top + rows)
    made = Image.fromarray(np.ascontiguousarray(image)).resize(
        (side, side), Image.Resampling.BILINEAR, box=box
    )
    out: NDArray[Any] = np.asarray(made)
    return out


def _part(
    height: int, width: int, least: float, generator: np.random.Generator
) -> tuple[int, int, int, int]:
    """Top, left, rows and columns."""
    for _ in range(_TRIES):
        area = height * width * generator.uniform(least, 1)
        ratio = math.exp(generator.uniform(math.log(_RATIO[0]), math.log(_RATIO[1])))
        columns, rows = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < columns <= width and 0 < rows <= height:
            top = int(generator.integers(height - rows + 1))
            left = int(generator.integers(width - columns + 1))
            return top, left, rows, columns
    rows = min(height, round(width / _RATIO[0]))
    columns = min(width, round(height * _RATIO[1]))
    return (height - rows) // 2, (width - columns) // 2, rows, columns
