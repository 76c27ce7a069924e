"""CCC's accuracy matrices: what a model gets right under each pair of corruptions, kept in a cache.

A pair costs 441 times the images: that many forwards, and about as many corruptions. The counts are
saved after every row of 21 cells, so a killed measurement goes on from there.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.errors import UsageError
from streams import order
from streams.ccc import Pipeline, level_noises
from streams.ccc_matrix import UNKNOWN, Matrix
from streams.ccc_path import POINTS, STEP
from streams.scan import scan
from streams.types import to_unit
from tta.backbones import Backbone, load

SEED = 0
Progress = Callable[[int, int], None]


def measure(
    stream: str,
    backbone: str,
    *,
    checkpoint: Path | None = None,
    data_dir: Path | None = None,
    images: int = 100,
    level: str = "medium",
    noises: str = "",
    batch_size: int = 100,
    device: str = "cpu",
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Measure the pairs of a level that are not in the cache yet.

    Args:
        stream: ``ccc`` or one of its kin.
        backbone: A spec of ``tta.backbones.load``.
        checkpoint: Weights file of the backbone.
        data_dir: Folder of the data.
        images: Images behind each cell, drawn once; the accuracy is known to about 50 / sqrt(N) %.
        level: Whose pairs.
        noises: Corruptions, separated by commas, instead of the level's.
        batch_size: Images a forward.
        device: Torch device.
        progress: Told the images done and all images, cells of the cache included.

    Returns:
        ``key``, ``folder``, ``backbone``, ``images``, ``pairs`` and ``forwards`` of this call.

    Raises:
        UsageError: If stream, model and device do not fit.
        streams.StreamError: If data is missing, or the cache cannot be written.
        tta.AdapterError: If the backbone cannot be had.
    """
    pipeline = open_pipeline(stream, data_dir)
    chosen = level_noises(level, noises)
    model = _model(backbone, checkpoint, pipeline, device)
    total = len(pipeline.clean.labels)
    if not 1 <= images <= total:
        raise UsageError(f"images={images} is out of range: {pipeline.clean.name} has {total}")
    if batch_size < 1:
        raise UsageError(f"batch_size={batch_size} is out of range: it must be at least 1")
    matrix = Matrix(
        about={
            "backbone": model.name,
            "weights": model.weight_hash,
            "images": images,
            "seed": SEED,
            **pipeline.facts,
        }
    )
    positions = order.rng(SEED, "ccc", "matrix").choice(total, images, replace=False)
    cells = _Cells(pipeline, model, positions, batch_size, device)
    pairs = [(a, b) for a in chosen for b in chosen if a != b]
    done, forwards, size = 0, 0, POINTS * images
    for first, second in pairs:
        counts = matrix.counts(first, second)
        for row in range(POINTS):
            if (counts[row] == UNKNOWN).any():
                counts[row] = cells.row((first, STEP * row), second)
                matrix.save(first, second, counts)
                forwards += size
            done += size
            if progress:
                progress(done, len(pairs) * POINTS * size)
    return {
        "key": matrix.key,
        "folder": str(matrix.folder),
        "backbone": model.name,
        "images": images,
        "pairs": len(pairs),
        "forwards": forwards,
    }


def open_pipeline(stream: str, data_dir: Path | None) -> Pipeline:
    """The images of CCC or one of its kin.

    Raises:
        UsageError: If the stream is of another kind.
        streams.StreamError: If there is no such stream, or its data is missing.
    """
    entries = scan("streams.sources", "stream")
    entries.check(stream)
    if not stream.endswith("ccc") or stream.endswith("3dcc"):
        kin = [name for name in entries.names() if name.endswith("ccc")]
        raise UsageError(f"{stream} needs no accuracy matrix; those that do: {', '.join(kin)}")
    made: Pipeline = entries.load(stream).open_pipeline(data_dir)
    return made


def _model(spec: str, checkpoint: Path | None, pipeline: Pipeline, device: str) -> Backbone:
    model = load(spec, checkpoint=checkpoint)
    if model.num_classes != pipeline.clean.num_classes:
        raise UsageError(
            f"backbone {model.name} has {model.num_classes} classes, stream {pipeline.stream} has "
            f"{pipeline.clean.num_classes}"
        )
    try:
        model.model.to(device=device).eval().requires_grad_(False)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"device {device!r} is not available on this machine") from error
    return model


class _Cells:
    """Counts hits, row by row, on the same crops of the same images."""

    def __init__(
        self,
        pipeline: Pipeline,
        model: Backbone,
        positions: np.ndarray[Any, np.dtype[np.int64]],
        batch_size: int,
        device: str,
    ) -> None:
        samples = np.arange(len(positions))
        self.pipeline, self.model, self.device = pipeline, model, device
        self.batch_size = batch_size
        self.images = pipeline.cropped(positions, samples, SEED)
        self.ids = pipeline.ids(positions, samples)
        self.labels = torch.from_numpy(pipeline.clean.labels[positions])

    def row(self, first: tuple[str, float], second: str) -> list[int]:
        """Hits at every severity of the second corruption after the first."""
        once = self.pipeline.corrupted(self.images, [first], self.ids, SEED)
        hits: list[int] = []
        together = max(1, self.batch_size // len(self.labels))  # cells that share a forward
        for begin in range(0, POINTS, together):
            cells = [
                self.pipeline.corrupted(once, [(second, STEP * at)], self.ids, SEED)
                for at in range(begin, min(begin + together, POINTS))
            ]
            right = self._right(torch.cat(cells), self.labels.repeat(len(cells)))
            hits += right.view(len(cells), -1).sum(1).tolist()
        return hits

    def _right(self, images: Tensor, labels: Tensor) -> Tensor:
        """Whether the model names the label ``(B,)``."""
        images, right = self.pipeline.encoded(images), torch.empty(len(labels), dtype=torch.bool)
        with torch.no_grad():
            for first in range(0, len(images), self.batch_size):
                part = slice(first, first + self.batch_size)
                x = to_unit(images[part], torch.float32).to(self.device)
                right[part] = self.model.model(x).argmax(1).cpu() == labels[part]
        return right
