"""``tta-bench sweep``: a grid of runs from one file, on this machine, on Ray or on Slurm."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from benchmarks.cli_errors import user_errors
from benchmarks.cli_options import AsJson, DataDir
from benchmarks.errors import UsageError

if TYPE_CHECKING:
    from benchmarks.sweep.cells import Cell
    from benchmarks.sweep.driver import Engine, Report, Standing
    from benchmarks.sweep.plan import Resources
    from benchmarks.sweep.work import Outcome

_LISTED = 20


class EngineName(str, Enum):
    """Where the cells are run."""

    pool = "pool"
    serial = "serial"
    ray = "ray"
    slurm = "slurm"


def sweep(
    file: Annotated[
        Optional[str], typer.Argument(help="FILE.toml, or the name of a sweep of the package.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Results folder.")] = Path("results"),
    engine: Annotated[EngineName, typer.Option(help="Where the cells are run.")] = EngineName.pool,
    jobs: Annotated[
        Optional[int], typer.Option(help="Cells at a time; by default what the cores allow.", min=1)
    ] = None,
    address: Annotated[
        Optional[str], typer.Option(help="Ray cluster to join: auto, HOST:PORT, ray://…")
    ] = None,
    slurm_partition: Annotated[Optional[str], typer.Option(help="Partition of Slurm.")] = None,
    slurm: Annotated[
        Optional[list[str]],
        typer.Option(help="Option of Slurm, key=value: account=…, timeout_min=…; repeat."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be run.")] = False,
    retries: Annotated[
        int, typer.Option(help="How often a cell whose worker died is run again.", min=0)
    ] = 2,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Run again what failed before.")
    ] = False,
    timeout: Annotated[
        Optional[float], typer.Option(help="Seconds that a cell may take (pool and ray).", min=1)
    ] = None,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Run a grid of methods, streams, settings, backbones, seeds and options, or list the sweeps.

    What is finished is not run again: a sweep that was interrupted, or whose machine died, goes on
    with the same command. A cell that fails is written down with its reason and stops no other;
    exit status 1 says that some did.

    Try:

      tta-bench sweep fashion-all --dry-run

      tta-bench sweep grid.toml --out results/grid --jobs 4

      tta-bench sweep grid.toml --out results/grid --engine ray --address auto

      tta-bench watch results/grid
    """
    with user_errors("the same command goes on"):
        from benchmarks.sweep.plan import find, sweeps

        if file is None:
            titles = {name: made.title for name, made in sweeps().items()}
            if as_json:
                typer.echo(json.dumps(titles, indent=2))
            for name, title in titles.items() if not as_json else ():
                typer.echo(f"{name}: {title}")
            return
        options = _slurm_options(slurm, slurm_partition)
        _check_options(engine, address, options, timeout)
        chosen = find(file)
        from benchmarks.sweep.cells import expand
        from benchmarks.sweep.driver import drive, standing

        cells = expand(chosen, data_dir=data_dir)
        if dry_run:
            _show_plan(cells, standing(cells, out, retry_failed=retry_failed), as_json)
            return
        make = _engine(engine, out, jobs, chosen.resources, address, options, timeout)
        with _bar(Path(file).stem) as advance:
            report = drive(
                cells,
                out,
                make,
                threads=chosen.resources.cpus,
                retries=retries,
                retry_failed=retry_failed,
                progress=advance,
            )
        _show_report(len(cells), report, out, as_json)
    if report.failed:
        raise typer.Exit(1)


def _slurm_options(pairs: Sequence[str] | None, partition: str | None) -> dict[str, str]:
    from benchmarks.words import read_pairs

    named = {} if partition is None else {"partition": partition}
    return named | (read_pairs(list(pairs or []), "--slurm") or {})


def _check_options(
    engine: EngineName, address: str | None, options: dict[str, str], timeout: float | None
) -> None:
    if address is not None and engine is not EngineName.ray:
        raise UsageError("--address is for --engine ray")
    if options and engine is not EngineName.slurm:
        raise UsageError("--slurm and --slurm-partition are for --engine slurm")
    if timeout is not None and engine is EngineName.slurm:
        raise UsageError("--timeout is for pool and ray; of Slurm say --slurm timeout_min=…")
    if timeout is not None and engine is EngineName.serial:
        raise UsageError("--timeout needs a process to end: use --engine pool --jobs 1")


def _engine(
    engine: EngineName,
    out: Path,
    jobs: int | None,
    resources: Resources,
    address: str | None,
    options: dict[str, str],
    timeout: float | None,
) -> Callable[[], Engine]:
    from benchmarks.sweep.slurm import Slurm, at_work

    if engine is EngineName.slurm:
        return lambda: Slurm(out, jobs or 32, resources, options)
    if at_work(out):
        raise UsageError(
            f"Slurm jobs may be at work in {out}: go on with --engine slurm, or remove "
            f"{out / 'slurm'} once they are cancelled"
        )
    here = jobs or max(1, _cores() // resources.cpus)
    if engine is EngineName.ray:
        from benchmarks.sweep.ray_engine import Ray

        return lambda: Ray(out, here if address is None else jobs, resources, address, timeout)
    from benchmarks.sweep.pool import Pool, Serial

    return lambda: Serial(out) if engine is EngineName.serial else Pool(out, here, timeout)


def _cores() -> int:
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@contextmanager
def _bar(title: str) -> Iterator[Callable[[Outcome | None, int], None]]:
    """A bar over the cells on standard error; in a file or pipe failures alone are said."""
    from tqdm import tqdm

    from benchmarks.console import bar_size

    with tqdm(desc=title, unit="cell", disable=None, **bar_size()) as bar:
        failed = 0

        def advance(outcome: Outcome | None, left: int) -> None:
            nonlocal failed
            if outcome is None:
                bar.reset(left)
                return
            bar.update()
            if outcome.status in ("failed", "lost"):
                failed += 1
                bar.set_postfix_str(f"{failed} failed")

        yield advance


def _show_plan(cells: Sequence[Cell], there: Standing, as_json: bool) -> None:
    lists = {
        "todo": [cell.title for cell in there.todo],
        "finished": [cell.title for cell in there.finished],
        "failed": [cell.title for cell, _ in there.failed],
        "left_out": [cell.title for cell, _ in there.left_out],
    }
    if as_json:
        typer.echo(json.dumps({"cells": len(cells), **lists}, indent=2))
        return
    for title in lists["todo"][:_LISTED]:
        typer.echo(title)
    if len(there.todo) > _LISTED:
        typer.echo(f"… and {len(there.todo) - _LISTED} more")
    counts = ", ".join(f"{len(v)} {k.replace('_', ' ')}" for k, v in lists.items() if v)
    typer.echo(f"{len(cells)} cells: {counts}")


def _show_report(count: int, report: Report, out: Path, as_json: bool) -> None:
    def listed(entries: Sequence[tuple[Cell, str]]) -> list[dict[str, Any]]:
        return [{"cell": cell.title, "reason": reason} for cell, reason in entries]

    if as_json:
        said = {
            "cells": count,
            "finished_before": report.before,
            "finished": report.finished,
            "failed": listed(report.failed),
            "left_out": listed(report.left_out),
            "seconds": round(report.seconds, 1),
            "out": str(out),
        }
        typer.echo(json.dumps(said, indent=2))
        return
    methods = {cell.spec.method: reason for cell, reason in report.left_out}
    for method, reason in methods.items():
        typer.echo(f"left out {method}: {reason}", err=True)
    for cell, reason in report.failed[:_LISTED]:
        typer.echo(f"failed {cell.title}: {reason}", err=True)
    if len(report.failed) > _LISTED:
        typer.echo(f"… and {len(report.failed) - _LISTED} more failed", err=True)
    parts = [f"{report.finished} finished in {report.seconds:.0f} s"]
    parts += [f"{report.before} finished before"] if report.before else []
    parts += [f"{len(report.left_out)} left out"] if report.left_out else []
    parts += [f"{len(report.failed)} failed (--retry-failed runs them again)"] * bool(report.failed)
    typer.echo(f"{count} cells: {', '.join(parts)}\nresults: {out}")
