"""``steps.parquet`` in a few arrays."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from benchmarks.errors import UsageError
from benchmarks.results import STEP_SCHEMA
from streams.readers.parquet_bounds import check_bounds

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
MIXED = -1
_COLUMNS = ("step", "domain", "visit", "n", "unknown", "correct", "non_finite")
_BINS = ("ece_count", "ece_correct", "ece_confidence")


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Rows of the file ``(R,)``: one for each step, visit and domain."""

    step: Ints
    domain: Ints
    visit: Ints
    n: Ints
    correct: Ints
    non_finite: Ints


@dataclass(frozen=True, kw_only=True)
class Steps:
    """A run over its steps.

    Attributes:
        names: Names of the domains.
        rows: The rows as they stand in the file; ``domain`` indexes ``names``.
        domain: Domain of each step ``(S,)``; ``MIXED`` where a batch holds several.
        n: Samples of known classes ``(S,)``.
        correct: Correct ones ``(S,)``.
        images: All samples ``(S,)``.
        selected: Share learnt from ``(S,)``; NaN where nothing is selected.
        bins: Samples, correct ones, and summed confidence by bin of confidence ``(3, bins)``.
        guard: Step, domain and words of each event of the guard.
    """

    names: tuple[str, ...]
    rows: Rows
    domain: Ints
    n: Ints
    correct: Ints
    images: Ints
    selected: Floats
    bins: Floats
    guard: tuple[tuple[int, str, str], ...] = ()

    def __len__(self) -> int:
        return len(self.n)


def read_steps(file: Path) -> Steps | None:
    """A run's steps; ``None`` where there is no such file.

    Raises:
        UsageError: If the file is damaged.
    """
    if not file.is_file():
        return None
    try:
        check_bounds(file)
        table = pq.read_table(file, schema=STEP_SCHEMA)
        said = _events(table)
        table = table.select([*_COLUMNS, "selected_fraction", *_BINS])
        if table["domain"].null_count:
            raise pa.ArrowInvalid("a row without a domain")
    except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
        raise UsageError(f"{file} cannot be read; run it again with --overwrite") from error
    if not len(table):
        return None
    names = table["domain"].combine_chunks().dictionary_encode()
    columns = {name: _ints(table[name]) for name in _COLUMNS if name != "domain"}
    domain = names.indices.to_numpy(zero_copy_only=False).astype(np.int64)
    images = columns.pop("unknown") + columns["n"]
    rows = Rows(domain=domain, **columns)
    starts = np.flatnonzero(np.r_[True, np.diff(rows.step) != 0])
    same = np.maximum.reduceat(domain, starts) == np.minimum.reduceat(domain, starts)
    selected = table["selected_fraction"].to_numpy(zero_copy_only=False).astype(np.float64)
    return Steps(
        names=tuple(names.dictionary.to_pylist()),
        rows=rows,
        domain=np.where(same, domain[starts], MIXED),
        n=np.add.reduceat(rows.n, starts),
        correct=np.add.reduceat(rows.correct, starts),
        images=np.add.reduceat(images, starts),
        selected=selected[starts],
        bins=np.stack([_bins(table[name]) for name in _BINS]),
        guard=said,
    )


def _events(table: pa.Table) -> tuple[tuple[int, str, str], ...]:
    """What a guard did."""
    rows = table.select(["step", "domain", "guard_event"]).to_pylist()
    return tuple(
        (row["step"], row["domain"], row["guard_event"]) for row in rows if row["guard_event"]
    )


def _ints(column: Any) -> Ints:
    """Whole numbers; -1 where there is none."""
    made: Ints = column.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
    return made


def _bins(column: Any) -> Floats:
    """Sum over the rows of a column of lists."""
    values = column.combine_chunks().flatten().to_numpy(zero_copy_only=False)
    summed: Floats = values.reshape(len(column), -1).astype(np.float64).sum(0)
    return summed
