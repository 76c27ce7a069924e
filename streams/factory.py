"""From a name and a protocol to a stream."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from operator import index
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from streams import settings
from streams.corruptions.names import CORRUPTIONS
from streams.errors import StreamError
from streams.scan import scan
from streams.types import Domain, ImageSource, Stream

if TYPE_CHECKING:
    import torch

_SOURCES = scan("streams.sources", "stream")
DEFAULT_BATCH_SIZE = 200


def list_streams() -> list[str]:
    """Sorted names of the streams."""
    return _SOURCES.names()


def list_settings() -> list[str]:
    """Sorted names of the settings."""
    return settings.list_settings()


def create(
    name: str,
    *,
    setting: str = "continual",
    severity: int | Sequence[int] = 5,
    corruptions: Sequence[str] | None = None,
    num_examples: int | None = None,
    batch_size: int = DEFAULT_BATCH_SIZE,
    seed: int = 0,
    shuffle: bool = True,
    data_dir: Path | str | None = None,
    dtype: torch.dtype | None = None,
) -> Stream:
    """Open a source of images and plan a stream over it; no image is read yet.

    Args:
        name: A name of ``list_streams()``.
        setting: A name of ``list_settings()``.
        severity: One severity or several, 1 to 5; with several, each is visited in turn.
        corruptions: Names in the order of the stream; the 15 standard ones by default.
        num_examples: First images of the source that take part; all by default.
        batch_size: Samples a step.
        seed: Seed of every permutation; the pixels do not depend on it.
        shuffle: Whether images are permuted inside a domain.
        data_dir: Folder of the data; embedded streams need none.
        dtype: Floating type of the images, float32 by default.

    Raises:
        StreamError: For a wrong name or value, or where the data is missing or damaged.
    """
    module = _SOURCES.load(name)
    chosen = domains_of(CORRUPTIONS if corruptions is None else corruptions, severity)
    source: ImageSource = module.open_source(Path(data_dir) if data_dir is not None else None)
    return plan_stream(
        name,
        source,
        chosen,
        setting=setting,
        num_examples=num_examples,
        batch_size=batch_size,
        seed=seed,
        shuffle=shuffle,
        dtype=dtype,
    )


def plan_stream(
    name: str,
    source: ImageSource,
    domains: Sequence[Domain],
    *,
    setting: str,
    num_examples: int | None,
    batch_size: int,
    seed: int,
    shuffle: bool,
    dtype: torch.dtype | None,
) -> Stream:
    """Plan a stream over an open source.

    Raises:
        StreamError: For a size that the source does not have, or a domain it cannot give.
    """
    total = len(source.labels)
    count = total if num_examples is None else whole("num_examples", num_examples)
    batch_size, seed = whole("batch_size", batch_size), whole("seed", seed)
    if not 1 <= count <= total:
        raise StreamError(f"num_examples={count} is out of range: {name} has {total} images")
    if batch_size < 1:
        raise StreamError(f"batch_size={batch_size} is out of range: it must be at least 1")
    if len({d.name for d in domains}) != len(domains):
        raise StreamError("a domain is named twice: give each corruption and severity once")
    for domain in domains:
        source.check(domain)
    request = settings.Request(
        domains=tuple(domains),
        positions=np.arange(count),
        labels=source.labels,
        batch_size=batch_size,
        seed=seed,
        shuffle=shuffle,
    )
    return Stream(
        name=name,
        source=source,
        plan=settings.make_plan(setting, request),
        setting=setting,
        batch_size=batch_size,
        seed=seed,
        dtype=dtype,
    )


def domains_of(corruptions: Sequence[str], severity: int | Sequence[int]) -> list[Domain]:
    """Domains of every corruption at every severity, severities outermost.

    Raises:
        StreamError: For a severity outside 1 to 5 or an empty choice.
    """
    given = severity if isinstance(severity, Iterable) else [severity]
    severities = [whole("severity", value) for value in given]
    corruptions = [corruptions] if isinstance(corruptions, str) else corruptions
    for value in severities:
        if value not in range(1, 6):
            raise StreamError(f"severity={value} is out of range: it must be 1, 2, 3, 4 or 5")
    if not severities or not len(corruptions):
        raise StreamError("a stream needs at least one corruption and one severity")
    several = len(severities) > 1
    return [
        Domain(name=f"{name}_{value}" if several else name, corruption=name, severity=value)
        for value in severities
        for name in corruptions
    ]


def whole(name: str, value: Any) -> int:
    """A Python integer from any integer.

    Raises:
        StreamError: For a value that is no integer.
    """
    try:
        return index(value)
    except TypeError:
        raise StreamError(f"{name}={value!r} must be an integer") from None
