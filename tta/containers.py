"""Plain containers of numbers and tensors, as adapters keep their state in."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
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


def nbytes(value: Any) -> int:
    """Bytes of all tensors in a plain container; memory that several of them share counts once."""
    sizes: dict[int, int] = {}
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, Tensor):
            storage = item.untyped_storage()
            sizes[storage.data_ptr()] = storage.nbytes()
        elif isinstance(item, Mapping):
            waiting.extend(item.values())
        elif isinstance(item, (list, tuple)):
            waiting.extend(item)
    return sum(sizes.values())


def share(tensors: Mapping[str, Tensor], frozen: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
    """The same tensors, each value kept once: of a model and its copies one is enough.

    Args:
        tensors: By dotted name; none of them is ever written to.
        frozen: Named tensors outside that are never written to either.

    Returns:
        ``tensors``; where another has the same values, and the same name below its first part, the
        two are one.
    """
    kept: dict[str, list[Tensor]] = {}
    for name, tensor in frozen:
        kept.setdefault(name.partition(".")[2], []).append(tensor.detach())
    made = {}
    for name, tensor in tensors.items():
        twins = kept.setdefault(name.partition(".")[2], [])
        for twin in twins:
            alike = (twin.shape, twin.dtype, twin.device) == (
                *(tensor.shape, tensor.dtype, tensor.device),
            )
            if alike and twin.equal(tensor):
                made[name] = twin
                break
        else:
            made[name] = tensor
            twins.append(tensor)
    return made
