"""``tta-bench experiment``: variants x seeds on a learning stream, and the table with intervals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Optional

import typer

from benchmarks.cli_errors import user_errors
from benchmarks.cli_options import AsJson, DataDir
from benchmarks.errors import UsageError
from benchmarks.words import read_integers


def experiment(
    name: Annotated[
        Optional[str], typer.Argument(help="Name of an experiment, or a FILE.toml of your own.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Results folder.")] = Path("results/experiments"),
    data_dir: DataDir = None,
    seed: Annotated[
        Optional[str], typer.Option(help="Seeds, such as 0,1,2; the experiment's by default.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Run an experiment, or list them; finished runs are not run twice, killed ones go on.

    The table has the mean over seeds, half of its 95 % interval, and the difference to the
    baseline, seed by seed.

    Try:

      tta-bench experiment

      tta-bench experiment refresh-fashion --out results/refresh
    """
    with user_errors():
        from benchmarks.allocator import keep_freed_memory
        from benchmarks.console import progress_bar
        from benchmarks.experiments import experiments, markdown, parse, run

        known = experiments()
        if name is None:
            entries = {key: value.title for key, value in known.items()}
            if as_json:
                typer.echo(json.dumps(entries, indent=2))
            for key, title in entries.items() if not as_json else ():
                typer.echo(f"{key}: {title}")
            return
        if name.endswith(".toml"):
            try:
                chosen = parse(name, Path(name).read_text("utf-8"))
            except (OSError, UnicodeDecodeError) as error:
                raise UsageError(f"cannot read {name}: {error}") from error
        elif name in known:
            chosen = known[name]
        else:
            from tta.config import did_you_mean

            raise UsageError(
                f"unknown experiment {name!r}{did_you_mean(name, known)}; "
                f"known: {', '.join(known)}, or a FILE.toml"
            )
        keep_freed_memory()
        rows = run(
            chosen,
            out,
            data_dir=data_dir,
            seeds=read_integers("seed", seed),
            progress=lambda variant, number: progress_bar(f"{variant} s{number}"),
        )
        if as_json:
            typer.echo(json.dumps(rows, indent=2))
        else:
            typer.echo(f"{chosen.title}\n\n{markdown(chosen, rows)}\nclaim: {chosen.claim}")
