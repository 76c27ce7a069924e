"""The clean images of a stream, for methods that need source data; what they took is kept."""

from __future__ import annotations

import hashlib
import json
import pickle
from collections.abc import Iterator
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import tta
from benchmarks.files import atomic_write
from benchmarks.spec import RunSpec
from streams.cache import cache_dir
from streams.errors import StreamError
from streams.types import CLEAN, Stream
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


def clean_images(stream: Stream, limit: int, device: str) -> Iterator[tuple[Tensor, Tensor]]:
    """The first ``limit`` clean images in order, as pairs ``(x (B, C, H, W), y (B,))``."""
    left = limit
    for x, y in stream.clean_batches():
        yield x[:left].to(device), y[:left].to(device)
        left -= len(y)
        if left <= 0:
            return


def fit_source(adapter: tta.Adapter, spec: RunSpec, stream: Stream, weight_hash: str) -> bool:
    """Give the adapter its source images, or what it took from the same ones before.

    The state is kept in the cache folder under the hash of weights, images, options and versions.

    Returns:
        Whether it came from the cache.
    """
    file = _file(spec, stream, weight_hash)
    with suppress(OSError, ValueError, KeyError, RuntimeError, EOFError, pickle.UnpicklingError):
        adapter.load_source_state(torch.load(file, map_location=spec.device, weights_only=True))
        return True
    adapter.fit_source(clean_images(stream, spec.source_images, spec.device))
    state = adapter.source_state()
    if _bytes(state) <= _LARGEST:
        # A cache that cannot be written is made again next time.
        with suppress(OSError):
            file.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(file) as temporary:
                torch.save(state, temporary)
    return False


def _file(spec: RunSpec, stream: Stream, weight_hash: str) -> Path:
    key: list[Any] = [weight_hash, stream.hash, str(stream.dtype), torch.__version__]
    key += [spec.method, spec.config, spec.norm, spec.norm_options, spec.window]
    # Another version of the code may compute another Fisher information or prototype.
    key += [spec.source_images, spec.batch_size, spec.device, STATE_VERSION, version("tta-bench")]
    name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:32]
    return cache_dir() / "fitted" / f"{name}.pt"


def _bytes(value: Any) -> int:
    if isinstance(value, Tensor):
        return value.numel() * value.element_size()
    if isinstance(value, dict):
        return sum(map(_bytes, value.values()))
    return sum(map(_bytes, value)) if isinstance(value, (list, tuple)) else 0
