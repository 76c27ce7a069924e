"""The python batches of CIFAR-10 and CIFAR-100: pickles, read without running what they name.

A pickle may call any function that it names. This reader knows three names, those that an array
of bytes needs, and answers them with stand-ins of its own, so that a foreign file can at most be
refused.
"""

from __future__ import annotations

import hashlib
import io
import math
import pickle
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streams.errors import StreamError
from streams.types import Ints

_SIDE = 32
_MAX_BYTES = 1 << 28  # the largest published batch, CIFAR-100's training split, has 154 MB


class _Dtype:
    """Stands in for ``numpy.dtype``; bytes are the one type there is."""

    def __init__(self, code: object, *_: object) -> None:
        if code not in ("u1", b"u1", "|u1", b"|u1"):
            raise pickle.UnpicklingError(f"an array of {code!r}, not of bytes")

    def __setstate__(self, state: object) -> None:
        """Byte order and alignment, which bytes do not have."""


class _Array:
    """Stands in for ``numpy.ndarray``: holds shape and bytes until they are checked."""

    shape: tuple[int, ...] = (0,)
    raw: bytes = b""

    def __setstate__(self, state: Any) -> None:
        _, self.shape, _, columns_first, self.raw = state
        if columns_first:
            raise pickle.UnpicklingError("an array in column order")

    def checked(self) -> NDArray[np.uint8]:
        """The array, if its shape and its bytes agree."""
        if not isinstance(self.raw, bytes) or math.prod(self.shape) != len(self.raw):
            raise ValueError(f"shape {self.shape} for {len(self.raw)} bytes")
        return np.frombuffer(self.raw, dtype=np.uint8).reshape(self.shape)


def _empty_array(*_: object) -> _Array:
    return _Array()


def _text_to_bytes(text: str, encoding: str) -> bytes:
    """What ``_codecs.encode`` does for byte strings that newer Pythons wrote in protocol 2."""
    if encoding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError(f"text in {encoding!r}")
    return text.encode("latin1")


_KNOWN: dict[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): _empty_array,
    ("numpy._core.multiarray", "_reconstruct"): _empty_array,
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Dtype,
    ("_codecs", "encode"): _text_to_bytes,
}


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _KNOWN:
            raise pickle.UnpicklingError(f"it names {module}.{name}")
        return _KNOWN[module, name]


def read_batch(path: Path, label: str) -> tuple[NDArray[np.uint8], Ints, str]:
    """Read one batch file.

    Args:
        path: ``test_batch`` of ``cifar-10-batches-py``, or ``test`` of ``cifar-100-python``.
        label: Key of the labels, ``"labels"`` or ``"fine_labels"``.

    Returns:
        Images ``(N, 32, 32, 3)`` uint8, labels ``(N,)`` int64, and the SHA-256 of the file.

    Raises:
        StreamError: If the file is missing, damaged, names anything but an array of bytes, or holds
            arrays of another size.
    """
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise StreamError(f"{path} is larger than any CIFAR batch; it is another file")
        data = path.read_bytes()
    except OSError as error:
        raise StreamError(f"{path} cannot be read ({error.strerror})") from error
    try:
        content = _Reader(io.BytesIO(data), encoding="bytes").load()
        found = {_text(key): value for key, value in content.items()}
        pixels = found["data"].checked()
        labels = found[label]
    except KeyError as error:
        raise StreamError(f"{path} has no {error}; it is not a CIFAR batch of this kind") from None
    except Exception as error:  # a damaged pickle raises nearly anything
        reason = " ".join(str(error).split())[:100]
        raise StreamError(
            f"{path} cannot be read as a CIFAR batch ({reason}); unpack the archive again"
        ) from None
    if pixels.ndim != 2 or pixels.shape[1] != 3 * _SIDE * _SIDE:
        raise StreamError(f"{path}: data must be (N, {3 * _SIDE * _SIDE}), got {pixels.shape}")
    if not isinstance(labels, list) or not all(type(value) is int for value in labels):
        raise StreamError(f"{path}: {label} must be a list of integers")
    if len(labels) != len(pixels) or not labels:
        raise StreamError(f"{path}: {len(pixels)} images but {len(labels)} labels")
    images = pixels.reshape(-1, 3, _SIDE, _SIDE).transpose(0, 2, 3, 1)
    targets = np.array(labels, dtype=np.int64)
    return np.ascontiguousarray(images), targets, hashlib.sha256(data).hexdigest()


def _text(key: object) -> str:
    return key.decode("latin1") if isinstance(key, bytes) else str(key)
