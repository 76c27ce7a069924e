"""The images of a profile: what a method selects depends on the entropy of its predictions."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import streams
import tta
from streams.types import Batch, Stream

# Images of real texture.
STREAM = "fashion-mnist-c"
_CORRUPTIONS = ("gaussian_noise", "fog", "contrast")
_SOURCE_BATCHES = 2


class Feed:
    """Endless batches of a stream, resized to the model."""

    def __init__(self, stream: Stream, input_size: tuple[int, int], device: str) -> None:
        self.stream, self._size, self._device = stream, input_size, device
        self._batches = iter(stream)

    def next(self) -> tuple[Batch, Tensor]:
        """The next batch, and its images as the model takes them."""
        batch = next(self._batches, None)
        if batch is None:
            self._batches = iter(self.stream)
            batch = next(self._batches)
        x = batch.x
        if x.shape[1] == 1:
            x = x.expand(-1, 3, -1, -1)
        if tuple(x.shape[-2:]) != self._size:
            x = F.interpolate(x, self._size, mode="bilinear", antialias=False).clamp(0, 1)
        return batch, x.contiguous().to(self._device)


def stream_of(
    batch_size: int, name: str = STREAM, data_dir: Path | None = None, severity: int = 5
) -> Stream:
    """Corrupted images with something to select and something to leave out.

    Raises:
        StreamError: If the stream has no such corruptions, or its data is missing.
    """
    return streams.create(
        name,
        data_dir=data_dir,
        setting="mixed",
        severity=(severity,),
        corruptions=_CORRUPTIONS,
        num_examples=min(10_000, batch_size * 8),
        batch_size=batch_size,
        seed=0,
    )


def source_for(adapter: tta.Adapter, feed: Feed) -> Iterator[Any]:
    """A few batches for ``fit_source``."""
    for _ in range(_SOURCE_BATCHES):
        _, x = feed.next()
        # Any labels will do: what the statistics say does not change what a step costs.
        labels = torch.arange(len(x), device=x.device) % 10
        yield (x, labels) if adapter.needs.source_labels else x
