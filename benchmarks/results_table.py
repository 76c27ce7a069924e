"""One flat row a run with documented types: what ``results export`` writes."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from benchmarks.errors import UsageError
from benchmarks.files import asked_for
from benchmarks.results import SCHEMA_VERSION
from continual.metrics import FORMS, METRICS

_INT, _FLOAT, _TEXT, _FLAG = pa.int64(), pa.float64(), pa.string(), pa.bool_()

# Columns of every table, in this order; null where a run has no value.
COLUMNS: dict[str, pa.DataType] = {
    **{"schema_version": _INT, "run_id": _TEXT, "method": _TEXT, "protocol": _TEXT},
    **{"stream": _TEXT, "setting": _TEXT, "backbone": _TEXT, "seed": _INT},
    **{"error_pct": _FLOAT, "source_error_pct": _FLOAT, "clean_error_pct": _FLOAT},
    **{"source_clean_error_pct": _FLOAT, "worst_domain": _TEXT},
    **{"first_visit_error_pct": _FLOAT, "last_visit_error_pct": _FLOAT},
    **{"visit_error_pct": pa.list_(_FLOAT), "visit_domain": pa.list_(_TEXT)},
    **{"round_error_pct": pa.list_(_FLOAT), "num_samples": _INT, "num_unknown": _INT},
    **{"num_steps": _INT, "non_finite": _INT, "open_set": _TEXT, "auroc_pct": _FLOAT},
    **{"fpr95_pct": _FLOAT, "auroc_energy_pct": _FLOAT, "fpr95_energy_pct": _FLOAT},
    **{"h_score_pct": _FLOAT, "nll": _FLOAT, "brier": _FLOAT, "ece_pct": _FLOAT},
    **{"entropy": _FLOAT, "forwards_per_image": _FLOAT, "backwards_per_image": _FLOAT},
    **{"selected_fraction": _FLOAT, "updates_refused": _INT, "config": _TEXT},
    **{"batch_size": _INT, "severity": _TEXT, "num_examples": _INT, "reset_policy": _TEXT},
    **{"predicts": _TEXT, "norm": _TEXT, "window": _INT, "source_data": _TEXT},
    **{"guard": _TEXT, "budget": _TEXT, "guard_alarms": _INT, "guard_source_pct": _FLOAT},
    **{"guard_forwards_per_image": _FLOAT, "estimate_mae": _FLOAT, "confidence_mae": _FLOAT},
    **{"agreement_mae": _FLOAT, "degraded_pct": _FLOAT},
    **{"tuned_trials": _INT, "tuned_on": _TEXT},
    **{"provenance": _TEXT, "stream_hash": _TEXT, "weights": _TEXT, "weight_hash": _TEXT},
    **{"normalisation": _TEXT, "device": _TEXT, "dtype": _TEXT, "threads": _INT},
    **{"layout": _TEXT, "amp": _TEXT, "compiled": _FLAG},
    **{"version_tta_bench": _TEXT, "version_torch": _TEXT, "version_timm": _TEXT},
    **{"version_numpy": _TEXT, "version_python": _TEXT, "seconds": _FLOAT},
    **{"images_per_second": _FLOAT, "seconds_per_1k": _FLOAT, "peak_mem_mib": _FLOAT},
}
# Columns of learning streams that are no float64; they are there where a run has them.
LEARNING: dict[str, pa.DataType] = {
    **{"num_tasks": _INT, "num_items": _INT, "num_evaluations": _INT, "train_steps": _INT},
    **{"eval_every": _INT, "carry": _FLAG, "weights_by_seed": _FLAG, "worst_segment": _TEXT},
    **{"version_avalanche": _TEXT, "forgets": _TEXT},
    **{f"{form}_{metric}_pct": _FLOAT for form in FORMS for metric in METRICS},
}
_BY_DOMAIN = ("error_pct_", "segment_error_pct_")


def table_of(rows: Iterable[Mapping[str, Any]]) -> pa.Table:
    """A table of runs.

    Args:
        rows: Rows of finished runs.

    Returns:
        ``COLUMNS``, then what the runs have beside it: errors by domain, columns of learning, any
        other. Rows by stream, setting, backbone, method, seed, ``run_id``.

    Raises:
        UsageError: If a value is not of its column's type.
    """
    order = ("stream", "setting", "backbone", "method", "seed", "run_id")
    ordered = sorted(rows, key=lambda row: tuple(row[key] for key in order))
    schema = _schema(ordered)
    return pa.Table.from_arrays([_array(ordered, column) for column in schema], schema=schema)


def export(rows: Sequence[Mapping[str, Any]], path: Path) -> int:
    """Write runs as Parquet, CSV or JSON lines, by the file's suffix.

    Returns:
        Number of rows.

    Raises:
        UsageError: For another suffix, a damaged row, or a file that cannot be written.
    """
    write = _WRITERS.get(path.suffix)
    if write is None:
        raise UsageError(f"cannot export to {path.name!r}: use {', '.join(_WRITERS)}")
    table = table_of(rows)
    with asked_for(path) as temporary:
        write(table, temporary)
    return int(table.num_rows)


def _schema(rows: Sequence[Mapping[str, Any]]) -> pa.Schema:
    names = dict.fromkeys(key for row in rows for key in row if key not in COLUMNS)
    domains = [key for key in names if key.startswith(_BY_DOMAIN)]
    learning = [key for key in LEARNING if key in names]
    rest = sorted(set(names) - set(domains) - set(learning))
    types = {
        **COLUMNS,
        **dict.fromkeys(domains, _FLOAT),
        **{key: LEARNING[key] for key in learning},
        **{key: _guess([row.get(key) for row in rows]) for key in rest},
    }
    return pa.schema(types, metadata={"schema_version": str(SCHEMA_VERSION)})


def _guess(values: Sequence[Any]) -> pa.DataType:
    """Numbers as float64, all else as text."""
    known = [value for value in values if value is not None]
    numbers = all(isinstance(value, (int, float)) for value in known)
    return _FLOAT if numbers else _TEXT


def _array(rows: Sequence[Mapping[str, Any]], column: pa.Field) -> pa.Array:
    values = [row.get(column.name) for row in rows]
    if column.type == _TEXT:
        values = [v if v is None or isinstance(v, str) else json.dumps(v) for v in values]
    try:
        made = pa.array(values, column.type)
        # Arrow cuts 2.5 down to an integer.
        fits = column.type != _INT or made.to_pylist() == values
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        fits = False
    if not fits:
        some = ", ".join(dict.fromkeys(str(value) for value in values if value is not None))
        raise UsageError(f"{column.name} should be {column.type} in all runs, and is {some[:80]}")
    return made


def _to_parquet(table: pa.Table, file: Path) -> None:
    import pyarrow.parquet as pq

    pq.write_table(table, file)


def _to_csv(table: pa.Table, file: Path) -> None:
    """Lists as JSON, floats with all digits, empty where there is no value."""

    def cell(value: Any) -> Any:
        return json.dumps(value) if isinstance(value, (bool, list)) else value

    with file.open("w", encoding="utf-8", newline="") as text:
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(table.column_names)
        writer.writerows([cell(value) for value in row.values()] for row in table.to_pylist())


def _to_jsonl(table: pa.Table, file: Path) -> None:
    """An object a line; JSON has no NaN, it becomes null."""

    def plain(value: Any) -> Any:
        return None if isinstance(value, float) and not math.isfinite(value) else value

    with file.open("w", encoding="utf-8") as text:
        for row in table.to_pylist():
            made = {key: plain(value) for key, value in row.items()}
            text.write(json.dumps(made, ensure_ascii=False) + "\n")


_WRITERS: dict[str, Callable[[pa.Table, Path], None]] = {
    ".parquet": _to_parquet,
    ".csv": _to_csv,
    ".jsonl": _to_jsonl,
}
