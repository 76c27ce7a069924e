"""``tta-bench compare``."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from benchmarks.cli_errors import user_errors
from benchmarks.cli_options import AsJson
from benchmarks.errors import UsageError
from streams.jsonfiles import load_json

if TYPE_CHECKING:
    from benchmarks.compare import Comparison

_WIDTH = 100
_SHOWN = 6
Run = tuple[Mapping[str, Any], Mapping[str, Any] | None]


def compare(
    run_a: Annotated[
        str, typer.Argument(help="Run folder, its result.json, or RESULTS:ID (start of a run id).")
    ],
    run_b: Annotated[str, typer.Argument(help="The other run, named likewise.")],
    as_json: AsJson = False,
) -> None:
    """Say in words why two numbers differ.

    Both runs must be finished. What differs is listed once each, the usually heaviest first, with
    what it usually does. Equal runs with unequal numbers are called a bug.

    Try:

      tta-bench compare results:ea33f96b results:9c1d0a77

      tta-bench compare results/tent-fashion-mnist-c-…-ea33f96b theirs:9c1d --json
    """
    with user_errors():
        from benchmarks.compare import compare as explain

        (row_a, spec_a), (row_b, spec_b) = load_run(run_a), load_run(run_b)
        comparison = explain(row_a, row_b, spec_a, spec_b)
        if as_json:
            typer.echo(json.dumps(comparison.to_dict(), indent=2))
        else:
            _show(comparison)


def load_run(word: str) -> Run:
    """Row and spec of a finished run; no spec where a row alone is kept.

    Args:
        word: Run folder, its ``result.json``, or ``RESULTS:ID``.

    Raises:
        UsageError: If there is no such run, several, or one that is not finished.
    """
    from benchmarks.results import find_all, read_result

    path = Path(word)
    if path.name == "result.json":
        path = path.parent
    if (path / "result.json").is_file():
        return read_result(path / "result.json"), _spec(path)
    if (path / "spec.json").is_file():
        raise UsageError(f"{path} is not finished: run it again with --resume")
    root, colon, start = word.rpartition(":")
    if not colon or not Path(root).is_dir():
        if path.is_dir():
            raise UsageError(f"{path} holds several runs or none: name one as {path}:ID")
        raise UsageError(f"{word} is no run: name a run folder, its result.json, or RESULTS:ID")
    # Folders come before stores: the first of equal runs has a spec, where any has.
    runs = {run.run_id: run for run in reversed(find_all([Path(root)]))}
    found = [run for run_id, run in runs.items() if run_id.startswith(start)]
    if not found:
        known = ", ".join(sorted(run_id[:8] for run_id in runs)[:_SHOWN]) or "none"
        raise UsageError(f"no run in {root} has an id that starts with {start!r}; it has {known}")
    if len(found) > 1:
        many = ", ".join(sorted(run.run_id[:12] for run in found)[:_SHOWN])
        raise UsageError(f"{start!r} begins {len(found)} run ids in {root}: {many}")
    return found[0].row, _spec(found[0].folder) if found[0].folder else None


def _spec(folder: Path) -> dict[str, Any] | None:
    try:
        spec: dict[str, Any] = load_json(folder / "spec.json")
    except (OSError, ValueError):
        return None
    return spec


def _show(comparison: Comparison) -> None:
    from benchmarks.console import new_table, number, show

    for letter, title in zip("AB", comparison.runs, strict=True):
        typer.echo(f"{letter}  {title}")
    table = new_table()
    for head in ("", "A", "B", "B - A"):
        table.add_column(head, justify="right" if head else "left")
    for name, gap in (("mean", comparison.error), ("source model", comparison.source)):
        table.add_row(name, number(gap.a), number(gap.b), _points(gap.points))
    if comparison.domains:
        table.add_section()
    for gap in comparison.domains:
        table.add_row(gap.name, number(gap.a), number(gap.b), _points(gap.points))
    show("error %, and the domains that differ most", table)
    for place, cause in enumerate(comparison.causes, 1):
        typer.echo(_folded(f"{place}. {cause.kind}: {cause.says}", 3))
        typer.echo(_folded(f"   {cause.usually}", 3))
    typer.echo(("\n" if comparison.causes else "") + _folded(comparison.verdict, 0))


def _points(value: float | None) -> str:
    return "" if value is None else f"{value:+.2f}"


def _folded(text: str, indent: int) -> str:
    return textwrap.fill(text, _WIDTH, subsequent_indent=" " * indent, break_on_hyphens=False)
