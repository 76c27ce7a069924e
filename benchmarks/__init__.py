"""Runs, metrics, results and leaderboards; ``tta-bench`` is its command line.

Importing this package imports nothing heavy; the first use does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.errors import UsageError

if TYPE_CHECKING:
    from benchmarks.runner import run
    from benchmarks.spec import RunSpec, resolve

__all__ = ["RunSpec", "UsageError", "resolve", "run"]

_HOMES = {
    "RunSpec": "benchmarks.spec",
    "resolve": "benchmarks.spec",
    "run": "benchmarks.runner",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'benchmarks' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
