"""Encoded images: decoded one by one, resized and cropped as asked, the last ones kept."""

from __future__ import annotations

import io
import warnings
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from streams.errors import StreamError

if TYPE_CHECKING:
    from PIL.Image import Image

# Pillow knows many more, some of which start other programs (EPS: Ghostscript).
FORMATS = ("JPEG", "PNG", "BMP", "PPM", "WEBP")
# A photograph of 100 megapixels takes 300 MB; Pillow alone would go on to 179.
_MAX_PIXELS = 100_000_000
SUFFIXES = frozenset({".jpeg", ".jpg", ".png", ".bmp", ".ppm", ".webp"})
_CACHE_BYTES = 256 << 20


@dataclass(frozen=True, kw_only=True, slots=True)
class Prepare:
    """How a decoded image becomes one of the stream.

    Attributes:
        resize: Length of the shorter side after a bilinear resize; ``None`` leaves the size.
        height: Rows of the centre crop, or those that an image must have where nothing is resized.
        width: Columns, likewise.
    """

    resize: int | None
    height: int
    width: int

    def __str__(self) -> str:
        size = f"{self.height}x{self.width}"
        return f"resize {self.resize}, crop {size}" if self.resize else f"{size} as they are"


EVALUATION = Prepare(resize=256, height=224, width=224)
"""The usual evaluation of ImageNet models: shorter side 256, centre crop 224."""


def read_image(source: Path | bytes, prepare: Prepare | None, where: str) -> NDArray[np.uint8]:
    """Decode one image.

    Args:
        source: A file, or the encoded bytes.
        prepare: Resize and crop; ``None`` takes the image whole, whatever its size.
        where: What to call the image in messages.

    Returns:
        ``(height, width, 3)`` uint8.

    Raises:
        StreamError: If the image is missing, does not decode, or has another size than one that is
            taken as it is.
    """
    from PIL import Image as Pillow

    try:
        file = io.BytesIO(source) if isinstance(source, bytes) else source
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Pillow.DecompressionBombWarning)  # refused below
            opened = Pillow.open(file, formats=FORMATS)
        with opened as image:
            _check_size(image, prepare, where)
            colours = image.convert("RGB")
            made = np.asarray(colours if prepare is None else _prepared(colours, prepare))
    except FileNotFoundError:
        raise StreamError(f"{where} is missing; unpack the archive again") from None
    except StreamError:
        raise
    except Exception as error:  # damaged headers raise nearly anything
        reason = " ".join(str(error).split())[:120]
        raise StreamError(f"{where} does not decode ({reason}); unpack it again") from error
    return made


def image_size(path: Path) -> tuple[int, int]:
    """Height and width of an image, from its header.

    Raises:
        StreamError: If the header cannot be read.
    """
    from PIL import Image as Pillow

    try:
        with Pillow.open(path, formats=FORMATS) as image:
            return image.height, image.width
    except Exception as error:  # damaged headers raise nearly anything
        raise StreamError(f"{path} does not decode; unpack it again") from error


def _check_size(image: Image, prepare: Prepare | None, where: str) -> None:
    """Refuse what the header announces before it is decoded."""
    size = image.height, image.width
    if prepare is not None and prepare.resize is None and size != (prepare.height, prepare.width):
        raise StreamError(
            f"{where} is {size}, expected {prepare.height}x{prepare.width}; "
            "it is not one of this data set"
        )
    longest = max(size) / max(1, min(size)) * (prepare.resize or 0) ** 2 if prepare else 0
    if min(size) < 1 or max(size[0] * size[1], longest) > _MAX_PIXELS:
        raise StreamError(f"{where} is {size}: more than {_MAX_PIXELS:,} pixels; it is damaged")


def _prepared(image: Image, prepare: Prepare) -> Image:
    """Resize the shorter side and cut the centre, as torchvision does on Pillow images."""
    from PIL import Image as Pillow

    if prepare.resize is None:
        return image
    short, long = sorted(image.size)
    longer = int(prepare.resize * long / short)  # torchvision cuts, it does not round
    upright = image.width <= image.height
    size = (prepare.resize, longer) if upright else (longer, prepare.resize)
    if size != image.size:
        image = image.resize(size, Pillow.Resampling.BILINEAR)
    left = round((image.width - prepare.width) / 2)
    top = round((image.height - prepare.height) / 2)
    return image.crop((left, top, left + prepare.width, top + prepare.height))


@dataclass
class DecodedImages:
    """The images decoded last, up to a number of bytes: domains share their clean images."""

    limit: int = _CACHE_BYTES
    held: int = 0
    _images: OrderedDict[Hashable, NDArray[np.uint8]] = field(default_factory=OrderedDict)

    def __reduce__(self) -> tuple[type[DecodedImages], tuple[int]]:
        return DecodedImages, (self.limit,)  # a copy in another process starts empty

    def get(self, key: Hashable, decode: Callable[[], NDArray[np.uint8]]) -> NDArray[np.uint8]:
        """The image of a key, decoded unless it is held; nobody may write to it."""
        if key in self._images:
            self._images.move_to_end(key)
            return self._images[key]
        made = decode()
        self._images[key] = made
        self.held += made.nbytes
        while self.held > self.limit and len(self._images) > 1:
            self.held -= self._images.popitem(last=False)[1].nbytes
        return made
