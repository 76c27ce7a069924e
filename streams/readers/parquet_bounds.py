"""What a parquet file may announce: a few bytes of run lengths can stand for billions of rows."""

from __future__ import annotations

from pathlib import Path

# A file may have as many rows as bytes, a small one some more.
_ROWS = 1 << 20
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
    # No look at the columns: pyarrow ends the process where their statistics are damaged.
    groups = [told.row_group(number) for number in range(told.num_row_groups)]
    unpacked = sum(group.total_byte_size for group in groups)
    rows = max(told.num_rows, sum(group.num_rows for group in groups))
    if rows > max(_ROWS, size) or unpacked > max(_UNPACKED, _RATIO * size):
        raise pa.ArrowInvalid(f"{size:,} bytes announce {rows:,} rows, {unpacked:,} bytes")
