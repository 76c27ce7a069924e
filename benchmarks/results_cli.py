"""``tta-bench results``: list, show, export, merge and tidy what runs left."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, Optional, cast

import typer

from benchmarks.cli_errors import user_errors
from benchmarks.cli_options import AsJson
from benchmarks.errors import UsageError
from benchmarks.words import read_split

if TYPE_CHECKING:
    from benchmarks.results_list import Entry

app = typer.Typer(
    help="What is in a results folder: list, show, export, merge, tidy.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

Results = Annotated[
    list[Path], typer.Argument(help="Results folders (searched in depth) or results.sqlite files.")
]


@app.command()
def ls(
    results: Results,
    status: Annotated[
        Optional[list[str]],
        typer.Option(help="finished, running, queued, failed or unfinished; repeat."),
    ] = None,
    method: Annotated[
        Optional[list[str]],
        typer.Option("--method", "-m", help="Method, or a pattern such as 'rmt*'; repeat."),
    ] = None,
    stream: Annotated[
        Optional[list[str]],
        typer.Option("--stream", "-s", help="Stream, or a pattern such as 'imagenet-*'; repeat."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List runs: finished, failed, queued, running, and interrupted ones (unfinished).

    Try:

      tta-bench results ls results

      tta-bench results ls results --status failed,unfinished

      tta-bench results ls results -m 'tent,deyo' -s 'fashion-*' --json
    """
    with user_errors():
        from benchmarks.results_list import entries, select

        found = select(
            entries(results),
            statuses=read_split(status) if status else (),
            methods=read_split(method) if method else (),
            streams=read_split(stream) if stream else (),
        )
        if as_json:
            typer.echo(json.dumps([entry.summary() for entry in found], indent=2))
        else:
            _table(found)


@app.command()
def show(
    results: Annotated[Path, typer.Argument(help="Results folder, or a results.sqlite file.")],
    run: Annotated[str, typer.Argument(help="Start of the run's id, or its folder's name.")],
    as_json: AsJson = False,
) -> None:
    """Print all that is known of one run.

    Try:

      tta-bench results ls results    # the ids

      tta-bench results show results 3f2a
    """
    with user_errors():
        from benchmarks.results_list import entries, pick

        entry = pick(entries([results]), run)
        said = {"status": entry.status, "folder": entry.folder and str(entry.folder)}
        if as_json:
            typer.echo(json.dumps({**entry.summary(), "row": entry.row}, indent=2))
            return
        known = entry.row or {k: v for k, v in entry.summary().items() if v not in (None, "")}
        lines = {**said, **known}
        width = max(map(len, lines))
        for key, value in lines.items():
            typer.echo(f"{key:<{width}}  {_words(value)}".rstrip())


@app.command()
def export(
    results: Results,
    out: Annotated[Path, typer.Option(help="FILE.parquet, FILE.csv or FILE.jsonl to write.")],
    as_json: AsJson = False,
) -> None:
    """Write all finished runs as one table: a flat row a run, with documented types.

    Parquet keeps types and lists; CSV has lists as JSON text; JSON lines has an object a run.

    Try:

      tta-bench results export results --out runs.parquet
    """
    with user_errors():
        from benchmarks.results import find_results
        from benchmarks.results_table import export as write

        count = write(find_results(results), out)
        if as_json:
            typer.echo(json.dumps({"file": str(out), "rows": count}))
        else:
            typer.echo(f"written: {out} ({count} runs)")


@app.command()
def merge(
    out: Annotated[Path, typer.Argument(help="Results folder that gets the runs.")],
    sources: Annotated[
        list[Path],
        typer.Argument(metavar="FROM...", help="Results folders or .sqlite files, of any machine."),
    ],
    keep: Annotated[
        Optional[str],
        typer.Option(help="Where two versions of a run differ in a number: ours or theirs."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Bring runs of several machines into one results folder; merging twice changes nothing.

    A run is told by its id. One that is there already stays; if another version of it has other
    numbers, nothing is written and both are named.

    Try:

      tta-bench results merge results from-a from-b

      tta-bench results merge results node7/results.sqlite

      tta-bench results merge results results    # make results.sqlite again from the folders
    """
    with user_errors("do it again: a merge that was cut off is taken up"):
        from benchmarks.results_merge import Keep
        from benchmarks.results_merge import merge as bring

        if keep not in (None, "ours", "theirs"):
            raise UsageError(f"--keep {keep!r}: say ours or theirs")
        counts = bring(out, sources, keep=cast("Optional[Keep]", keep), progress=_bar)
        if as_json:
            typer.echo(json.dumps(counts))
            return
        words = {"new": "new", "same": "there already", "replaced": "replaced", "kept": "kept"}
        said = [f"{counts[key]} {word}" for key, word in words.items() if counts[key]]
        said += [f"{counts['folders']} folders copied"] if counts["folders"] else []
        said += [f"{counts['unfinished']} unfinished"] if counts["unfinished"] else []
        typer.echo(f"{', '.join(said) or 'nothing new'}; {out} has {counts['runs']} finished runs")


@app.command()
def rm(
    results: Annotated[Path, typer.Argument(help="Results folder (searched in depth).")],
    runs: Annotated[
        list[str], typer.Argument(metavar="RUN...", help="Starts of ids, or names of folders.")
    ],
) -> None:
    """Forget runs, finished ones too: their folders, and their rows in results.sqlite.

    Try:

      tta-bench results rm results 3f2a tent-fashion-mnist-c-continual-fashion-resnet-s0-ea33f96b
    """
    with user_errors("do it again: what is gone is gone"):
        from benchmarks.results_gc import forget
        from benchmarks.results_list import entries, pick

        known = entries([results])
        # All are found before the first goes.
        for entry in [pick(known, run) for run in runs]:
            forget([results], entry)
            typer.echo(f"removed: {entry.method} {entry.run_id}")


@app.command()
def gc(
    results: Annotated[Path, typer.Argument(help="Results folder (searched in depth).")],
    yes: Annotated[bool, typer.Option("--yes", help="Remove; without it nothing changes.")] = False,
    older_than: Annotated[
        float,
        typer.Option(metavar="HOURS", help="Silence after which work counts as left.", min=0),
    ] = 24.0,
    failed: Annotated[
        bool, typer.Option("--failed", help="Also records and folders of failed runs.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Say what killed processes left behind, and with --yes remove it.

    These are checkpoints of finished runs, temporary files, and records of queued and running runs
    that nobody updates. Finished runs stay, and so do the folders that --resume needs.

    Try:

      tta-bench results gc results

      tta-bench results gc results --failed --older-than 1 --yes
    """
    with user_errors("do it again: what is gone is gone"):
        from benchmarks.results_gc import collect, find_waste

        waste = find_waste(results, older_than=older_than, failed=failed)
        if yes:
            collect(waste)
        size = sum(thing.size for thing in waste)
        if as_json:
            listed = [thing.summary() for thing in waste]
            typer.echo(json.dumps({"removed": yes, "bytes": size, "items": listed}, indent=2))
            return
        for thing in waste:
            typer.echo(f"{thing.why}: {thing.words}")
        verb = "removed" if yes else "to remove with --yes"
        typer.echo(f"{verb}: {len(waste)}, {size:,} bytes")


def _table(found: Sequence[Entry]) -> None:
    from benchmarks.console import new_table, number, show
    from benchmarks.results_list import SHORT

    table = new_table()
    heads = ("run", "method", "stream", "setting", "backbone", "seed", "error %", "accuracy %")
    right = ("seed", "error %", "accuracy %")
    sides: dict[bool, Literal["left", "right"]] = {True: "right", False: "left"}
    for head in (*heads, "status", "reason"):
        table.add_column(head, justify=sides[head in right])
    for entry in found:
        learning = entry.accuracy_pct is not None
        table.add_row(
            entry.run_id[:SHORT],
            entry.method,
            entry.stream,
            entry.setting,
            entry.backbone or "",
            str(entry.seed),
            "" if learning else number((entry.row or {}).get("error_pct")),
            number(entry.accuracy_pct),
            entry.status + (f" {entry.done}/{entry.total}" if entry.total else ""),
            entry.reason,
        )
    show(f"{len(found)} runs", table)


def _words(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.6g}"
    return value if isinstance(value, str) else json.dumps(value)


def _bar(folders: list[Path]) -> Iterable[Path]:
    from tqdm import tqdm

    from benchmarks.console import bar_size

    bar: Iterable[Path] = tqdm(folders, desc="run folders", disable=None, **bar_size())
    return bar
