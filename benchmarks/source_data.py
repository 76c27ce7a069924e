"""Source images for methods that need them; what the methods took from them is kept.

Never the images that are evaluated, if they can be had otherwise: a method with labels would learn
its test. In this order: the training images, where a folder holds them; clean test images that the
stream does not show; for methods without labels, the evaluated images in their clean form.
"""

from __future__ import annotations

import hashlib
import json
import pickle
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import tta
from benchmarks.errors import UsageError
from benchmarks.files import atomic_write
from benchmarks.spec import RunSpec
from streams.cache import cache_dir
from streams.errors import StreamError
from streams.order import rng
from streams.training import find_training_images
from streams.types import CLEAN, UNKNOWN, Ints, Stream, to_unit
from tta.adapter import STATE_VERSION

_LARGEST = 256 * 2**20
"""Bytes; a larger state is made again rather than kept."""


def has_clean_images(stream: Stream) -> bool:
    """Whether the stream's source holds the images without corruption."""
    try:
        stream.source.check(CLEAN)
    except StreamError:
        return False
    return True


@dataclass(frozen=True)
class SourceImages:
    """Images that a method may take its source statistics from.

    Attributes:
        read: Images ``(B, C, H, W)`` uint8 at positions ``(B,)``.
        labels: Labels of all positions.
        positions: The chosen ones ``(N,)``.
        words: What they are, for the result row.
        digest: Hash of pixels, labels and choice.
    """

    read: Callable[[Ints], Tensor]
    labels: Ints
    positions: Ints
    words: str
    digest: str

    def batches(
        self, size: int, dtype: torch.dtype, device: str
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Pairs of images ``(B, C, H, W)`` in [0, 1] and labels ``(B,)``."""
        for first in range(0, len(self.positions), size):
            at = self.positions[first : first + size]
            y = torch.from_numpy(self.labels[at])
            yield to_unit(self.read(at), dtype).to(device), y.to(device)


def find_source(spec: RunSpec, stream: Stream, labelled: bool) -> SourceImages:
    """The source images of a run: the same for every seed.

    Raises:
        UsageError: If ``--source-dir`` holds no training images that fit.
        tta.AdapterError: If a method with labels could only have those that are evaluated, or
            there are no clean images at all.
    """
    named = "labelled " if labelled else ""
    folder = spec.source_dir or spec.data_dir
    found = None if folder is None else find_training_images(spec.stream, Path(folder))
    if found is not None and found.num_classes == stream.num_classes:
        chosen = _chosen(np.arange(len(found.labels)), spec.source_images)
        words = f"{len(chosen)} {named}images of {found.name}"
        return SourceImages(found.read, found.labels, chosen, words, found.digest)
    if spec.source_dir is not None:
        raise UsageError(
            f"no training images for {spec.stream} in {spec.source_dir}: name the folder that "
            "holds them, or leave --source-dir out"
        )
    if not has_clean_images(stream):
        raise tta.AdapterError(
            f"{spec.method} needs source images, {spec.stream} has no clean ones to give: name a "
            "folder of training images with --source-dir"
        )
    labels, shown = stream.source.labels, np.unique(stream.plan.positions)
    hidden = np.setdiff1d(np.flatnonzero(labels != UNKNOWN), shown)
    hidden = hidden[hidden >= spec.skip_examples]  # what is kept aside stays unseen
    if len(hidden) >= min(spec.source_images, _FEWEST):
        chosen, words = _chosen(hidden, spec.source_images), "clean test images that are not shown"
    elif labelled:
        raise tta.AdapterError(
            f"{spec.method} learns from labelled source images, and this stream shows all but "
            f"{len(hidden)} of its own: name a folder of training images with --source-dir, or "
            "show fewer with --num-examples"
        )
    else:
        shown = shown[labels[shown] != UNKNOWN]
        chosen, words = _chosen(shown, spec.source_images), "images of the stream, clean"
    return SourceImages(
        lambda at: stream.source.images(at, CLEAN),
        labels,
        chosen,
        f"{len(chosen)} {named}{words}",
        stream.source.digest,
    )


_FEWEST = 500
"""Hidden images that make statistics, where fewer than ``--source-images`` are left."""


def _chosen(positions: Ints, limit: int) -> Ints:
    """At most ``limit`` of them, ascending; folders are sorted by class, so not the first ones."""
    drawn = rng(0, "source images").permutation(len(positions))[:limit]
    chosen: Ints = np.sort(positions[drawn])
    return chosen


def fit_source(
    adapter: tta.Adapter, spec: RunSpec, stream: Stream, images: SourceImages, model_key: str
) -> bool:
    """Give the adapter its source images, or what it took from the same ones before.

    The state is kept in the cache folder under the hash of weights, normalisation, images, options
    and versions.

    Returns:
        Whether it came from the cache.
    """
    file = _file(spec, stream, images, model_key)
    with suppress(OSError, ValueError, KeyError, RuntimeError, EOFError, pickle.UnpicklingError):
        adapter.load_source_state(torch.load(file, map_location=spec.device, weights_only=True))
        return True
    dtype = stream.dtype or torch.float32
    adapter.fit_source(images.batches(spec.batch_size, dtype, spec.device))
    state = adapter.source_state()
    if _bytes(state) <= _LARGEST:
        # A cache that cannot be written is made again next time.
        with suppress(OSError):
            file.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(file) as temporary:
                torch.save(state, temporary)
    return False


def _file(spec: RunSpec, stream: Stream, images: SourceImages, model_key: str) -> Path:
    chosen = hashlib.sha256(images.positions.tobytes()).hexdigest()
    key: list[Any] = [model_key, images.digest, chosen, str(stream.dtype), torch.__version__]
    key += [spec.method, spec.config, spec.norm, spec.norm_options, spec.window]
    # Another version of the code may compute another Fisher information or prototype.
    key += [spec.batch_size, spec.device, STATE_VERSION, version("tta-bench")]
    name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:32]
    return cache_dir() / "fitted" / f"{name}.pt"


def _bytes(value: Any) -> int:
    if isinstance(value, Tensor):
        return value.numel() * value.element_size()
    if isinstance(value, dict):
        return sum(map(_bytes, value.values()))
    return sum(map(_bytes, value)) if isinstance(value, (list, tuple)) else 0
