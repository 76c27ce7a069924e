"""Options of the LAME traces."""

from __future__ import annotations

from typing import Any


def options(method: str, given: dict[str, Any]) -> dict[str, Any]:
    return {
        "affinity": given["LAME.AFFINITY"].lower(),
        "neighbours": given["LAME.KNN"],
        "symmetric": given["LAME.FORCE_SYMMETRY"],
        "output": "probabilities",
    }
