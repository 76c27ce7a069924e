"""The clean images of a stream, for methods that need source data."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from streams.errors import StreamError
from streams.types import CLEAN, Stream


def has_clean_images(stream: Stream) -> bool:
    """Whether the stream's source holds the images without corruption."""
    try:
        stream.source.check(CLEAN)
    except StreamError:
        return False
    return True


def clean_images(stream: Stream, limit: int, device: str) -> Iterator[tuple[Tensor, Tensor]]:
    """The first ``limit`` clean images in order, as pairs ``(x (B, C, H, W), y (B,))``."""
    left = limit
    for x, y in stream.clean_batches():
        yield x[:left].to(device), y[:left].to(device)
        left -= len(y)
        if left <= 0:
            return
