"""Streams of test images: a plan over pixels that depend on (image id, corruption, severity, seed).

``streams.create("fashion-mnist-c", severity=5)`` needs no download. Importing this package imports
neither torch nor numpy; the first use does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from streams.errors import StreamError

if TYPE_CHECKING:
    from streams.arrays import from_arrays
    from streams.factory import create, list_settings, list_streams
    from streams.learning_factory import (
        create_learning,
        list_learning_settings,
        list_learning_streams,
    )
    from streams.types import Batch, Domain, ImageSource, Provenance, Stream

__all__ = [
    "Batch",
    "Domain",
    "ImageSource",
    "Provenance",
    "Stream",
    "StreamError",
    "create",
    "create_learning",
    "from_arrays",
    "list_learning_settings",
    "list_learning_streams",
    "list_settings",
    "list_streams",
]

_HOMES = {
    "Batch": "streams.types",
    "Domain": "streams.types",
    "ImageSource": "streams.types",
    "Provenance": "streams.types",
    "Stream": "streams.types",
    "create": "streams.factory",
    "create_learning": "streams.learning_factory",
    "from_arrays": "streams.arrays",
    "list_learning_settings": "streams.learning_factory",
    "list_learning_streams": "streams.learning_factory",
    "list_settings": "streams.factory",
    "list_streams": "streams.factory",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'streams' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
