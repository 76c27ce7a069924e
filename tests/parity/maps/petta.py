"""Options of PeTTA traces: none is stored yet, one that is made names them as the config does."""

from __future__ import annotations

from typing import Any

from numpy.lib.npyio import NpzFile

import tta


def options(method: str, given: dict[str, Any]) -> dict[str, Any]:
    return dict(given)


def install(adapter: tta.Adapter, meta: dict[str, Any], arrays: NpzFile) -> None:
    if meta["method"].endswith("_hflip"):
        adapter.augment = lambda x, purpose: x.flip(-1)  # type: ignore[attr-defined]
