"""Options of the norm traces."""

from __future__ import annotations

from typing import Any


def options(method: str, given: dict[str, Any]) -> dict[str, Any]:
    options: dict[str, Any] = {"statistics": method.split("_")[1]}
    if "BN.ALPHA" in given:
        options["alpha"] = given["BN.ALPHA"]
    return options
