"""What a parquet file may announce: a few bytes of run lengths can stand for billions of rows."""

from __future__ import annotations

from pathlib import Path

# A file may have as many of each as bytes, small ones some more.
_ROWS, _VALUES = 1 << 20, 1 << 24
_UNPACKED, _RATIO = 1 << 28, 64


def check_bounds(path: Path) -> None:
    """Look at the footer before anything is unpacked.

    Raises:
        pyarrow.ArrowInvalid: If it announces more than a file of its size may hold, or is damaged.
        OSError: If the file cannot be read.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    size, told = path.stat().st_size, pq.read_metadata(path)
    groups = [told.row_group(number) for number in range(told.num_row_groups)]
    values = sum(
        group.column(number).num_values for group in groups for number in range(group.num_columns)
    )
    unpacked = sum(group.total_byte_size for group in groups)
    rows = max(told.num_rows, sum(group.num_rows for group in groups))
    if (
        rows > max(_ROWS, size)
        or values > max(_VALUES, _RATIO * size)
        or unpacked > max(_UNPACKED, _RATIO * size)
    ):
        raise pa.ArrowInvalid(
            f"{size:,} bytes announce {rows:,} rows, {values:,} values, {unpacked:,} bytes"
        )
