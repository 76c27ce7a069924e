"""The folder of what can be computed again."""

from __future__ import annotations

import os
from pathlib import Path


def cache_dir() -> Path:
    """``$TTA_BENCH_CACHE``, else the user's cache folder."""
    if given := os.environ.get("TTA_BENCH_CACHE"):
        return Path(given)
    from platformdirs import user_cache_dir

    return Path(user_cache_dir("tta-bench"))
