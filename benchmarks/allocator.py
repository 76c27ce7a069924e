"""The allocator of a command's process."""

from __future__ import annotations

import os


def keep_freed_memory() -> bool:
    """``tta.allocator.keep_freed_memory``; ``TTA_BENCH_MALLOC=system`` turns it off.

    Returns:
        Whether it took effect.
    """
    from tta.allocator import keep_freed_memory as keep

    return os.environ.get("TTA_BENCH_MALLOC", "keep") == "keep" and keep()
