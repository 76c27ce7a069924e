"""Options of the T3A traces."""

from __future__ import annotations

from typing import Any


def options(method: str, given: dict[str, Any]) -> dict[str, Any]:
    return {"supports": given["filter_K"]}
