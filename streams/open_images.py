"""Images of unknown classes from elsewhere: noise, or another data set."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from streams import corruptions as engine
from streams.errors import StreamError
from streams.order import rng
from streams.types import CLEAN, Domain, ImageSource, Ints

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Noise:
    """Images of independent uniform values; they are not corrupted.

    Attributes:
        count: How many there are.
    """

    count: int
    corrupted = False

    @property
    def words(self) -> dict[str, str]:
        """For the provenance."""
        return {"unknown": "uniform noise"}

    def images(self, numbers: Ints, height: int, width: int) -> Tensor:
        """Images ``(B, 3, height, width)`` uint8, keyed by their number."""
        import torch

        shape = (3, height, width)
        made = [rng(0, "noise", n).integers(0, 256, shape, dtype=np.uint8) for n in numbers]
        return torch.from_numpy(np.stack(made))


@dataclass(frozen=True, kw_only=True)
class Foreign:
    """Images of another data set, resized and corrupted as those of the stream are.

    Attributes:
        source: The data set.
        domain: Which of its domains: clean where it has that, else its first.
        positions: Its images.
    """

    source: ImageSource
    domain: Domain
    positions: Ints
    corrupted = True

    @property
    def count(self) -> int:
        """How many there are."""
        return len(self.positions)

    @property
    def words(self) -> dict[str, str]:
        """For the provenance."""
        digest = self.source.digest[:16]
        return {"unknown": f"{self.source.name}, {self.domain.name}, {self.count} images, {digest}"}

    def images(self, numbers: Ints, height: int, width: int) -> Tensor:
        """Images ``(B, 3, height, width)`` uint8, resized by bilinear interpolation."""
        import torch
        from PIL import Image

        pixels = self.source.images(self.positions[numbers], self.domain)
        if pixels.shape[2:] == (height, width):
            return pixels
        resized = [
            np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))
            for image in pixels.permute(0, 2, 3, 1).contiguous().numpy()
        ]
        return torch.from_numpy(np.stack(resized)).permute(0, 3, 1, 2).contiguous()


def open_foreign(name: str, data_dir: Path | None) -> Foreign:
    """The images of a stream, clean where it has such.

    Raises:
        StreamError: For a wrong name, data that is missing, or a stream that is all corrupted.
    """
    from streams.factory import open_stream_source

    source = open_stream_source(name, data_dir)
    try:
        source.check(CLEAN)
        domain = CLEAN
    except StreamError:
        own: Any = getattr(source, "domains", None)
        if own is None:
            raise StreamError(
                f"open_set='stream:{name}' needs images without corruption, and {name} has none"
            ) from None
        domain = own(engine.CORRUPTIONS, 5)[0]
    members: Any = getattr(source, "members", None)
    positions = np.arange(len(source.labels)) if members is None else members(domain)
    return Foreign(source=source, domain=domain, positions=positions)
