"""Declared states as JSON and tensors: plain containers of numbers and tensors, and back."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def encode(value: Any, tensors: dict[str, Tensor]) -> Any:
    """``value`` as JSON; its tensors go into ``tensors``, equal ones once.

    >>> encode({"a": (1, None)}, {})
    {'dict': [['a', {'tuple': [1, None]}]]}

    Raises:
        TypeError: For anything but numbers, strings, ``None``, tensors and plain containers.
    """
    if isinstance(value, Tensor):
        value = value.detach().cpu()
        last = is_channels_last(value)
        key = digest(value) + ("-last" if last else "")
        tensors[key] = value.contiguous()
        return {"tensor": key, "channels_last": True} if last else {"tensor": key}
    if isinstance(value, dict):
        return {"dict": [[key, encode(item, tensors)] for key, item in value.items()]}
    if type(value) in (list, tuple):
        return {type(value).__name__: [encode(item, tensors) for item in value]}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"a {type(value).__name__} cannot be written without pickling it")


def decode(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    """Counterpart of ``encode``.

    Raises:
        KeyError: For a tensor that is not there.
        TypeError: For what ``encode`` does not write.
        ValueError: Likewise.
    """
    if not isinstance(value, dict):
        if isinstance(value, list):
            raise TypeError("a bare list")
        return value
    if "tensor" in value:
        tensor = tensors[value["tensor"]].clone()
        # The layout decides which kernel runs, and so the last bits.
        layout = torch.channels_last if value.get("channels_last") else torch.contiguous_format
        return tensor.contiguous(memory_format=layout)
    [(kind, items)] = value.items()
    if kind == "dict":
        return {key: decode(item, tensors) for key, item in items}
    if kind not in ("list", "tuple"):
        raise TypeError(kind)
    made = [decode(item, tensors) for item in items]
    return made if kind == "list" else tuple(made)


def digest(value: Tensor) -> str:
    """32 hexadecimal digits over dtype, shape and bytes."""
    head = f"{value.dtype}|{tuple(value.shape)}|".encode()
    return hashlib.sha256(head + as_bytes(value).numpy().tobytes()).hexdigest()[:32]


def same_bits(left: Tensor, right: Tensor) -> bool:
    """Equality of dtype, shape and every bit: NaN equals itself, and -0 is not 0."""
    if left.dtype != right.dtype or left.shape != right.shape:
        return False
    return torch.equal(as_bytes(left), as_bytes(right))


def as_bytes(value: Tensor) -> Tensor:
    """The bytes of a tensor in the order of its elements, uint8 on the CPU."""
    return value.detach().cpu().contiguous().reshape(-1).view(torch.uint8)


def is_channels_last(value: Tensor) -> bool:
    """Whether a tensor lies in memory channels last and not in the usual order too."""
    return (
        value.ndim == 4
        and not value.is_contiguous()
        and value.is_contiguous(memory_format=torch.channels_last)
    )
