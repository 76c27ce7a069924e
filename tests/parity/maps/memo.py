"""Options of a MEMO trace, under the names of the re-implementation; none is stored so far."""

from __future__ import annotations

from typing import Any

_OURS = {"BN.ALPHA": "bn_weight", "TEST.N_AUGMENTATIONS": "num_views"}


def options(method: str, given: dict[str, Any]) -> dict[str, Any]:
    options = {ours: given[key] for key, ours in _OURS.items() if key in given}
    return {**options, "parameters": "named", "keep_moments": False}
