"""Options of the RDumb traces."""

from __future__ import annotations

from typing import Any

from maps import eta


def options(method: str, given: dict[str, Any]) -> dict[str, Any]:
    every = given.get("MODEL.RESET_AFTER_NUM_UPDATES", 1000)
    return {**eta.options(method, given), "reset_every": every, "reset_mean": True}
