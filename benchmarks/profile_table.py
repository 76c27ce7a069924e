"""The methods of a profile, each in a process of its own, and the table of what they cost."""

from __future__ import annotations

import csv
import io
import math
import multiprocessing
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.console import bar_size, new_table, show
from benchmarks.errors import UsageError
from benchmarks.files import asked_for
from benchmarks.profile import Request, measure
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
    "harness %": "harness_pct",
    "feed ms": "feed_ms",
    "peak MiB": "peak_mib",
    "base MiB": "base_mib",
}


def apart(requests: Sequence[Request], skip: set[str]) -> list[Row]:
    """Measure each request in a fresh process: memory is its own, caches are cold for all.

    Args:
        requests: One a method.
        skip: Methods that are left out, with their reason, where they do not fit the backbone.

    Raises:
        UsageError: If no method could be measured.
    """
    from pebble import ProcessPool
    from tqdm import tqdm

    rows = []
    spawn = multiprocessing.get_context("spawn")
    with ProcessPool(max_workers=1, max_tasks=1, context=spawn) as pool:
        bar = tqdm(requests, unit="method", disable=None, **bar_size())
        for request in bar:
            bar.set_description(request.method)
            try:
                rows.append(pool.schedule(measure, args=[request]).result())
            except AdapterError as error:
                if request.method not in skip:
                    pool.stop()
                    raise
                tqdm.write(f"left out {request.method}: {error}", file=sys.stderr)
    if not rows:
        raise UsageError("no method of the pattern can adapt this backbone; name another")
    return rows


def profile_table(rows: Sequence[Row]) -> None:
    """Print the rows, and the geometric mean of the ratios of the methods with gradients."""
    table = new_table()
    table.add_column("method")
    for head in _SHOWN:
        table.add_column(head, justify="right")
    for row in rows:
        table.add_row(row["method"], *(_number(row[key]) for key in _SHOWN.values()))
    ratios = [row["ratio"] for row in rows if row["backwards"] > 0]
    if ratios:
        table.add_section()
        mean = math.exp(statistics.fmean(map(math.log, ratios)))
        cells = [f"{mean:.3f}" if key == "ratio" else "" for key in _SHOWN.values()]
        table.add_row("with gradients, geometric mean", *cells)
    show("cost of a step; bound: its own forwards and backwards, priced bare", table)


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
