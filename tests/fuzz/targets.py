"""What is fuzzed: one target a family of files, each a reader of bytes by the kind of file.

A call ends well, or with an error that a user can correct; all else is a finding.
"""

from __future__ import annotations

import io
import json
import shutil
import sys
import zlib
from collections.abc import Callable, Mapping
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from benchmarks import experiments, protocols, resolve, tuned
from benchmarks.errors import UsageError
from benchmarks.sweep import plan
from benchmarks.words import read_integers, read_methods, read_numbers, read_options, read_pairs
from streams import archives
from streams.errors import StreamError
from streams.npy_corruptions import open_npy_folder
from streams.readers import cifar_pickle, idx, images, label_list, npy, parquet, parquet_shards
from tta.checkpoints import load_weights, read_checkpoint
from tta.errors import AdapterError

CLEAN = (UsageError, StreamError, AdapterError)
CORPUS = Path(__file__).parent / "corpus"
Reader = Callable[[bytes, Path], object]


@dataclass(frozen=True)
class Target:
    """A family: readers by kind; a kind is the name of a corpus file up to its first ``~``."""

    name: str
    readers: Mapping[str, Reader]

    def seeds(self) -> list[tuple[str, bytes]]:
        """Kind and content of each file of the corpus."""
        files = sorted((CORPUS / self.name).iterdir())
        return [(file.name.partition("~")[0], file.read_bytes()) for file in files]

    def call(self, kind: str, data: bytes, work: Path) -> bool:
        """Read once in a folder of its own; whether it was refused.

        Raises:
            Exception: Whatever is no clean error: a finding.
        """
        shutil.rmtree(work, ignore_errors=True)
        (inner := work / "in").mkdir(parents=True)
        said = io.StringIO()
        try:
            with redirect_stdout(said), redirect_stderr(said):
                self.readers[kind](data, inner)
        except CLEAN:
            return True
        finally:
            outside = [path.name for path in work.iterdir() if path != inner]
            assert not outside, f"written outside: {outside}"
        return False


def _file(name: str, read: Callable[[Path], object]) -> Reader:
    def reader(data: bytes, work: Path) -> None:
        path = work / name
        path.write_bytes(data)
        read(path)

    return reader


# Text --------------------------------------------------------------------------------------------


def _text(read: Callable[[str], object]) -> Reader:
    return lambda data, work: read(data.decode("utf-8", "replace"))


def _run_words(text: str) -> None:
    """Lines ``key=value`` as the options of one run; the stream is planned, no image is read."""
    from benchmarks.runner import open_stream

    said: dict[str, list[str]] = {}
    for line in text.splitlines():
        key, _, value = line.partition("=")
        said.setdefault(key.strip(), []).append(value)

    def last(key: str, default: str | None = None) -> str | None:
        return said.get(key, [default])[-1]  # type: ignore[list-item]

    methods, _ = read_methods([last("method", "tent") or ""])
    options = read_options(said.get("set", []), methods)
    read_numbers(read_pairs(said.get("norm-set"), "--norm-set"))
    for seed in read_integers("seed", last("seed", "0")) or ():
        spec = resolve(
            methods[0],
            last("stream", "fashion-mnist-c") or "",
            setting=last("setting"),
            options=options[methods[0]],
            severity=read_integers("severity", last("severity")),
            setting_options=read_pairs(said.get("setting-set")),
            source_options=read_pairs(said.get("source-set")),
            order=last("order"),
            open_set=last("open-set"),
            corruptions=("fog", "snow"),
            num_examples=20,
            seed=seed,
        )
        open_stream(spec)


TEXT = Target(
    "text",
    {
        "sweep.toml": _text(lambda text: plan.parse("sweep.toml", text)),
        "experiment.toml": _text(lambda text: experiments.parse("experiment.toml", text)),
        "protocol.toml": _text(lambda text: protocols._parse("p-v1.toml", text)),
        "tuned.toml": _file("tuned.toml", lambda path: tuned.read_tuned(path).options("tent")),
        "run.txt": _text(_run_words),
        "list.txt": _file("list.txt", lambda path: label_list.read_pairs(path, 10)),
        "labels.txt": _file(
            "labels.txt",
            lambda path: label_list.read_validation_labels(path, {"n01440764": 0, "n01443537": 1}),
        ),
    },
)


# Arrays and images -------------------------------------------------------------------------------


def _npy(path: Path) -> None:
    shutil.copy(path, path.with_name("labels.npy"))
    for read in (npy.open_images, npy.read_labels):
        try:
            made = read(path)
            made.sum() if made.size < 1 << 22 else None
        except StreamError:
            pass
    open_npy_folder(path.parent, name="fuzz")


def _shards(path: Path) -> None:
    shards = parquet_shards.open_shards((path,))
    for row in range(min(3, len(shards.labels))):
        shards.read(row)


def _image(path: Path) -> None:
    images.image_size(path)
    images.read_image(path, images.EVALUATION, "image")


ARRAYS = Target(
    "arrays",
    {
        "fog.npy": _file("fog.npy", _npy),
        "images.idx": _file("images.idx", idx.read_images),
        "labels.idx": _file("labels.idx", idx.read_labels),
        "set.parquet": _file("set.parquet", lambda path: parquet.read_images(path, (8, 8))),
        "shard.parquet": _file("shard.parquet", _shards),
        "batch.pkl": _file("batch.pkl", lambda path: cifar_pickle.read_batch(path, "labels")),
        "image.png": _file("image.png", _image),
        "image.jpeg": _file("image.jpeg", _image),
        "image.webp": _file("image.webp", _image),
    },
)


# Archives ----------------------------------------------------------------------------------------


def _unpack(path: Path) -> None:
    target = path.parent / "set"
    try:
        made = archives.unpack(path, target, max_bytes=1 << 20)
    except StreamError:
        left = sorted(p.name for p in path.parent.iterdir())
        assert left == [path.name], f"left behind: {left}"
        raise
    assert archives.changed_groups(target, made) == []
    inside = [p for p in path.parent.rglob("*") if p.is_symlink()]
    assert not inside, "a link was unpacked"


ARCHIVES = Target(
    "archives",
    {kind: _file(f"set.{kind}", _unpack) for kind in ("tar", "tar.gz", "tar.bz2", "tar.xz", "zip")},
)


# Weights, checkpoints, traces --------------------------------------------------------------------


def _weights(path: Path) -> None:
    model = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 1), torch.nn.BatchNorm2d(2))
    load_weights(model, read_checkpoint(path), model_name="fuzz", file_name=path.name)


def _run_state(data: bytes, work: Path) -> None:
    from benchmarks.results import RunFolder

    folder = RunFolder(work / "run")
    folder.create({})
    shutil.copy(CORPUS / "folder" / "steps.parquet", work / "run/checkpoint/steps-000000.parquet")
    (work / "run" / "checkpoint" / "state.pt").write_bytes(data)
    if folder.load("cpu") is not None:
        folder.table()


def _part(data: bytes, work: Path) -> None:
    from benchmarks.results import RunFolder

    folder = RunFolder(work / "run")
    folder.create({})
    folder.save({"step": 1})
    torch.save({"step": 1, "parts": ["steps-000000.parquet"]}, work / "run/checkpoint/state.pt")
    (work / "run" / "checkpoint" / "steps-000000.parquet").write_bytes(data)
    folder.load("cpu")
    folder.table()


def _trace(path: Path) -> None:
    """Errors of a trace are those that ``run_trace`` turns into exit status 2."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "parity"))
    try:
        import mapping
        import run_trace
    finally:
        sys.path.pop(0)
    try:
        run_trace.noise_floor(path)
        mapping.adapter_of(run_trace.read_meta(path))
    except run_trace.UNREADABLE as error:
        raise UsageError(f"{path}: {error}") from error


CHECKPOINTS = Target(
    "checkpoints",
    {
        "w.safetensors": _file("w.safetensors", _weights),
        "w.pth": _file("w.pth", _weights),
        "old.pth": _file("old.pth", _weights),
        "state.pt": _run_state,
        "part.parquet": _part,
        "trace.npz": _file("trace.npz", _trace),
    },
)


# Results -----------------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def _whole() -> dict[str, bytes]:
    names = ("result.json", "spec.json", "steps.parquet", "evals.parquet")
    return {name: (CORPUS / "folder" / name).read_bytes() for name in names}


def _results(name: str) -> Reader:
    """A results folder with one file changed, under every command that reads it."""

    def reader(data: bytes, work: Path) -> None:
        run = work / "out" / "run"
        run.mkdir(parents=True)
        for own, content in _whole().items():
            (run / own).write_bytes(content)
        (run.parent / name if name == "results.sqlite" else run / name).write_bytes(data)
        # One command an input, always the same: all of them would take a second.
        names = _READS[name]
        _COMMANDS[names[zlib.crc32(data) % len(names)]](run.parent)

    return reader


def _rank(folder: Path) -> None:
    from benchmarks.console import leaderboard_table
    from benchmarks.leaderboard import leaderboard
    from benchmarks.leaderboard_export import export
    from benchmarks.results import find_results

    rows = leaderboard(find_results([folder]))
    json.dumps(rows)
    leaderboard_table(rows)
    for suffix in ("csv", "md", "tex", "html"):
        export(rows, folder / f"l.{suffix}")


def _command(*words: str) -> Callable[[Path], object]:
    """A command of the command line on the folder."""

    def read(folder: Path) -> None:
        from typer.testing import CliRunner

        from benchmarks.cli import app

        given = [word.replace("OUT", str(folder)) for word in words]
        done = CliRunner().invoke(app, given)
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        if done.exit_code == 2:
            raise UsageError(done.output)

    return read


_COMMANDS: dict[str, Callable[[Path], object]] = {
    "leaderboard": _rank,
    "ls": _command("results", "ls", "OUT"),
    "show": _command("results", "show", "OUT", "run"),
    "export": _command("results", "export", "OUT", "--out", "OUT/x.csv"),
    "merge": _command("results", "merge", "OUT/merged", "OUT"),
    "gc": _command("results", "gc", "OUT", "--json"),
    "compare": _command("compare", "OUT/run", "OUT/run"),
    "report": _command("report", "OUT", "--out", "OUT/x.html"),
    "curves": _command("curves", "OUT", "--out", "OUT/x.png"),
    "watch": _command("watch", "OUT", "--once"),
}
# Commands that read a file.
_READS = {
    "result.json": ("leaderboard", "ls", "show", "export", "merge", "compare", "report"),
    "spec.json": ("ls", "compare", "report", "curves", "gc"),
    "steps.parquet": ("report",),
    "evals.parquet": ("curves", "report"),
    "results.sqlite": ("leaderboard", "ls", "export", "merge", "watch", "gc"),
}

RESULTS = Target(
    "folder",
    {name: _results(name) for name in _READS},
)

TARGETS: dict[str, Target] = {t.name: t for t in (TEXT, ARRAYS, ARCHIVES, CHECKPOINTS, RESULTS)}


def one(target: str, kind: str, data: bytes, work: Path) -> Any:
    """Read one input again, as a finding says it."""
    return TARGETS[target].call(kind, data, work)
