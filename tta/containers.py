"""Plain containers of numbers and tensors, as adapters keep their state in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor


def map_tensors(fn: Callable[[Tensor], Tensor], value: Any) -> Any:
    """``value`` with ``fn`` applied to its floating tensors; the others follow to their device."""
    if isinstance(value, Tensor):
        return fn(value) if value.is_floating_point() else value.to(fn(value.float()).device)
    if isinstance(value, dict):
        return {key: map_tensors(fn, item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(map_tensors(fn, item) for item in value)
    return value
