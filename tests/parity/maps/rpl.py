"""Options of the RPL traces."""

from __future__ import annotations

from typing import Any

from maps import eta
from torch import Tensor

import tta


def options(method: str, given: dict[str, Any]) -> dict[str, Any]:
    return {"q": given["RPL.Q"]} if "RPL.Q" in given else {}


def tensors(adapter: tta.Adapter) -> dict[str, Tensor]:
    """As for ETA."""
    return eta.tensors(adapter)
