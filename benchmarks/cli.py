"""``tta-bench``: run methods on streams, list what there is, rank results.

Commands import what they need when they run: ``--help`` and ``list`` answer without torch.
"""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Optional

import typer

from benchmarks.cli_options import (
    AsJson,
    BatchSize,
    Corruption,
    DataDir,
    Names,
    Norm,
    NormOptions,
    NumExamples,
    OpenRatio,
    OpenSet,
    Order,
    Setting,
    SettingOptions,
    Severity,
    SourceImages,
    SourceOptions,
    StreamName,
    Subset,
    Window,
    source_options,
)
from benchmarks.data_cli import app as data_app
from benchmarks.errors import UsageError
from benchmarks.words import (
    read_integers,
    read_methods,
    read_numbers,
    read_options,
    read_pairs,
    read_split,
)
from streams.errors import StreamError
from tta.errors import AdapterError

app = typer.Typer(
    name="tta-bench",
    help="Test-time adaptation and continual learning on streams: run, compare, trust the number.",
    epilog="Start with: tta-bench run --method source,tent,deyo --stream fashion-mnist-c",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode=None,
)
new_app = typer.Typer(help="Start a method of your own.", no_args_is_help=True)
app.add_typer(new_app, name="new")
app.add_typer(data_app, name="data")


@app.command()
def run(
    method: Names,
    stream: StreamName,
    setting: Setting = None,
    protocol: Annotated[
        Optional[str], typer.Option(help="A frozen protocol; see 'tta-bench list protocols'.")
    ] = None,
    backbone: Annotated[
        Optional[str], typer.Option(help="Embedded name, timm:NAME, cifar-resnet20, …")
    ] = None,
    checkpoint: Annotated[
        Optional[Path], typer.Option(help="Weights file of the backbone (safetensors or torch).")
    ] = None,
    set_: Annotated[
        Optional[list[str]],
        typer.Option("--set", help="Method option key=value; repeat. 'deyo.lr=1e-3' for one only."),
    ] = None,
    setting_set: SettingOptions = None,
    order: Order = None,
    seed: Annotated[str, typer.Option(help="One seed or several: 0,1,2.")] = "0",
    severity: Severity = None,
    corruptions: Corruption = None,
    num_examples: NumExamples = None,
    batch_size: BatchSize = None,
    data_dir: DataDir = None,
    subset: Subset = None,
    source_set: SourceOptions = None,
    open_set: OpenSet = None,
    open_ratio: OpenRatio = None,
    norm: Norm = None,
    norm_set: NormOptions = None,
    window: Window = 1,
    source_images: SourceImages = 2000,
    out: Annotated[Path, typer.Option(help="Results folder.")] = Path("results"),
    device: Annotated[str, typer.Option(help="Torch device: cpu, cuda, cuda:1, mps.")] = "cpu",
    dtype: Annotated[str, typer.Option(help="float32 or float64.")] = "float32",
    resume: Annotated[bool, typer.Option("--resume", help="Go on with interrupted runs.")] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Run again what is already finished.")
    ] = False,
    checkpoint_seconds: Annotated[
        float, typer.Option(help="Least time between checkpoints; 0: every step.", min=0)
    ] = 10.0,
    workers: Annotated[
        int, typer.Option(help="Processes that make batches ahead; changes no number.", min=0)
    ] = 0,
    as_json: AsJson = False,
) -> None:
    """Run methods over a stream and print their error per domain.

    Each method and seed gets a folder in the results folder: spec.json, steps.parquet (one row a
    step) and result.json. A finished run is not run twice; a killed one goes on with --resume.

    Try:

      tta-bench run -m source,norm,tent,deyo -s fashion-mnist-c

      tta-bench run -m '*' -s fashion-mnist-c --num-examples 1000

      tta-bench run -m tent -s fashion-mnist-c --setting reset --set lr=5e-4 --seed 0,1,2

      tta-bench run -m deyo -s cifar10-c --data-dir DATA --backbone cifar-resnet20 --checkpoint FILE
    """
    with _errors():
        from benchmarks.allocator import keep_freed_memory
        from benchmarks.console import progress_bar, results_table
        from benchmarks.runner import run as run_spec
        from benchmarks.spec import resolve

        keep_freed_memory()
        methods, by_pattern = read_methods(read_split(method))
        options = read_options(set_ or [], methods)
        # All specs are built before the first runs: a wrong last method wastes nothing.
        specs = [
            resolve(
                name,
                stream,
                protocol=protocol,
                setting=setting,
                options=options[name],
                backbone=backbone,
                checkpoint=str(checkpoint) if checkpoint else None,
                seed=value,
                device=device,
                dtype=dtype,
                data_dir=str(data_dir) if data_dir else None,
                severity=read_integers("severity", severity),
                corruptions=tuple(read_split([corruptions])) if corruptions else None,
                num_examples=num_examples,
                batch_size=batch_size,
                setting_options=read_pairs(setting_set),
                order=order,
                source_options=source_options(subset, read_pairs(source_set, "--source-set")),
                open_set=open_set,
                open_ratio=open_ratio,
                norm=norm,
                norm_options=read_numbers(read_pairs(norm_set, "--norm-set")),
                window=window,
                source_images=source_images,
            )
            for name in methods
            for value in read_integers("seed", seed) or ()
        ]
        rows = []
        for spec in specs:
            with (
                _left_out(spec.method, spec.method in by_pattern),
                progress_bar(f"{spec.method} s{spec.seed}") as progress,
            ):
                row = run_spec(
                    spec,
                    out,
                    resume=resume,
                    overwrite=overwrite,
                    checkpoint_seconds=checkpoint_seconds,
                    workers=workers,
                    progress=progress,
                )
                rows.append(row)
        if not rows:
            raise UsageError("no method of the pattern can adapt this backbone; name another")
        if as_json:
            typer.echo(json.dumps(rows, indent=2))
        else:
            results_table(rows)
            typer.echo(f"results: {out}")


@app.command("list")
def list_(
    what: Annotated[
        Optional[str],
        typer.Argument(help="methods, streams, settings, backbones, corruptions or protocols."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List methods, streams, settings, backbones, corruptions and protocols."""
    with _errors():
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
        Optional[list[Path]], typer.Option(help="Write FILE.csv or FILE.md; repeat for both.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Rank finished runs within each protocol, backbone and provenance."""
    with _errors():
        from benchmarks.leaderboard import export as write
        from benchmarks.leaderboard import leaderboard as rank
        from benchmarks.results import find_results

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
def describe(
    stream: Annotated[
        Optional[str], typer.Option("--stream", "-s", help="Stream whose plan to print.")
    ] = None,
    method: Annotated[
        Optional[str], typer.Option("--method", "-m", help="Method whose options to print.")
    ] = None,
    setting: Setting = None,
    setting_set: SettingOptions = None,
    order: Order = None,
    severity: Severity = None,
    corruptions: Corruption = None,
    num_examples: NumExamples = None,
    batch_size: BatchSize = None,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    data_dir: DataDir = None,
    subset: Subset = None,
    source_set: SourceOptions = None,
    open_set: OpenSet = None,
    open_ratio: OpenRatio = None,
    picture: Annotated[
        Optional[Path], typer.Option(help="Write FILE.png: domains and labels over the steps.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Print a stream's plan (order, domains, resets, labels, hash) or a method's options."""
    with _errors():
        from benchmarks import console

        if (stream is None) == (method is None):
            raise UsageError("name either --stream or --method")
        if method is not None:
            console.show_method(method, as_json)
            return
        assert stream is not None
        import streams
        from benchmarks.spec import default_batch_size

        made = streams.create(
            stream,
            setting=setting or "continual",
            severity=read_integers("severity", severity) or 5,
            corruptions=tuple(read_split([corruptions])) if corruptions else None,
            num_examples=num_examples,
            batch_size=default_batch_size(stream) if batch_size is None else batch_size,
            seed=seed,
            data_dir=data_dir,
            setting_options=read_pairs(setting_set),
            order=order or "default",
            source_options=source_options(subset, read_pairs(source_set, "--source-set")),
            open_set=open_set,
            open_ratio=1.0 if open_ratio is None else open_ratio,
        )
        if picture is not None:
            from streams.picture import save_png

            typer.echo(f"written: {save_png(made, picture)}", err=True)
        console.show_stream(made.describe(), as_json)


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
    with _errors():
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
    with _errors():
        from benchmarks.new import new_adapter as write

        for path in write(name, out):
            typer.echo(path)


@contextmanager
def _errors() -> Iterator[None]:
    """One clear line and exit status 2 for what the user can correct; a traceback for the rest."""
    try:
        yield
    except (UsageError, StreamError, AdapterError) as error:
        print(f"tta-bench: error: {' '.join(str(error).split())}", file=sys.stderr)
        raise typer.Exit(2) from None
    except KeyboardInterrupt:
        print("tta-bench: interrupted; --resume goes on from the last checkpoint", file=sys.stderr)
        raise typer.Exit(130) from None


@contextmanager
def _left_out(method: str, may: bool) -> Iterator[None]:
    """A method that a pattern brought in and that does not fit is left out with its reason."""
    try:
        yield
    except AdapterError as error:
        if not may:
            raise
        typer.echo(f"left out {method}: {error}", err=True)


def main() -> None:
    """Entry point of the script."""
    # timm 1.0.9 trips over it at import; nothing that a user could act on.
    warnings.filterwarnings("ignore", message=".*torch.jit.interface.*", category=FutureWarning)
    app()


if __name__ == "__main__":
    main()
