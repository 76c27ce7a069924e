"""``tta-bench watch``."""

from __future__ import annotations


def watch() -> None:
    """Show how a sweep stands, in the terminal."""
