"""``tta-bench tune``."""

from __future__ import annotations


def tune() -> None:
    """Give every method the same budget of trials on a tuning stream."""
