"""What a person sees: bars and tables."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import MISSING, fields
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.leaderboard import (
    TIED,
    by_group,
    error_cell,
    group_columns,
    name_cell,
    standing,
)
from benchmarks.leaderboard_columns import DOMAIN_PREFIX

if TYPE_CHECKING:
    from benchmarks.runner import Progress


@contextmanager
def progress_bar(title: str) -> Iterator[Progress]:
    """A tqdm bar on standard error that shows the running error; silent where it is no terminal."""
    from tqdm import tqdm

    with tqdm(desc=title, unit="step", disable=None, **bar_size()) as bar:
        moved = False

        def advance(done: int, total: int, error_pct: float) -> None:
            nonlocal moved
            moved = True
            bar.total = total
            bar.set_postfix_str(f"error {error_pct:.2f}%", refresh=False)
            bar.update(done - bar.n)

        yield advance
        bar.leave = moved
    if not moved:
        print(f"{title}: finished before and reused; --overwrite runs it again", file=sys.stderr)


def bar_size() -> dict[str, Any]:
    """Size of a tqdm bar: the terminal's, or a usual one where that is 0 x 0 (some containers)."""
    try:
        known = os.get_terminal_size(sys.stderr.fileno()).columns > 0
    except (OSError, ValueError):
        known = False
    if known:
        return {"dynamic_ncols": True}
    usual = shutil.get_terminal_size()
    return {"ncols": usual.columns, "nrows": usual.lines}


def results_table(rows: Sequence[Mapping[str, Any]]) -> None:
    """Domains down, runs across, the mean and the references last."""
    several = len({row["seed"] for row in rows}) > 1
    table = new_table()
    table.add_column("domain")
    for row in rows:
        table.add_column(row["method"] + (f" s{row['seed']}" if several else ""), justify="right")
    domains = [key for key in rows[0] if key.startswith(DOMAIN_PREFIX)]
    for key in domains:
        table.add_row(key.removeprefix(DOMAIN_PREFIX), *(number(row.get(key)) for row in rows))
    table.add_section()
    rounds = rows[0].get("round_error_pct") or ()
    visits = {"visit 1": "first_visit_error_pct", f"visit {len(rounds)}": "last_visit_error_pct"}
    lines = {
        **(visits if rounds else {}),
        f"mean of {len(rounds)} visits" if rounds else "mean": "error_pct",
        "source model": "source_error_pct",
        "clean, after": "clean_error_pct",
        "clean, source": "source_clean_error_pct",
        "AUROC, confidence": "auroc_pct",
        "FPR at 95 %": "fpr95_pct",
        "AUROC, energy": "auroc_energy_pct",
        "FPR at 95 %, energy": "fpr95_energy_pct",
        "H-score": "h_score_pct",
        "images/s": "images_per_second",
    }
    optional = {"auroc_pct", "fpr95_pct", "auroc_energy_pct", "fpr95_energy_pct", "h_score_pct"}
    for title, key in lines.items():
        if key not in optional or any(row.get(key) is not None for row in rows):
            table.add_row(title, *(number(row.get(key)) for row in rows))
    show(f"error % on {rows[0]['protocol']}, {rows[0]['backbone']}", table)


def leaderboard_table(rows: Sequence[dict[str, Any]]) -> None:
    """A ranking per group; what is not told apart from its first is marked."""
    for title, group in by_group(rows):
        table = new_table()
        shown = {**group_columns(group), "ECE %": "ece_pct", "s/1k": "seconds_per_1k"}
        for head in ("rank", "method", "error %", "seeds", *shown):
            table.add_column(head, justify="left" if head == "method" else "right")
        for row in group:
            table.add_row(
                str(row["rank"]),
                name_cell(row),
                error_cell(row) + (" ≈" if standing(row) == TIED else "  "),
                str(row["seeds"]),
                *(number(row.get(key)) for key in shown.values()),
            )
        show(title, table)
    if any(row["error_pct_ci95"] is not None for row in rows):
        print("± half of the 95 % interval over seeds; ≈ not told apart from the first (p ≥ 0.05)")


def show_stream(plan: Mapping[str, Any], as_json: bool) -> None:
    """A stream's plan."""
    if as_json:
        print(json.dumps(plan, indent=2))
        return
    for key, value in plan.items():
        if key != "domains":
            print(f"{key}: {value}")
    table = new_table()
    for head in ("first step", "domain", "severity", "samples"):
        table.add_column(head, justify="left" if head == "domain" else "right")
    for domain in plan["domains"]:
        cells = (domain["first_step"], domain["name"], domain["severity"], domain["samples"])
        table.add_row(*map(str, cells))
    show("domains in the order of the stream", table)


def show_method(name: str, as_json: bool) -> None:
    """A method's options with defaults, meaning and source."""
    import tta

    options = [
        {
            "option": item.name,
            "default": None if item.default is MISSING else item.default,
            "type": str(item.type),
            "meaning": item.metadata.get("doc", ""),
        }
        for item in fields(tta.adapter_config(name))
    ]
    if as_json:
        print(json.dumps(options, indent=2))
        return
    table = new_table()
    for head in ("option", "default", "meaning"):
        table.add_column(head)
    for option in options:
        table.add_row(option["option"], str(option["default"]), option["meaning"])
    show(f"options of {name} (--set option=value)", table)


def new_table() -> Table:
    """An empty table in the house's style."""
    return Table(box=box.SIMPLE, show_edge=False)


def show(title: str, table: Table) -> None:
    """Title and table on standard output; in a file or pipe nothing is folded."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=max(160, console.width))
    console.print()
    console.print(title, style="bold", highlight=False, markup=False)
    console.print(table)


def number(value: float | None) -> str:
    """Two decimals; empty where there is no value."""
    return "" if value is None else f"{value:.2f}"
