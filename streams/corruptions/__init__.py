"""Image corruptions of common-corruption benchmarks, batched and reproducible image by image.

Hendrycks, Dietterich: Benchmarking Neural Network Robustness to Common Corruptions and
Perturbations, 2019, arXiv:1903.12261. Importing this package loads names only; torch comes with
the first use of :func:`corrupt`, scipy and Pillow with the first corruption that needs them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from streams.corruptions.names import CORRUPTIONS, EXTRA_CORRUPTIONS, GENERATOR_VERSION

if TYPE_CHECKING:
    from streams.corruptions.engine import corrupt, corrupt_between, recompress
    from streams.corruptions.textures import frost_digest, frost_source

__all__ = [
    "CORRUPTIONS",
    "EXTRA_CORRUPTIONS",
    "GENERATOR_VERSION",
    "corrupt",
    "corrupt_between",
    "frost_digest",
    "frost_source",
    "recompress",
]

_HOME = {
    "corrupt": "engine",
    "corrupt_between": "engine",
    "frost_digest": "textures",
    "frost_source": "textures",
    "recompress": "engine",
}


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value: object = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
