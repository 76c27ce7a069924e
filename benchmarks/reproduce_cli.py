"""``tta-bench reproduce``."""

from __future__ import annotations


def reproduce() -> None:
    """Set published numbers beside ours."""
