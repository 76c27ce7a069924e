"""``tta-bench reproduce``."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from benchmarks.cli_errors import user_errors
from benchmarks.cli_options import AsJson, DataDir
from benchmarks.errors import UsageError
from benchmarks.words import read_integers, read_methods, read_split

if TYPE_CHECKING:
    from benchmarks.reproduce import Reproduction
    from benchmarks.spec import RunSpec

# With so many figures or fewer each is shown with its command.
_FEW = 20


def reproduce(
    method: Annotated[
        Optional[list[str]],
        typer.Option("--method", "-m", help="Method(s), names or patterns; all by default."),
    ] = None,
    protocol: Annotated[
        Optional[str],
        typer.Option(
            help="Part of stream/protocol/network that a figure must have: cifar10-c/reset."
        ),
    ] = None,
    results: Annotated[
        Optional[list[Path]], typer.Option(help="Results folder with finished runs; repeat.")
    ] = None,
    run: Annotated[
        bool, typer.Option("--run", help="Make the figures that local data and weights allow.")
    ] = False,
    out: Annotated[Path, typer.Option(help="Results folder of --run.")] = Path("results"),
    seed: Annotated[str, typer.Option(help="Seeds of --run: 0,1,2.")] = "0",
    device: Annotated[
        Optional[str], typer.Option(help="Torch device; a GPU where there is one, else cpu.")
    ] = None,
    data_dir: DataDir = None,
    export: Annotated[Optional[Path], typer.Option(help="Write the page FILE.md.")] = None,
    record: Annotated[
        Optional[Path], typer.Option(help="Write what was measured as FILE.json.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Set published numbers beside ours: reproduced, not reproduced, not run.

    Without --run nothing is computed and nothing downloaded: the figures are compared with finished
    runs (--results) and with what was measured before the release.

    Try:

      tta-bench reproduce --method tent

      tta-bench reproduce --run --protocol fashion-mnist-c --out results

      tta-bench reproduce --run --protocol cifar10/clean --data-dir DATA

      tta-bench reproduce --results results --export reproduced.md
    """
    with user_errors():
        from benchmarks.reproduce import reproduce as compare
        from benchmarks.reproduce import write_record
        from benchmarks.results import find_results

        for path, ending in ((export, ".md"), (record, ".json")):
            if path is not None and (path.suffix != ending or not path.parent.is_dir()):
                raise UsageError(f"{path}: name a {ending} file in a folder that exists")
        methods = None if method is None else read_methods(read_split(method))[0]
        seeds = read_integers("seed", seed) or ()
        rows = find_results(results) if results else []
        found = compare(methods, protocol=protocol, rows=rows)
        if not found:
            raise UsageError(_none(methods, protocol))
        if run:
            open_ones = compare(methods, protocol=protocol, rows=rows, recorded=[])
            rows += _run(open_ones, out=out, seeds=seeds, device=device, data_dir=data_dir)
            found = compare(methods, protocol=protocol, rows=rows)
        if record is not None:
            write_record(record, found)
        if export is not None:
            from benchmarks.files import atomic_write
            from benchmarks.reproduce_page import page

            with atomic_write(export) as temporary:
                temporary.write_text(page(found), "utf-8")
        if as_json:
            typer.echo(json.dumps([_said(item, data_dir, device) for item in found], indent=2))
        else:
            _show(found, data_dir, device)
        for path in filter(None, (record, export)):
            typer.echo(f"written: {path}", err=as_json)


def _run(
    items: Sequence[Reproduction],
    *,
    out: Path,
    seeds: Sequence[int],
    device: str | None,
    data_dir: Path | None,
) -> list[dict[str, Any]]:
    """Rows of the runs that this machine allows; an interrupted one goes on."""
    import torch

    from benchmarks.allocator import keep_freed_memory
    from benchmarks.console import progress_bar
    from benchmarks.reproduce_plan import NETWORKS, arguments, missing, weight_file
    from benchmarks.runner import run as run_spec
    from benchmarks.spec import resolve
    from streams.errors import StreamError
    from tta.errors import AdapterError

    keep_freed_memory()
    chosen = device or ("cuda" if torch.cuda.is_available() else "cpu")
    specs = {}
    for item in items:
        if item.ours is not None or missing(item.figure, data_dir, device=device):
            continue
        file = weight_file(NETWORKS[item.figure.backbone], data_dir)
        for number in seeds:
            for fields in arguments(item.method, item.figure):
                spec = resolve(
                    **{**fields, "seed": number},
                    checkpoint=None if file is None else str(file),
                    device=chosen,
                    data_dir=None if data_dir is None else str(data_dir),
                )
                specs[spec.identity()] = spec
    if not specs:
        typer.echo("nothing to run: what is not there yet needs what this machine lacks", err=True)

    def row_of(spec: RunSpec) -> dict[str, Any] | None:
        try:
            with progress_bar(f"{spec.method} {spec.stream} s{spec.seed}") as progress:
                return run_spec(spec, out, resume=True, progress=progress)
        except (AdapterError, StreamError, UsageError) as error:
            typer.echo(f"left out {spec.method} on {spec.stream}: {error}", err=True)
            return None

    return [row for spec in specs.values() if (row := row_of(spec)) is not None]


def _said(item: Reproduction, data_dir: Path | None, device: str | None) -> dict[str, Any]:
    from benchmarks.reproduce_plan import arguments, command, missing

    lines = [command(fields, data_dir) for fields in arguments(item.method, item.figure)]
    lacking = [] if item.ours else missing(item.figure, data_dir, device=device)
    return {**item.to_dict(), "missing": lacking, "commands": lines}


def _show(items: Sequence[Reproduction], data_dir: Path | None, device: str | None) -> None:
    from benchmarks.console import new_table, number, show
    from benchmarks.reproduce import MARKS, RULE
    from benchmarks.reproduce_page import signed

    table = new_table()
    for head in ("", "method", "figure", "published", "ours", "off by", "source"):
        table.add_column(
            head, justify="right" if head in ("published", "ours", "off by") else "left"
        )
    for item in items:
        off = signed(item.difference)
        ours = number(item.ours.error_pct if item.ours else None)
        figure = item.figure
        cells = (figure.key, f"{figure.error_pct:g}", ours, off, figure.source)
        table.add_row(MARKS[item.status], item.method, *cells)
    show("error % as published, and ours", table)
    counted = Counter(item.status for item in items)
    typer.echo(", ".join(f"{counted[s]} {mark} {s}" for s, mark in MARKS.items()))
    typer.echo(RULE)
    details = [_said(item, data_dir, device) for item in items]
    for said in details:
        if said["our_note"]:
            typer.echo(f"{said['method']} on {said['figure']}: {said['our_note']}")
    if len(items) > _FEW:
        needs = Counter(need for said in details for need in said["missing"])
        typer.echo("\nmissing here:" if needs else "\nnothing is missing here")
        for need, times in needs.most_common():
            typer.echo(f"  {need} ({times} figure{'s' if times > 1 else ''})")
        typer.echo("commands: name fewer figures with --method or --protocol, or --json")
        return
    for said in details:
        typer.echo(f"\n{said['method']} on {said['figure']}")
        for need in said["missing"]:
            typer.echo(f"  missing here: {need}")
        for line in said["commands"]:
            typer.echo(f"  $ {line}")


def _none(methods: Sequence[str] | None, protocol: str | None) -> str:
    wanted = ", ".join(methods) if methods else "any method"
    within = f" under {protocol!r}" if protocol else ""
    return f"no published figure of {wanted}{within}: see 'tta-bench reproduce' for all"
