"""Parquet shards of encoded images, read a row group at a time."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from streams.errors import StreamError
from streams.readers.parquet import find_column, read_labels
from streams.readers.parquet_bounds import check_bounds
from streams.types import Ints

_GROUPS_HELD = 2


@dataclass(frozen=True, kw_only=True)
class Shards:
    """Rows of several files, numbered through.

    Attributes:
        paths: The files.
        starts: First row of each row group, and the number of rows at the end.
        groups: File and row group of each entry of ``starts``.
        labels: Labels of all rows.
        names: File name that the image column gives for each row; empty where it gives none.
    """

    paths: tuple[Path, ...]
    starts: Ints
    groups: tuple[tuple[int, int], ...]
    labels: Ints
    names: tuple[str, ...]
    held: OrderedDict[int, list[Any]] = field(default_factory=OrderedDict, repr=False)

    def __reduce__(self) -> tuple[Any, ...]:
        return open_shards, (self.paths,)  # another process opens the files itself

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """Bytes of each file."""
        return tuple(path.stat().st_size for path in self.paths)

    def where(self, row: int) -> str:
        """A row in words: its file and its number there."""
        at = int(np.searchsorted(self.starts, row, side="right")) - 1
        file, _ = self.groups[at]
        first = next(s for s, (f, _) in zip(self.starts, self.groups, strict=False) if f == file)
        return f"{self.paths[file]} row {row - first}"

    def read(self, row: int) -> bytes:
        """Encoded bytes of a row; ask in ascending order, a row group is read once then.

        Raises:
            StreamError: If the row holds none, or its file is damaged.
        """
        at = int(np.searchsorted(self.starts, row, side="right")) - 1
        cell = self._group(at)[row - self.starts[at]]
        data = cell.get("bytes") if isinstance(cell, dict) else cell
        if not isinstance(data, bytes):
            raise StreamError(f"{self.where(row)}: the image column holds no encoded bytes")
        return data

    def _group(self, at: int) -> list[Any]:
        if at not in self.held:
            import pyarrow as pa
            import pyarrow.parquet as pq

            file, group = self.groups[at]
            try:
                with pq.ParquetFile(self.paths[file]) as opened:
                    image = find_column(
                        self.paths[file], opened.schema_arrow.names, ("image", "img")
                    )
                    cells = opened.read_row_group(group, columns=[image]).column(0).to_pylist()
            except (pa.ArrowException, OSError, UnicodeDecodeError, LookupError) as error:
                raise StreamError(
                    f"{self.paths[file]} cannot be read as parquet; fetch it again"
                ) from error
            self.held[at] = cells
            while len(self.held) > _GROUPS_HELD:
                self.held.popitem(last=False)
        return self.held[at]


def open_shards(paths: tuple[Path, ...]) -> Shards:
    """Open shards: labels and names are read, no image is.

    Raises:
        StreamError: For a damaged file or a missing column.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    starts, groups, names = [0], [], []
    labels: list[Ints] = []
    for number, path in enumerate(paths):
        try:
            check_bounds(path)
            with pq.ParquetFile(path) as opened:
                columns = opened.schema_arrow.names
                label = find_column(path, columns, ("label", "labels"))
                image = find_column(path, columns, ("image", "img"))
                nested = pa.types.is_struct(opened.schema_arrow.field(image).type)
                table = opened.read(columns=[label, *([f"{image}.path"] if nested else [])])
                rows = [
                    opened.metadata.row_group(group).num_rows
                    for group in range(opened.num_row_groups)
                ]
                cells = table.column(image).to_pylist() if nested else [None] * len(table)
        except (pa.ArrowException, OSError, UnicodeDecodeError, LookupError) as error:
            raise StreamError(f"{path} cannot be read as parquet; fetch it again") from error
        starts += (starts[-1] + np.cumsum(rows)).tolist()
        groups += [(number, group) for group in range(len(rows))]
        labels.append(read_labels(table.column(label), f"{path} column {label}"))
        names += [(cell or {}).get("path") or "" for cell in cells]
    return Shards(
        paths=tuple(paths),
        starts=np.array(starts, dtype=np.int64),
        groups=tuple(groups),
        labels=np.concatenate(labels),
        names=tuple(names),
    )
