"""``tta-bench data``: what data is there, fetch it, check it, generate it, measure matrices."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from benchmarks.cli_errors import user_errors
from benchmarks.errors import UsageError

app = typer.Typer(
    help="Data: what is there, fetch it, check it, generate it.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

DataDir = Annotated[Path, typer.Option(help="Folder of all data.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")]
Names = Annotated[list[str], typer.Argument(help="Data sets; 'tta-bench data status' lists them.")]


@app.command()
def status(data_dir: DataDir = Path("data"), as_json: AsJson = False) -> None:
    """List the known files, which of them are there, and where each stream looks."""
    with user_errors("the same command goes on from here"):
        from streams.datasets import status as look

        files, streams = look(data_dir)
        if as_json:
            typer.echo(json.dumps({"files": files, "streams": streams}, indent=2))
            return
        _table(
            f"known files, below {data_dir}",
            ("data set", "file", "state", "size", "checksum", "where"),
            [
                (
                    row["dataset"],
                    row["file"] + (" (optional)" if row["optional"] else ""),
                    row["state"],
                    _size(row["bytes"] or row["published_bytes"]) or f"~{row['about']}",
                    "md5" if row["published_md5"] else "none published",
                    row["page"] if row["state"] == "missing" else row["path"],
                )
                for row in files
            ],
        )
        _table(
            "streams over them: where they look, first match first (others: docs/streams.md)",
            ("stream", "finds", "gives", "looks for"),
            [
                (
                    row["stream"],
                    row["finds"] or ("nothing" if row["looks"] else ""),
                    row["gives"] or "",
                    ", ".join(str(Path(p).relative_to(data_dir)) for p in row["looks"]),
                )
                for row in streams
            ],
        )


@app.command()
def fetch(
    names: Names,
    data_dir: DataDir = Path("data"),
    file: Annotated[
        Optional[list[str]], typer.Option(help="Only this file of the data set; repeat.")
    ] = None,
    mirror: Annotated[
        Optional[list[str]],
        typer.Option(
            envvar="TTA_BENCH_MIRROR",
            help="Address of a folder to try first; the file name is appended; repeat.",
        ),
    ] = None,
    offline: Annotated[
        bool, typer.Option("--offline", envvar="TTA_BENCH_OFFLINE", help="Leave the network alone.")
    ] = False,
    keep_archive: Annotated[
        bool, typer.Option("--keep-archive", help="Keep archives after unpacking.")
    ] = False,
    retries: Annotated[int, typer.Option(min=0, help="Further rounds over the addresses.")] = 5,
    timeout: Annotated[
        float, typer.Option(min=0.1, help="Seconds without a byte: the connection has stalled.")
    ] = 30.0,
    as_json: AsJson = False,
) -> None:
    """Download data sets, check them, and unpack their archives.

    A download that was cut or killed goes on where it stopped. A file has its own name only when
    its size and checksum agree; a file placed by hand is checked the same way.

    Try:

      tta-bench data fetch cifar10 --data-dir DATA

      tta-bench data fetch cifar10-c --data-dir DATA --mirror https://mirror.example.org/cifar
    """
    with user_errors("the same command goes on from here"):
        from streams.datasets import choose, fetch_dataset, find
        from streams.fetch import Options

        options = Options(retries=retries, timeout=timeout, offline=offline)
        chosen = [find(name) for name in dict.fromkeys(names)]
        if file and len(chosen) > 1:
            raise UsageError("--file names a file of one data set: name one data set only")
        for dataset in chosen:  # all names are checked before the first download
            choose(dataset, file or ())
        rows = []
        for dataset in chosen:
            with _bars() as watch:
                rows += fetch_dataset(
                    dataset,
                    data_dir,
                    names=file or (),
                    mirrors=mirror or (),
                    keep_archive=keep_archive,
                    options=options,
                    watch=watch,
                )
        if as_json:
            typer.echo(json.dumps(rows, indent=2))
            return
        for row in rows:
            typer.echo(f"{row['file']}: {row['state']}, {row['path']} ({row['checked']})")


@app.command()
def verify(
    names: Annotated[
        Optional[list[str]], typer.Argument(help="Data sets; all that are there by default.")
    ] = None,
    data_dir: DataDir = Path("data"),
    as_json: AsJson = False,
) -> None:
    """Check what is there against published checksums, or against the first fetch.

    Exit status 2 if something is damaged.
    """
    with user_errors("the same command goes on from here"):
        from streams.datasets import verify as check

        with _bars() as watch:
            rows = check(data_dir, names or (), watch)
        if as_json:
            typer.echo(json.dumps(rows, indent=2))
        elif not rows:
            typer.echo(f"nothing to check in {data_dir}")
        else:
            heads = ("data set", "file", "state", "detail")
            keys = ("dataset", "file", "state", "detail")
            _table(f"checked, below {data_dir}", heads, [[str(r[k]) for k in keys] for r in rows])
        damaged = [row["path"] for row in rows if row["state"] == "damaged"]
        if damaged:
            raise UsageError(
                f"{len(damaged)} of {len(rows)} damaged: {', '.join(damaged)}; move them away and "
                "fetch or generate them again"
            )


@app.command()
def generate(
    clean: Annotated[
        str, typer.Argument(help="Clean images: fashion-mnist (embedded), cifar10 or cifar100.")
    ],
    out: Annotated[
        Optional[Path], typer.Option(help="Folder to write; DATA_DIR/CLEAN-c-generated by default.")
    ] = None,
    corruptions: Annotated[
        Optional[str], typer.Option(help="Names, separated by commas; the 15 by default.")
    ] = None,
    num_examples: Annotated[
        Optional[int], typer.Option(help="First N images; all by default.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the corruptions.")] = 0,
    data_dir: DataDir = Path("data"),
    as_json: AsJson = False,
) -> None:
    """Write a corrupted set in the layout of CIFAR-10-C, marked as generated.

    Read it with '--stream npy-folder --data-dir OUT', or a CIFAR-10 set with 'cifar10-c'. The same
    command after a kill goes on with the next corruption.

    Try:

      tta-bench data generate fashion-mnist --out sets/fashion --corruptions fog,snow
    """
    with user_errors("the same command goes on from here"):
        from streams.corruptions.names import CORRUPTIONS
        from streams.generate import generate as write

        chosen = CORRUPTIONS if corruptions is None else _split(corruptions)
        folder = out or data_dir / f"{clean}-c-generated"
        with _bars() as watch:
            made = write(
                clean,
                folder,
                data_dir=data_dir,
                corruptions=chosen,
                num_examples=num_examples,
                seed=seed,
                watch=watch,
            )
        if as_json:
            typer.echo(json.dumps({"folder": str(folder), **made}, indent=2))
        else:
            typer.echo(f"{folder}: {len(made['files'])} files, {made['images']} images, generated")


@app.command("ccc-matrix")
def ccc_matrix(
    stream: Annotated[str, typer.Argument(help="ccc, fashion-mnist-ccc or cifar10-ccc.")],
    backbone: Annotated[str, typer.Option(help="The model; see 'tta-bench list backbones'.")],
    checkpoint: Annotated[
        Optional[Path], typer.Option(help="Weights file of the backbone.")
    ] = None,
    images: Annotated[
        int, typer.Option(min=1, help="Images behind each of the 441 cells of a pair.")
    ] = 100,
    level: Annotated[str, typer.Option(help="Whose pairs: easy, medium or hard.")] = "medium",
    noises: Annotated[
        str, typer.Option(help="Corruptions, separated by commas, instead of the level's.")
    ] = "",
    batch_size: Annotated[int, typer.Option(min=1, help="Images a forward.")] = 100,
    device: Annotated[str, typer.Option(help="Torch device: cpu, cuda, cuda:1, mps.")] = "cpu",
    data_dir: DataDir = Path("data"),
    as_json: AsJson = False,
) -> None:
    """Measure the accuracy matrices that CCC's paths are found in, once for each model.

    Counts are kept in the cache folder; the same command after a kill goes on with the next row of
    21 cells, and another level measures what is missing. A pair costs 441 x IMAGES forwards: 182
    pairs for easy, 156 for medium, 12 for hard.

    Try:

      tta-bench data ccc-matrix fashion-mnist-ccc --backbone fashion-resnet --level hard
    """
    with user_errors("the same command goes on from here"):
        from benchmarks.ccc_matrix import measure

        with _bars() as watch:
            made = measure(
                stream,
                backbone,
                checkpoint=checkpoint,
                data_dir=data_dir,
                images=images,
                level=level,
                noises=noises,
                batch_size=batch_size,
                device=device,
                progress=watch(f"{stream} {backbone}"),
            )
        if as_json:
            typer.echo(json.dumps(made, indent=2))
            return
        typer.echo(
            f"{made['folder']}: {made['pairs']} pairs of {made['backbone']}, {images} images a "
            f"cell, {made['forwards']} forwards in this call"
        )


def _split(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _size(count: int | None) -> str:
    """Bytes in decimal units, as download pages give them."""
    if count is None:
        return ""
    value = float(count)
    for unit in ("B", "kB", "MB"):
        if value < 1000:
            return f"{value:.0f} {unit}"
        value /= 1000
    return f"{value:.1f} GB"


def _table(title: str, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Plain columns, so that a path can be copied whole from any terminal or pipe."""
    widths = [max(map(len, column)) for column in zip(heads, *rows, strict=True)]
    typer.echo(f"\n{title}")
    for row in (heads, *rows):
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        typer.echo("  " + "  ".join(cells).rstrip())


@contextmanager
def _bars() -> Iterator[Callable[[str], Callable[[int, Optional[int]], None]]]:
    """Progress bars (tqdm) on standard error, one a title; silent where it is no terminal."""
    from tqdm import tqdm

    from benchmarks.console import bar_size

    with ExitStack() as stack:

        def watch(title: str) -> Callable[[int, Optional[int]], None]:
            unit: Mapping[str, Any] = {"unit": "B", "unit_scale": True}
            unit = {"unit": "image"} if title.endswith(".npy") or "ccc " in title else unit
            bar = stack.enter_context(tqdm(desc=title, disable=None, **bar_size(), **unit))

            def advance(done: int, total: Optional[int]) -> None:
                bar.total = total
                bar.update(done - bar.n)

            return advance

        yield watch
