"""The idx format of the MNIST family: a big-endian header of sizes, then unsigned bytes.

Header: two zero bytes, the type code ``0x08`` (unsigned byte), the number of axes, then one 32-bit
big-endian length an axis. Files may be gzip-compressed; the first two bytes decide, not the name.
"""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path
from typing import IO, cast

import numpy as np
import numpy.typing as npt

from streams.errors import StreamError

_UNSIGNED_BYTE = 0x08
_GZIP_MAGIC = b"\x1f\x8b"
# A header is read before its data is believed: no header can ask for more memory than this.
_MAX_BYTES = 1 << 30


def read_images(path: Path) -> npt.NDArray[np.uint8]:
    """Read an idx3 file of grey images.

    Args:
        path: An ``...-images-idx3-ubyte`` file, gzip-compressed or not.

    Returns:
        Images ``(N, H, W)``, uint8 in [0, 255].

    Raises:
        StreamError: If the file is missing, not idx3, truncated, too long or not readable.
    """
    return _read(Path(path), axes=3)


def read_labels(path: Path) -> npt.NDArray[np.int64]:
    """Read an idx1 file of labels.

    Args:
        path: An ``...-labels-idx1-ubyte`` file, gzip-compressed or not.

    Returns:
        Labels ``(N,)``, int64 (what ``cross_entropy`` takes).

    Raises:
        StreamError: If the file is missing, not idx1, truncated, too long or not readable.
    """
    return _read(Path(path), axes=1).astype(np.int64)


def _read(path: Path, axes: int) -> npt.NDArray[np.uint8]:
    try:
        with _open(path) as file:
            shape = _read_shape(file, path, axes)
            expected = math.prod(shape)
            if expected > _MAX_BYTES:
                raise StreamError(
                    f"{path}: header announces {shape} = {expected} bytes, more than the "
                    f"{_MAX_BYTES} this reader takes; the file is damaged or not an idx file"
                )
            # One byte more than announced shows a file that goes on after its data.
            data = file.read(expected + 1)
    except FileNotFoundError:
        raise StreamError(
            f"{path}: no such file; give the path of an idx file (.gz or not)"
        ) from None
    except (EOFError, zlib.error, gzip.BadGzipFile):
        raise StreamError(f"{path}: gzip data is truncated or damaged; download it again") from None
    except OSError as error:
        raise StreamError(f"{path}: cannot be read ({error.strerror or error})") from None
    if len(data) != expected:
        found = f"{len(data)}" if len(data) < expected else f"more than {expected}"
        raise StreamError(
            f"{path}: header announces {shape} = {expected} bytes of data, found {found}; "
            "download it again"
        )
    values: npt.NDArray[np.uint8] = np.frombuffer(data, dtype=np.uint8).reshape(shape).copy()
    return values


def _open(path: Path) -> IO[bytes]:
    with path.open("rb") as file:
        compressed = file.read(2) == _GZIP_MAGIC
    return cast("IO[bytes]", gzip.open(path, "rb")) if compressed else path.open("rb")


def _read_shape(file: IO[bytes], path: Path, axes: int) -> tuple[int, ...]:
    head = file.read(4)
    wanted = bytes((0, 0, _UNSIGNED_BYTE, axes))
    if head != wanted:
        kind = "images (idx3)" if axes == 3 else "labels (idx1)"
        raise StreamError(
            f"{path}: starts with 0x{head.hex() or '(empty)'}, expected 0x{wanted.hex()} of "
            f"{kind}; check that images and labels are not swapped"
        )
    sizes = file.read(4 * axes)
    if len(sizes) != 4 * axes:
        raise StreamError(f"{path}: ends inside its header; download it again")
    return struct.unpack(f">{axes}I", sizes)
