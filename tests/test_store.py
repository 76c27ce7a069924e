"""The store: what many writers, killed ones too, leave in it; and who writes to it."""

from __future__ import annotations

import inspect
import json
import math
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import benchmarks
from benchmarks import store as store_module
from benchmarks.results import find_folders, find_results
from benchmarks.store import FILE, Store

SMALL = {"num_examples": 40, "batch_size": 20, "corruptions": ("fog",)}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TTA_BENCH_CACHE", str(tmp_path / "cache"))


def made_row(worker: int, number: int) -> dict[str, Any]:
    """A row as large as a real one; every value follows from worker and number."""
    return {
        "schema_version": 1,
        "run_id": f"{worker:02d}-{number:06d}",
        "method": f"method {worker}",
        "stream": "стрим",
        "setting": "continual",
        "seed": number,
        "error_pct": 100 / (3 + number + 7 * worker),
        "visit_error_pct": [number / 3, None, worker / 7],
        "config": '{"lr": 0.001}',
        "source_data": None,
        **{f"error_pct_{k}": (number * 31 + worker) / (k + 3) for k in range(40)},
    }


def child(code: str, *arguments: object) -> subprocess.Popen[str]:
    """A fresh interpreter with ``made_row``; it says a line when it is ready, and waits for one."""
    head = "import sys, time\nfrom pathlib import Path\nfrom typing import Any\n"
    head += f"from benchmarks.store import Store\n{inspect.getsource(made_row)}\n"
    head += "store = Store(Path(sys.argv[1]))\nprint('ready', flush=True)\nsys.stdin.readline()\n"
    return subprocess.Popen(
        [sys.executable, "-c", head + code, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


APPEND = "w, n = map(int, sys.argv[2:])\nfor i in range(n): store.put(made_row(w, i))\n"


@pytest.mark.parametrize(
    ("workers", "count"), [(4, 100), pytest.param(8, 1000, marks=pytest.mark.slow)]
)
def test_many_processes_append_and_no_row_is_lost_or_torn(
    workers: int, count: int, tmp_path: Path
) -> None:
    writers = [child(APPEND, tmp_path, worker, count) for worker in range(workers)]
    for writer in writers:
        assert writer.stdout.readline() == "ready\n"
    for writer in writers:
        writer.stdin.write("go\n")
        writer.stdin.flush()
    assert [writer.wait(1200) for writer in writers] == [0] * workers
    expected = [made_row(worker, number) for worker in range(workers) for number in range(count)]
    assert Store(tmp_path).rows() == expected
    assert [path.name for path in tmp_path.iterdir()] == [FILE]
    with sqlite3.connect(tmp_path / FILE) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


HALF = """
with store._writing() as connection:
    connection.execute("PRAGMA cache_size = 1")  # pages go to the file before the end
    connection.execute("UPDATE runs SET row = '{}', status = 'torn'")
    for i in range(500):
        connection.execute(
            "INSERT INTO runs VALUES (?, 'finished', '', 'm', 's', 's', 0, '', 0, 0, 0, ?)",
            (f"half-{i}", "{" + 1000 * "x"),
        )
    print("half", flush=True)
    time.sleep(600)
"""


def test_a_writer_killed_in_the_middle_leaves_nothing(tmp_path: Path) -> None:
    rows = [made_row(0, number) for number in range(20)]
    store = Store(tmp_path)
    store.put_many(rows)
    before, size = store.records(), store.file.stat().st_size
    writer = child(HALF, tmp_path)
    writer.stdin.write("go\n")
    writer.stdin.flush()
    assert [writer.stdout.readline() for _ in range(2)] == ["ready\n", "half\n"]
    writer.kill()
    writer.wait()
    assert store.file.stat().st_size > size + 100_000, "the half was not in the file yet"
    assert store.records() == before
    store.put(made_row(1, 0))
    assert store.rows() == [*rows, made_row(1, 0)]


def mark(store: Store, run_id: str, status: Any, **more: Any) -> None:
    store.mark(run_id, status, method="tent", stream="s", setting="c", seed=3, **more)


def test_a_run_from_queue_to_end(tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert (store.exists, store.rows(), store.records(), store.remove(["a"])) == (False, [], [], 0)
    assert not list(tmp_path.iterdir()), "reading makes nothing"
    run_id = made_row(1, 3)["run_id"]
    mark(store, run_id, "queued", label="lr=0.1")
    mark(store, run_id, "running", label="lr=0.1", done=2, total=9)
    (record,) = store.records()
    assert (record.status, record.label, record.done, record.total) == ("running", "lr=0.1", 2, 9)
    assert (record.method, record.seed, record.row) == ("tent", 3, None)
    assert store.rows() == []
    mark(store, run_id, "failed", reason="out of memory")
    assert store.records()[0].reason == "out of memory"
    store.put(made_row(1, 3))
    mark(store, run_id, "running")
    (record,) = store.records()
    assert (record.status, record.reason, record.row) == ("finished", "", made_row(1, 3))
    assert store.has(run_id)
    store.put(made_row(1, 3) | {"error_pct": math.nan})
    assert math.isnan(store.rows()[0]["error_pct"])
    mark(store, "b", "failed")
    assert store.remove([run_id, "b", "c"], unfinished=True) == 1
    assert [record.run_id for record in store.records()] == [run_id]
    assert store.remove([run_id]) == 1
    assert not store.has(run_id)


def test_rows_are_kept_together_or_not_at_all(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with pytest.raises(KeyError):
        store.put_many([made_row(0, 0), {"run_id": "b"}])
    with pytest.raises(sqlite3.IntegrityError):  # ours, and no damage of the file
        store.put_many([made_row(0, 0), made_row(0, 1) | {"method": None}])
    assert store.records() == []


def test_pandas_reads_it_with_sql(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.put_many(made_row(0, number) for number in range(3))
    mark(store, "b", "failed")
    with sqlite3.connect(store.file) as connection:
        frame = pd.read_sql("SELECT * FROM results ORDER BY seed", connection)
    assert frame["seed"].tolist() == [0, 1, 2]
    assert frame["error_pct"].tolist() == [made_row(0, n)["error_pct"] for n in range(3)]
    assert json.loads(frame["row"][2]) == made_row(0, 2)


def damaged(file: Path, how: str) -> str:
    if how == "garbage":
        file.write_bytes(b"no database " * 400)
    elif how == "cut off":
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    elif how == "row":
        with sqlite3.connect(file) as connection:
            connection.execute("UPDATE runs SET row = '{\"run_id\"' WHERE seed = 7")
    else:
        with sqlite3.connect(file) as connection:
            connection.execute("PRAGMA user_version = 9")
        return "has version 9, this version reads 1"
    return "is damaged"


@pytest.mark.parametrize("how", ["garbage", "cut off", "row", "version"])
def test_a_damaged_file_is_named(how: str, tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.put_many(made_row(0, number) for number in range(60))
    words = damaged(store.file, how)
    with pytest.raises(benchmarks.UsageError, match=words) as error:
        store.records()
    assert str(store.file) in str(error.value)
    assert "\n" not in str(error.value)
    if how in ("garbage", "version"):
        with pytest.raises(benchmarks.UsageError, match=words):
            store.put(made_row(1, 0))


def test_an_empty_file_is_an_empty_store(tmp_path: Path) -> None:
    (tmp_path / FILE).touch()
    assert Store(tmp_path).records() == []
    Store(tmp_path).put(made_row(0, 0))
    assert Store(tmp_path).rows() == [made_row(0, 0)]
    (tmp_path / FILE).rename(tmp_path / "node7.sqlite")
    assert Store(tmp_path / "node7.sqlite").rows() == [made_row(0, 0)]


def test_a_store_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(benchmarks.UsageError, match="name another --out"):
        Store(tmp_path / "file" / "results").put(made_row(0, 0))
    store = Store(tmp_path / "r")
    store.put(made_row(0, 0))
    monkeypatch.setattr(store_module, "PATIENCE", 0.05)
    with sqlite3.connect(store.file, isolation_level=None) as other:
        other.execute("BEGIN IMMEDIATE")
        assert store.rows() == [made_row(0, 0)], "a writer stops no reader"
        with pytest.raises(benchmarks.UsageError, match="locked"):
            store.put(made_row(0, 1))
        other.execute("ROLLBACK")
    other.close()


# Runs and the store ------------------------------------------------------------------------------


def run(out: Path, **more: Any) -> dict[str, Any]:
    return benchmarks.run(benchmarks.resolve("source", "fashion-mnist-c", **SMALL), out, **more)


def test_a_finished_run_is_in_the_store_and_outlives_its_folder(tmp_path: Path) -> None:
    out = tmp_path / "out"
    row = run(out)
    assert Store(out).rows() == [row]
    # As if the process had been killed right after the result.
    Store(out).file.unlink()
    assert run(out) == row
    assert Store(out).rows() == [row]
    folders = find_folders([out])
    assert list(folders) == [row["run_id"]]
    (folder,) = folders.values()

    file = folder / "result.json"
    file.write_text(json.dumps(row | {"error_pct": 1.5}))
    assert [found["error_pct"] for found in find_results([out])] == [1.5], (
        "the folder's file counts"
    )
    shutil.rmtree(folder)
    assert find_results([out]) == [row]
    assert find_results([out / FILE, out]) == [row]
    assert find_folders([out]) == {}

    def dies(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(out, overwrite=True, progress=dies)
    assert Store(out).rows() == [], "what is started again is not finished"
    with pytest.raises(benchmarks.UsageError, match="no finished run"):
        find_results([out])


def test_a_damaged_store_loses_no_result(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / FILE).write_bytes(b"no database " * 400)
    with pytest.raises(benchmarks.UsageError, match="is damaged"):
        run(out)
    (file,) = out.glob("*/result.json")
    assert not (file.parent / "checkpoint").exists()
    assert run(out) == json.loads(file.read_text()), "a finished run is read all the same"
    (out / FILE).unlink()
    row = run(out)
    assert Store(out).rows() == [row]
