"""``tta-bench report``: one page about finished runs, and figures for paper."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Optional

import typer

from benchmarks.cli_errors import user_errors
from benchmarks.cli_options import AsJson
from benchmarks.errors import UsageError

FORMATS = ("png", "pdf")


def report(
    results: Annotated[list[Path], typer.Argument(help="Results folders (searched in depth).")],
    out: Annotated[Path, typer.Option(help="Page to write, FILE.html.")] = Path("report.html"),
    figures: Annotated[
        Optional[Path], typer.Option(help="Folder for figures for paper; made if need be.")
    ] = None,
    figure_format: Annotated[
        Optional[list[str]], typer.Option(help="png or pdf; repeat. Both by default.")
    ] = None,
    title: Annotated[str, typer.Option(help="Title of the page.")] = "tta-bench report",
    as_json: AsJson = False,
) -> None:
    """Write one self-contained page about finished runs: it opens anywhere, with no network.

    It holds the leaderboards, interactive charts, collapsed and failed runs, sample images of the
    streams, and the full spec of every run. Nothing else is written.

    Try:

      tta-bench report results

      tta-bench report results --title 'Order matters' --figures figures

      tta-bench report results others --figures figures --figure-format pdf
    """
    with user_errors(interrupted="nothing was written; start it again"):
        from benchmarks.report import report as write

        formats = tuple(dict.fromkeys(figure_format or FORMATS))
        if wrong := [name for name in formats if name not in FORMATS]:
            raise UsageError(f"--figure-format {wrong[0]!r}: expected {' or '.join(FORMATS)}")
        if figure_format and figures is None:
            raise UsageError("--figure-format has no effect without --figures: name a folder")
        made = write(results, out, figures, formats=formats, title=title, progress=True)
        if as_json:
            said = {
                "out": str(made.out),
                "bytes": made.size,
                "runs": made.runs,
                "failed": made.failed,
                "rankings": made.groups,
                "figures": [str(path) for path in made.figures],
            }
            typer.echo(json.dumps(said, indent=2))
            return
        typer.echo(f"written: {made.out} ({made.size / 1e6:.1f} MB, {made.runs} runs)")
        for path in made.figures:
            typer.echo(f"written: {path}")
