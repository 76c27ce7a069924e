"""``tta-bench``: run methods on streams, list what there is, rank results.

Commands import what they need when they run: ``--help`` and ``list`` answer without torch.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from benchmarks.cli_errors import user_errors
from benchmarks.cli_options import AsJson
from benchmarks.compare_cli import compare
from benchmarks.data_cli import app as data_app
from benchmarks.describe_cli import describe
from benchmarks.diff_cli import diff
from benchmarks.errors import UsageError
from benchmarks.experiment_cli import experiment
from benchmarks.profile_cli import profile
from benchmarks.quiet import quiet_imports
from benchmarks.report_cli import report
from benchmarks.reproduce_cli import reproduce
from benchmarks.results_cli import app as results_app
from benchmarks.run_cli import run
from benchmarks.sweep_cli import sweep
from benchmarks.tune_cli import tune
from benchmarks.watch_cli import watch
from streams.secrets import masked

app = typer.Typer(
    name="tta-bench",
    help="Test-time adaptation and continual learning on streams: run, compare, trust the number.",
    epilog="Start with: tta-bench run --method source,tent,deyo --stream fashion-mnist-c",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode=None,
)
# Click's own class: newer versions of typer bring click inside.
_WRONG_WORDS: Any = next(
    kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException"
)
new_app = typer.Typer(help="Start a method of your own.", no_args_is_help=True)
app.add_typer(new_app, name="new")
app.add_typer(data_app, name="data")
app.add_typer(results_app, name="results")


app.command()(run)


@app.command("list")
def list_(
    what: Annotated[
        Optional[str],
        typer.Argument(
            help="methods, streams, settings, strategies, learning-streams, learning-settings, "
            "backbones, corruptions or protocols."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List what there is to choose from, a line each."""
    with user_errors():
        from benchmarks.catalogue import catalogue

        entries = catalogue()
        if what is not None:
            if what not in entries:
                from tta.config import did_you_mean

                raise UsageError(
                    f"cannot list {what!r}{did_you_mean(what, entries)}; "
                    f"known: {', '.join(entries)}"
                )
            entries = {what: entries[what]}
        if as_json:
            typer.echo(json.dumps(entries, indent=2))
            return
        for kind, names in entries.items():
            typer.echo(f"{kind}:")
            width = max(map(len, names), default=0)
            for name, summary in names.items():
                typer.echo(f"  {name:<{width}}  {summary}".rstrip())


@app.command()
def leaderboard(
    results: Annotated[list[Path], typer.Argument(help="Results folders (searched in depth).")],
    export: Annotated[
        Optional[list[Path]],
        typer.Option(help="Write FILE.csv, .md, .tex or .html; repeat for several."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Rank finished runs within each protocol, backbone and provenance, averaged over seeds.

    The interval is 95 % over the seeds; ≈ marks what a paired t-test does not tell apart from the
    first. CSV has all columns; Markdown, LaTeX and HTML have the errors.

    Try:

      tta-bench leaderboard results

      tta-bench leaderboard results --export table.csv --export table.tex --export table.html
    """
    with user_errors():
        from benchmarks.leaderboard import leaderboard as rank
        from benchmarks.leaderboard_export import check_suffixes
        from benchmarks.leaderboard_export import export as write
        from benchmarks.results import find_results

        check_suffixes(export or ())
        rows = rank(find_results(results))
        for path in export or ():
            write(rows, path)
        if as_json:
            typer.echo(json.dumps(rows, indent=2))
        else:
            from benchmarks.console import leaderboard_table

            leaderboard_table(rows)
        for path in export or ():
            typer.echo(f"written: {path}", err=as_json)


@app.command()
def curves(
    results: Annotated[list[Path], typer.Argument(help="Results folders (searched in depth).")],
    out: Annotated[Path, typer.Option(help="FILE.png to write.")],
    masked: Annotated[
        bool, typer.Option("--masked", help="Predict among the task's own classes.")
    ] = False,
) -> None:
    """Draw the accuracy on each task over a life: a panel for each run on a learning stream."""
    with user_errors():
        from benchmarks.curves import find_runs, save_png

        typer.echo(f"written: {save_png(find_runs(results), out, masked=masked)}")


for command in (
    describe,
    experiment,
    sweep,
    watch,
    tune,
    compare,
    diff,
    reproduce,
    report,
    profile,
):
    app.command()(command)


@app.command()
def pretrain(
    arch: Annotated[str, typer.Argument(help="Embedded architecture; see 'list backbones'.")],
    out: Annotated[Path, typer.Option(help="safetensors file to write.")],
    data_dir: Annotated[
        Path, typer.Option(help="Folder of the four Fashion-MNIST idx files.")
    ] = Path("/usr/share/datasets/fashion-mnist"),
    epochs: Annotated[Optional[int], typer.Option(help="The recipe's by default.", min=1)] = None,
    lr: Annotated[
        Optional[float], typer.Option(help="Peak learning rate; the recipe's by default.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    as_json: AsJson = False,
) -> None:
    """Train an embedded source model on the 60,000 Fashion-MNIST training images."""
    with user_errors():
        from benchmarks.pretrain import pretrain as train

        report = train(arch, data_dir, out, epochs=epochs, lr=lr, seed=seed, progress=True)
        if as_json:
            typer.echo(json.dumps(report, indent=2))
            return
        for key, value in report.items():
            typer.echo(f"{key}: {value}")


@new_app.command("adapter")
def new_adapter(
    name: Annotated[str, typer.Argument(help="Name of the method: lower case, digits, '-'.")],
    out: Annotated[Path, typer.Option(help="Folder that gets the package's folder.")] = Path(),
) -> None:
    """Write a package with a method that runs, its entry point and its tests.

    Try:

      tta-bench new adapter my-method && pip install -e tta-my-method

      tta-bench run -m my-method -s fashion-mnist-c --num-examples 500
    """
    with user_errors():
        from benchmarks.new import new_adapter as write

        for path in write(name, out):
            typer.echo(path)


def main() -> None:
    """Entry point of the script."""
    quiet_imports()
    try:
        status = app(standalone_mode=False)
    except _WRONG_WORDS as error:
        if type(error).__name__ == "NoArgsIsHelpError":
            error.show()
        else:  # one line, as for all other wrong input
            said = " ".join(error.format_message().split()).replace("Value error, ", "")
            typer.echo(f"tta-bench: error: {masked(said)}", err=True)
        status = error.exit_code
    except typer.Abort:
        status = 1
    sys.exit(status if isinstance(status, int) else 0)


if __name__ == "__main__":
    main()
