"""Image data sets in the hub's parquet layout: an image column of encoded bytes and a label."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streams.errors import StreamError
from streams.readers.images import Prepare, read_image
from streams.readers.parquet_bounds import check_bounds
from streams.types import Ints

_IMAGE_COLUMNS = ("img", "image")
_LABEL_COLUMNS = ("label", "labels", "fine_label")
_ROWS_AT_ONCE = 64


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
        check_bounds(path)
        names = pq.read_schema(path).names
        image = find_column(path, names, _IMAGE_COLUMNS)
        label = find_column(path, names, _LABEL_COLUMNS)
        labels = pq.read_table(path, columns=[label]).column(label)
        pixels = np.empty((len(labels), *size, 3), dtype=np.uint8)
        row = 0
        # A dictionary may let one large value stand for every row: never all at once.
        with pq.ParquetFile(path) as opened:
            for batch in opened.iter_batches(_ROWS_AT_ONCE, columns=[image]):
                for cell in batch.column(0).to_pylist():
                    pixels[row] = _decode(cell, size, f"{path} row {row}")
                    row += 1
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise StreamError(
            f"{path} cannot be read as parquet (truncated, or another format); fetch it again"
        ) from error
    return pixels, read_labels(labels, f"{path} column {label}"), digest


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
    data = cell.get("bytes") if isinstance(cell, dict) else cell
    if not isinstance(data, bytes):
        raise StreamError(f"{where}: the image column holds no encoded bytes")
    return read_image(data, Prepare(resize=None, height=size[0], width=size[1]), where)
