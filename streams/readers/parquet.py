"""Image data sets in the hub's parquet layout: an image column of encoded bytes and a label."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streams.errors import StreamError
from streams.types import Ints

_IMAGE_COLUMNS = ("img", "image")
_LABEL_COLUMNS = ("label", "labels", "fine_label")


def read_images(path: Path, size: tuple[int, int]) -> tuple[NDArray[np.uint8], Ints, str]:
    """Decode a parquet file whole.

    Args:
        path: The file.
        size: Height and width that every image must have.

    Returns:
        Images ``(N, H, W, 3)`` uint8, labels ``(N,)`` int64, and the SHA-256 of the file.

    Raises:
        StreamError: For a damaged file, a missing column, or an image that does not decode or has
            another size, with its row.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        names = pq.read_schema(path).names
        image = find_column(path, names, _IMAGE_COLUMNS)
        label = find_column(path, names, _LABEL_COLUMNS)
        table = pq.read_table(path, columns=[image, label])
    except (pa.ArrowException, OSError) as error:
        raise StreamError(
            f"{path} cannot be read as parquet (truncated, or another format); fetch it again"
        ) from error
    cells = table.column(image).to_pylist()
    pixels = np.empty((len(cells), *size, 3), dtype=np.uint8)
    for row, cell in enumerate(cells):
        pixels[row] = _decode(cell, size, f"{path} row {row}")
    return pixels, read_labels(table.column(label), f"{path} column {label}"), digest


def read_labels(column: Any, where: str) -> Ints:
    """Labels ``(N,)`` of an arrow column.

    Raises:
        StreamError: If they are no integers, or one is missing.
    """
    import pyarrow as pa

    if not pa.types.is_integer(column.type):
        raise StreamError(f"{where}: labels must be integers, got {column.type}")
    if column.null_count:
        row = column.is_null().to_pylist().index(True)
        raise StreamError(f"{where}: the label of row {row} is missing")
    return np.asarray(column.to_numpy(), dtype=np.int64)


def find_column(path: Path, names: list[str], wanted: tuple[str, ...]) -> str:
    """The first wanted name that a file has.

    Raises:
        StreamError: If it has none.
    """
    for name in wanted:
        if name in names:
            return name
    raise StreamError(f"{path} has no column {' or '.join(wanted)}; it has {', '.join(names)}")


def _decode(cell: object, size: tuple[int, int], where: str) -> NDArray[np.uint8]:
    from PIL import Image, UnidentifiedImageError

    data = cell.get("bytes") if isinstance(cell, dict) else cell
    if not isinstance(data, bytes):
        raise StreamError(f"{where}: the image column holds no encoded bytes")
    try:
        decoded = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError) as error:
        raise StreamError(f"{where}: the image does not decode ({error})") from error
    if decoded.shape[:2] != size:
        raise StreamError(f"{where}: the image is {decoded.shape[:2]}, expected {size}")
    return decoded
