"""Options of the RoTTA traces; their augmentation is a horizontal flip."""

from __future__ import annotations

from typing import Any

from numpy.lib.npyio import NpzFile

import tta


def options(method: str, given: dict[str, Any]) -> dict[str, Any]:
    ours = {
        "ROTTA.MEMORY_SIZE": "capacity",
        "ROTTA.UPDATE_FREQUENCY": "update_every",
        "ROTTA.NU": "nu",
        "ROTTA.ALPHA": "alpha",
        "ROTTA.LAMBDA_T": "lambda_t",
        "ROTTA.LAMBDA_U": "lambda_u",
    }
    return {name: given[key] for key, name in ours.items() if key in given}


def install(adapter: tta.Adapter, meta: dict[str, Any], arrays: NpzFile) -> None:
    if meta["method"].endswith("_hflip"):
        adapter.augment = lambda x, purpose: x.flip(-1)  # type: ignore[attr-defined]
