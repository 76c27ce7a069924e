"""``tta-bench watch``: how a sweep stands, from its store."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from benchmarks.cli_errors import user_errors
from benchmarks.cli_options import AsJson

if TYPE_CHECKING:
    from rich.console import RenderableType


def watch(
    results: Annotated[Path, typer.Argument(help="Results folder of the sweep.")],
    once: Annotated[bool, typer.Option("--once", help="Show it once and end.")] = False,
    interval: Annotated[float, typer.Option(help="Seconds between two looks.", min=0.1)] = 2.0,
    as_json: AsJson = False,
) -> None:
    """Show how a sweep stands: counts, speed, time left, what runs and what failed.

    It reads the store of the results folder and nothing else, from any machine that sees the
    folder, and ends when nothing is left to run. --json prints one line a look.

    Try:

      tta-bench watch results/sweep

      tta-bench watch results/sweep --once --json
    """
    with user_errors("the sweep goes on"):
        from rich.console import Console
        from rich.live import Live

        from benchmarks.sweep.summary import summary

        now = summary(results)
        if as_json or once:
            while True:
                if as_json:
                    typer.echo(json.dumps(now))
                else:
                    Console().print(_view(now))
                if once or not _unfinished(now):
                    return
                time.sleep(interval)
                now = summary(results)
        with Live(_view(now), auto_refresh=False) as live:
            while _unfinished(now):
                time.sleep(interval)
                now = summary(results)
                live.update(_view(now), refresh=True)


def _unfinished(now: Mapping[str, Any]) -> bool:
    return bool(now["running"] or now["queued"])


def _view(now: Mapping[str, Any]) -> RenderableType:
    """Counts, then a table of what runs, then the latest failures."""
    from rich import box
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    from benchmarks.sweep.summary import STATUSES

    counts = ", ".join(f"{now[s]} {s.replace('_', ' ')}" for s in STATUSES if now[s])
    parts: list[RenderableType] = [Text(f"{now['root']}: {counts or 'nothing'} of {now['total']}")]
    if now["per_minute"] is not None:
        speed = f"{now['per_minute']:.1f} a minute"
        left = f", {_duration(now['eta_seconds'])} left" if now["eta_seconds"] else ""
        parts.append(Text(speed + left))
    for title, cells in (("running", now["cells"]), ("failed", now["failures"])):
        if not cells:
            continue
        table = Table(box=box.SIMPLE, show_edge=False)
        for head in (title, "setting", "seed", "backbone", "steps", "last sign", ""):
            table.add_column(head, no_wrap=head != "")
        for cell in cells:
            steps = f"{cell['done']}/{cell['total']}" if cell["total"] else ""
            table.add_row(
                f"{cell['method']} {cell['stream']}",
                cell["setting"],
                str(cell["seed"]),
                cell["label"],
                steps,
                f"{_duration(cell['seconds_since_sign'])} ago",
                Text(cell["reason"]),
            )
        parts.append(table)
    return Group(*parts)


def _duration(seconds: float) -> str:
    """``42 s``, ``3 min``, ``2.5 h``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
