"""NumPy ``.npy`` files, memory-mapped and never unpickled."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from streams.errors import StreamError
from streams.types import Ints

_PICKLE = b"\x80"  # first byte of every pickle since protocol 2


def open_array(path: Path) -> NDArray[np.generic]:
    """Memory-map a ``.npy`` file.

    Raises:
        StreamError: For a missing, truncated, foreign or pickled file.
    """
    if not path.is_file():
        raise StreamError(f"{path.name} is missing from {path.parent}")
    try:
        # np.load would also open an archive under this name, and hand out no array.
        array: NDArray[np.generic] = np.lib.format.open_memmap(path, mode="r")
    except Exception as error:  # a damaged header raises nearly anything
        objects = path.is_file() and _holds_objects(path, error)
        reason = "it holds Python objects" if objects else "truncated or not .npy"
        raise StreamError(f"{path} cannot be read ({reason}); fetch the file again") from error
    return array


def _holds_objects(path: Path, error: Exception) -> bool:
    with path.open("rb") as file:
        return "Python objects" in str(error) or file.read(1) == _PICKLE


def open_images(path: Path) -> NDArray[np.uint8]:
    """Memory-map images ``(N, H, W, 3)`` uint8.

    Raises:
        StreamError: As ``open_array``, and for another type or shape.
    """
    array = open_array(path)
    if array.dtype != np.uint8 or array.ndim != 4 or array.shape[3] != 3:
        raise StreamError(
            f"{path}: images must be uint8 (N, H, W, 3), got {array.dtype} {array.shape}"
        )
    return array  # type: ignore[return-value]


def read_labels(path: Path) -> Ints:
    """Labels ``(N,)`` int64.

    Raises:
        StreamError: As ``open_array``, and for another type or shape.
    """
    array = open_array(path)
    if array.ndim != 1 or not np.issubdtype(array.dtype, np.integer) or not len(array):
        raise StreamError(f"{path}: labels must be (N,) integers, got {array.dtype} {array.shape}")
    return np.asarray(array, dtype=np.int64)
