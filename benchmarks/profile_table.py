"""The methods of a profile, each in a process of its own, and the table of what they cost."""

from __future__ import annotations

import csv
import io
import math
import multiprocessing
import statistics
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.console import bar_size, new_table, show
from benchmarks.errors import UsageError
from benchmarks.files import asked_for
from benchmarks.profile import measure
from benchmarks.profile_types import Request
from benchmarks.quiet import quiet_imports
from tta.errors import AdapterError

Row = dict[str, Any]
_SHOWN = {
    "forward ms": "forward_ms",
    "fwd+bwd ms": "backward_ms",
    "step ms": "step_ms",
    "bound ms": "bound_ms",
    "ratio": "ratio",
    "images/s": "images_per_second",
    "forwards": "forwards",
    "backwards": "backwards",
    "plain ms": "plain_ms",
    "plain forward ms": "plain_forward_ms",
    "speed-up": "speedup",
    "harness %": "harness_pct",
    "feed ms": "feed_ms",
    "peak MiB": "peak_mib",
    "bare MiB": "bare_mib",
    "state MiB": "state_mib",
    "memory ratio": "memory_ratio",
}
_MEANS = ("ratio", "speedup")


def apart(requests: Sequence[Request], skip: set[str], out: Path | None = None) -> list[Row]:
    """Measure each request in a fresh process: memory is its own, caches are cold for all.

    Args:
        requests: One a method.
        skip: Methods that are left out, with their reason, where they do not fit the backbone.
        out: CSV file, written again after each method.

    Raises:
        UsageError: If no method could be measured, or the file cannot be written.
    """
    from tqdm import tqdm

    rows = []
    spawn = multiprocessing.get_context("spawn")
    bar = tqdm(requests, unit="method", disable=None, **bar_size())
    for request in bar:
        bar.set_description(request.method)
        try:
            with ProcessPoolExecutor(1, spawn, quiet_imports) as pool:
                rows.append(pool.submit(measure, request).result())
        except AdapterError as error:
            if request.method not in skip:
                raise
            tqdm.write(f"left out {request.method}: {error}", file=sys.stderr)
        else:
            if out is not None:
                write_csv(rows, out)
    if not rows:
        raise UsageError("no method of the pattern can adapt this backbone; name another")
    return rows


def profile_table(rows: Sequence[Row]) -> None:
    """Print the rows, and the geometric mean of the ratios of the methods with gradients."""
    shown = {head: key for head, key in _SHOWN.items() if rows[0][key] is not None}
    table = new_table()
    table.add_column("method")
    for head in shown:
        table.add_column(head, justify="right")
    for row in rows:
        table.add_row(row["method"], *(_number(row[key]) for key in shown.values()))
    learning = [row for row in rows if row["backwards"] > 0]
    if learning:
        table.add_section()
        cells = [geometric_mean(learning, key) if key in _MEANS else "" for key in shown.values()]
        table.add_row("with gradients, geometric mean", *cells)
    title = "cost of a step; bound: its own forwards and backwards, priced bare"
    show(f"{title}; {rows[0]['layout']}", table)


def geometric_mean(rows: Sequence[Row], key: str) -> str:
    """Of a column of positive numbers, to three digits after the point."""
    return f"{math.exp(statistics.fmean(math.log(row[key]) for row in rows)):.3f}"


def write_csv(rows: Sequence[Row], path: Path) -> None:
    """Write the rows as CSV.

    Raises:
        UsageError: If the file cannot be written.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    with asked_for(path) as temporary:
        temporary.write_text(text.getvalue(), "utf-8")


def _number(value: float) -> str:
    return f"{value:.3g}" if value < 10 else f"{value:.0f}"
