"""Results of a life: ``evals.parquet``, and the columns of ``result.json`` that learning adds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from benchmarks import metrics
from benchmarks.errors import UsageError
from benchmarks.files import atomic_write
from benchmarks.results import TIMING_FIELDS
from continual.evaluate import Evaluation
from continual.metrics import FORMS, METRICS, Course, Timeline, learning_metrics, recovery_length
from streams.learning_types import Experience, LearningStream, Segment
from streams.readers.parquet_bounds import check_bounds
from streams.types import Domain

EVALS = "evals.parquet"
# The only fields in which a resumed life may differ from an uninterrupted one.
LEARNING_TIMING_FIELDS = (*TIMING_FIELDS, "forget_seconds")
EVAL_SCHEMA = pa.schema(
    [
        ("item", pa.int32()),
        ("kind", pa.string()),
        ("name", pa.string()),
        ("step", pa.int64()),
        ("task", pa.int32()),
        ("task_name", pa.string()),
        ("correct", pa.int32()),
        ("masked", pa.int32()),
        ("total", pa.int32()),
    ]
)
# Shorter stretches have no plateau to speak of.
RECOVERY_STEPS = 10


def write_evals(folder: Path, evaluations: Sequence[Evaluation], stream: LearningStream) -> None:
    """Write ``evals.parquet``: one row per evaluation and task; the file appears whole."""
    rows = [
        {
            **{key: getattr(e, key) for key in ("item", "kind", "name", "step")},
            "task": number,
            "task_name": task.name,
            **{key: getattr(e, key)[number] for key in ("correct", "masked", "total")},
        }
        for e in evaluations
        for number, task in enumerate(stream.tasks)
    ]
    with atomic_write(folder / EVALS) as temporary:
        pq.write_table(pa.Table.from_pylist(rows, EVAL_SCHEMA), temporary)


def read_evals(folder: Path) -> tuple[list[Evaluation], list[str]]:
    """Evaluations of a run's folder, and the names of the tasks.

    Raises:
        UsageError: If the file is missing or damaged.
    """
    try:
        check_bounds(folder / EVALS)
        table = pq.read_table(folder / EVALS, schema=EVAL_SCHEMA).to_pylist()
    except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
        raise UsageError(f"{folder / EVALS} cannot be read; run it again") from error
    names = list(dict.fromkeys(row["task_name"] for row in table))
    size = len(names)
    evaluations = []
    for first in range(0, len(table), size):
        part = table[first : first + size]
        counts = {key: tuple(row[key] for row in part) for key in ("correct", "masked", "total")}
        said: dict[str, Any] = {key: part[0][key] for key in ("item", "kind", "name", "step")}
        evaluations.append(Evaluation(**said | counts))
    return evaluations, names


def plain(evaluation: Evaluation) -> dict[str, Any]:
    """An evaluation as containers that ``torch.load(weights_only=True)`` takes."""
    return {name: getattr(evaluation, name) for name in Evaluation.__slots__}


def row_domains(item: Experience | Segment) -> tuple[Domain, ...]:
    """Domains of an item's rows: the item's name, with the image domain where it has several."""
    if isinstance(item, Experience):
        return (Domain(name=item.name, corruption="none", severity=0),)
    inner = item.stream.domains
    several = len(inner) > 1
    return tuple(
        Domain(
            name=f"{item.name}/{domain.name}" if several else item.name,
            corruption=domain.corruption,
            severity=domain.severity,
        )
        for domain in inner
    )


MEASURES = (
    "error_pct",
    *(f"{form}_{metric}_pct" for form in FORMS for metric in METRICS),
    *("online_error_pct", "segment_error_pct", "worst_segment_error_pct", "recovery_steps"),
)
"""Columns of ``summarise`` that a table of several runs may show, whatever the stream."""


def summarise(
    table: metrics.Table, evaluations: Sequence[Evaluation], stream: LearningStream
) -> dict[str, Any]:
    """The measured columns of a life.

    Args:
        table: Columns of all step rows; ``visit`` is the item's number.
        evaluations: All of them, in order.
        stream: What was lived.
    """
    course = Course.of(stream)
    final = Timeline(evaluations, course).accuracy[-1]
    errors = {
        task.name: 100 * (1 - float(final[number])) for number, task in enumerate(stream.tasks)
    }
    learnt = learning_metrics(evaluations, course)
    average = learnt["class_incremental_final_accuracy_pct"]
    error = float(np.mean(list(errors.values()))) if average is None else 100 - average
    item = table["visit"].astype(np.int64)
    lists = np.array([isinstance(i, Experience) for i in stream.items])
    trains = lists[item] if len(item) else np.zeros(0, dtype=bool)
    n = table["n"].astype(np.int64)
    unknown = int(table["unknown"].sum())
    total = int(n.sum()) + unknown
    return {
        "error_pct": error,
        "worst_domain": max(errors, key=lambda name: errors[name]),
        "num_samples": total,
        "num_unknown": unknown,
        "num_steps": len(np.unique(table["step"])),
        "train_steps": len(np.unique(table["step"][trains])),
        "num_evaluations": len(evaluations),
        "non_finite": int(table["non_finite"].sum()),
        **learnt,
        "online_error_pct": _error(table, trains),
        **_segments(table, ~trains, item, stream),
        "forwards_per_image": float(table["forwards"].sum() / max(1, total)),
        "backwards_per_image": float(table["backwards"].sum() / max(1, total)),
        "updates_refused": int(table["update_refused"].sum()),
        **{f"error_pct_{name}": value for name, value in errors.items()},
    }


def _segments(
    table: metrics.Table,
    here: NDArray[np.bool_],
    item: NDArray[np.int64],
    stream: LearningStream,
) -> dict[str, Any]:
    """Online errors on the unlabelled segments, and the quality of their probabilities."""
    keys = ("segment_error_pct", "worst_segment", "worst_segment_error_pct", "recovery_steps")
    quality = ("nll", "brier", "ece_pct", "entropy", "selected_fraction")
    errors = {
        thing.name: error
        for number, thing in enumerate(stream.items)
        if isinstance(thing, Segment)
        and (error := _error(table, here & (item == number))) is not None
    }
    if not errors:
        return dict.fromkeys((*keys, *quality))
    part = {name: values[here] for name, values in table.items()}
    known = metrics.summarise(part, _occurring(part))
    worst = max(errors, key=lambda name: errors[name])
    return {
        "segment_error_pct": float(np.mean(list(errors.values()))),
        "worst_segment": worst,
        "worst_segment_error_pct": errors[worst],
        "recovery_steps": _recovery(part),
        **{name: known[name] for name in quality},
        **{f"segment_error_pct_{name}": error for name, error in errors.items()},
    }


def _occurring(table: metrics.Table) -> list[Domain]:
    names = dict.fromkeys(table["domain"].tolist())
    return [Domain(name=name, corruption="none", severity=0) for name in names]


def _recovery(table: metrics.Table) -> float | None:
    """Mean recovery length over the stretches of one domain that are long enough."""
    rows = zip(
        table["domain"].tolist(), table["n"].tolist(), table["correct"].tolist(), strict=True
    )
    lengths = []
    for _, stretch in groupby(rows, key=lambda row: row[0]):
        accuracies = [correct / n for _, n, correct in stretch if n]
        if len(accuracies) >= RECOVERY_STEPS:
            length = recovery_length(accuracies)
            assert length is not None
            lengths.append(length)
    return float(np.mean(lengths)) if lengths else None


def _error(table: Mapping[str, NDArray[Any]], here: NDArray[np.bool_]) -> float | None:
    n = int(table["n"][here].sum())
    return 100 * (1 - float(table["correct"][here].sum()) / n) if n else None
