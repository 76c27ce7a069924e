"""``tta-bench report``."""

from __future__ import annotations


def report() -> None:
    """Write one self-contained page about finished runs."""
