"""``tta-bench compare``."""

from __future__ import annotations


def compare() -> None:
    """Say in words why two runs differ."""
