"""``tta-bench sweep``."""

from __future__ import annotations


def sweep() -> None:
    """Run a grid of methods, streams, settings, backbones, seeds and options."""
