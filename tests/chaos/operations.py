"""What is killed: each operation goes on where it was left, and has an outcome to compare."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import random
import sqlite3
import time
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch

import benchmarks
from benchmarks.cli import app
from benchmarks.results import STEP_SCHEMA, TIMING_FIELDS, RunFolder
from benchmarks.store import FILE, Store
from streams.fetch import Options, fetch

ROWS, STEPS = 40, 25
CONTENT = random.Random(0).randbytes(600_000)
GRID = """
methods = ["source", "tent"]
streams = ["fashion-mnist-c"]
seeds = [0]
num_examples = 20
[common]
corruptions = ["fog"]
batch_size = 10
"""


@dataclass(frozen=True)
class Operation:
    """One operation in a folder of its own.

    Attributes:
        go: Begin, or go on after a kill.
        outcome: What the end must be, plain JSON; the same however often it was killed.
        whole: Raises ``AssertionError`` if what a kill left is torn or lost.
    """

    go: Callable[[Path], None]
    outcome: Callable[[Path], Any]
    whole: Callable[[Path], None]


def _run(folder: Path) -> None:
    spec = benchmarks.resolve(
        *("tent", "fashion-mnist-c"),
        **{"num_examples": 30, "batch_size": 10, "corruptions": ("fog", "snow")},
    )
    benchmarks.run(spec, folder / "out", resume=True, checkpoint_seconds=0)


def _sweep(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "grid.toml").write_text(GRID, "utf-8")
    words = ["sweep", str(folder / "grid.toml"), "--out", str(folder / "out")]
    app([*words, "--engine", "serial"], standalone_mode=False)


def _rows(folder: Path) -> dict[str, Any]:
    """Rows and steps of all runs, in folders and in the store, without times."""
    files = sorted((folder / "out").glob("*/result.json"))
    rows = [json.loads(file.read_text("utf-8")) for file in files]
    kept = Store(folder / "out").rows()
    assert sorted(rows, key=lambda row: row["run_id"]) == kept, "store and folders differ"
    made = {}
    for file, row in zip(files, rows, strict=True):
        steps = pq.read_table(file.parent / "steps.parquet").drop(["seconds"]).to_pylist()
        text = json.dumps([steps, {k: v for k, v in row.items() if k not in TIMING_FIELDS}])
        made[row["run_id"]] = hashlib.sha256(text.encode()).hexdigest()
        assert not (file.parent / "checkpoint").exists(), "a finished run has a checkpoint"
    return made


def _whole_results(folder: Path) -> None:
    """Every file under its own name can be read whole."""
    for file in folder.glob("out/*/result.json"):
        assert json.loads(file.read_text("utf-8"))["run_id"]
        pq.read_table(file.parent / "steps.parquet", schema=STEP_SCHEMA)
    for file in folder.glob("out/*/spec.json"):
        RunFolder(file.parent).load("cpu")
    _whole_store(folder / "out")


def _whole_store(folder: Path) -> None:
    if (folder / FILE).is_file():
        Store(folder).records()  # rolls back what a killed writer left
        with sqlite3.connect(folder / FILE) as connection:
            assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


def _fetch(folder: Path, url: str, checksum: str | None) -> None:
    options = Options(retries=2, pause=0.01)
    fetch([url], folder / "below" / "data.bin", checksum=checksum, options=options)


def _fetched(folder: Path) -> Any:
    files = [p for p in (folder / "below").iterdir() if not p.name.endswith(".lock")]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def _whole_file(folder: Path) -> None:
    file, part = folder / "below" / "data.bin", folder / "below" / "data.bin.part"
    assert not file.exists() or file.read_bytes() == CONTENT, "a file under its name is not whole"
    assert not part.exists() or CONTENT.startswith(part.read_bytes()), "the part is torn"


def _row(number: int) -> dict[str, Any]:
    return {
        **{"schema_version": 1, "run_id": f"{number:06d}", "method": "m", "stream": "s"},
        **{"setting": "c", "seed": number, "error_pct": 100 / (number + 3)},
        **{f"error_pct_{k}": number / (k + 3) for k in range(40)},
    }


def _append(folder: Path) -> None:
    """Put rows one by one, and tell in a file of each that was put."""
    store = Store(folder / "out")
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "told").open("ab", buffering=0) as told:
        for number in range(len(store.rows()), ROWS):
            store.put(_row(number))
            told.write(b"x")


def _no_row_lost(folder: Path) -> None:
    rows = Store(folder / "out").rows()
    assert rows == [_row(number) for number in range(len(rows))], "a row is torn or out of turn"
    told = folder / "told"
    assert len(rows) >= (told.stat().st_size if told.is_file() else 0), "a row was lost"
    _whole_store(folder / "out")


def _step(number: int) -> dict[str, Any]:
    row = {"step": number, "domain": "fog", "n": 10, "correct": number, "error_pct": 1 / 3}
    return {name: row.get(name) for name in STEP_SCHEMA.names}


def _checkpoints(folder: Path) -> None:
    """A checkpoint a step, then the end."""
    run = RunFolder(folder / "out" / "run")
    if run.finished:
        run.open(_row(0), resume=True, overwrite=False)
        return
    run.create(_row(0))
    state = run.load("cpu")
    for number in range(0 if state is None else state["step"], STEPS):
        run.add([_step(number)])
        run.save({"step": number + 1, "weights": torch.full((2000,), float(number))})
    run.finish(_row(0))


def _whole_checkpoint(folder: Path) -> None:
    run = RunFolder(folder / "out" / "run")
    state = run.load("cpu")
    if state is not None:
        done = state["step"]
        assert bool((state["weights"] == done - 1).all()), "weights of another step"
        assert run.table()["step"].tolist() == list(range(done)), "a step is lost or there twice"
    _whole_store(folder / "out")


def operations(url: str) -> dict[str, Operation]:
    """All of them by name.

    Args:
        url: Where ``serve`` gives ``CONTENT``.
    """
    digest = f"sha256:{hashlib.sha256(CONTENT).hexdigest()}"
    return {
        "run": Operation(_run, _rows, _whole_results),
        "sweep": Operation(_sweep, _rows, _whole_results),
        "fetch": Operation(
            functools.partial(_fetch, url=url, checksum=None), _fetched, _whole_file
        ),
        "fetch-checked": Operation(
            functools.partial(_fetch, url=url, checksum=digest), _fetched, _whole_file
        ),
        "store": Operation(_append, lambda folder: Store(folder / "out").rows(), _no_row_lost),
        "checkpoint": Operation(_checkpoints, _rows, _whole_checkpoint),
    }


class _Slow(BaseHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        given = self.headers.get("Range", "")
        first = int(given.removeprefix("bytes=").rstrip("-") or 0)
        last = len(CONTENT) - 1
        self.send_response(206 if first else 200)
        self.send_header("Content-Length", str(len(CONTENT) - first))
        self.send_header("ETag", '"one"')
        if first:
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(CONTENT)}")
        self.end_headers()
        for at in range(first, len(CONTENT), 20_000):
            self.wfile.write(CONTENT[at : at + 20_000])
            time.sleep(0.004)


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # a client that was killed


def serve() -> tuple[str, int]:
    """Address of ``CONTENT``, given out slowly by a process of its own, and its number."""
    server = _Server(("127.0.0.1", 0), _Slow)
    if (process := os.fork()) == 0:
        try:
            server.serve_forever()
        finally:
            os._exit(0)
    server.socket.close()
    return f"http://127.0.0.1:{server.server_port}/data.bin", process
