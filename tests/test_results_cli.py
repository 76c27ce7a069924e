"""``tta-bench results``: lists, exact merges, exports that others read, and what gc takes."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

import benchmarks
from benchmarks import learning_runner
from benchmarks.cli import app
from benchmarks.learning_spec import resolve_learning
from benchmarks.results import RunFolder, find_results
from benchmarks.results_table import COLUMNS
from benchmarks.store import FILE, Store

DOCS = Path(benchmarks.__file__).parents[1] / "docs" / "results.md"
HOUR = 3600


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """A row of a run, of a run with visits, and of a learning stream."""
    root = tmp_path_factory.mktemp("real")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TTA_BENCH_CACHE", str(root / "cache"))
        small = {"num_examples": 40, "batch_size": 20, "corruptions": ("fog", "frost")}
        rows = [
            benchmarks.run(benchmarks.resolve("source", "fashion-mnist-c", **small, **more), root)
            for more in ({}, {"setting": "recurring", "setting_options": {"visits": 2}})
        ]
        options: dict[str, Any] = {"num_examples": 40, "num_tasks": 2, "backbone": "small-cnn"}
        life = resolve_learning("replay", "split-fashion-mnist", **options)
        return [*rows, learning_runner.run(life, root)]


def call(*arguments: str | Path, code: int = 0) -> str:
    done = CliRunner().invoke(app, ["results", *map(str, arguments)])
    assert done.exit_code == code, done.output + repr(done.exception)
    if code:
        assert len(done.stderr.strip().splitlines()) == 1, done.stderr
        return done.stderr
    return done.stdout


def call_json(*arguments: str | Path) -> Any:
    return json.loads(call(*arguments, "--json"))


def row_of(row: dict[str, Any], method: str, **changes: Any) -> dict[str, Any]:
    run_id = hashlib.sha256(f"{method} {changes.get('seed', 0)}".encode()).hexdigest()
    return {**row, "method": method, "run_id": run_id, "seed": 0, **changes}


def begin(out: Path, row: dict[str, Any]) -> RunFolder:
    folder = RunFolder(out / f"{row['method']}-s{row['seed']}-{row['run_id'][:8]}")
    keys = ("run_id", "method", "stream", "setting", "backbone", "seed")
    folder.open({key: row[key] for key in keys}, resume=False, overwrite=False)
    return folder


def finish(out: Path, row: dict[str, Any]) -> Path:
    folder = begin(out, row)
    folder.finish(row)
    return folder.path


def mark(out: Path, row: dict[str, Any], status: Any, **more: Any) -> None:
    keys = ("run_id", "method", "stream", "setting", "seed")
    values = {key: row[key] for key in keys}
    Store(out).mark(values.pop("run_id"), status, **values, **more)


def all_of(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def test_ls_and_show(real: list[dict[str, Any]], tmp_path: Path) -> None:
    tent, lame, eata, rotta = (row_of(real[0], name) for name in ("tent", "lame", "eata", "rotta"))
    life = row_of(real[2], "replay")
    folder = finish(tmp_path, tent)
    finish(tmp_path / "below", life)
    mark(tmp_path, lame, "failed", reason="CUDA out of memory")
    mark(tmp_path, eata, "running", done=3, total=12)
    cut = begin(tmp_path, rotta).path
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "spec.json").write_text("{}")  # somebody else's

    text = call("ls", tmp_path)
    for words in (tent["run_id"][:8], "CUDA out of memory", "running 3/12", "unfinished", "5 runs"):
        assert words in text
    assert f"{tent['error_pct']:.2f}" in text
    assert f"{life['class_incremental_final_accuracy_pct']:.2f}" in text
    listed = {entry["method"]: entry for entry in call_json("ls", tmp_path)}
    assert {name: entry["status"] for name, entry in listed.items()} == {
        **{"tent": "finished", "replay": "finished", "lame": "failed"},
        **{"eata": "running", "rotta": "unfinished"},
    }
    assert listed["tent"]["folder"] == str(folder)
    assert listed["rotta"]["folder"] == str(cut)
    assert listed["rotta"]["backbone"] == real[0]["backbone"]

    def methods(*arguments: str) -> list[str]:
        return [entry["method"] for entry in call_json("ls", tmp_path, *arguments)]

    assert methods("-m", "*nt") == ["tent"]
    assert methods("--stream", "split-*") == ["replay"]
    assert methods("--status", "failed,unfinished") == ["lame", "rotta"]
    assert "did you mean" not in call("ls", tmp_path, "--status", "done", code=2)

    text = call("show", tmp_path, tent["run_id"][:6])
    assert tent["protocol"] in text
    assert str(folder) in text
    assert call_json("show", tmp_path, folder.name)["row"] == tent
    assert "CUDA out of memory" in call("show", tmp_path, lame["run_id"])
    assert "no run 'zz'" in call("show", tmp_path, "zz", code=2)
    assert "no run ''" in call("show", tmp_path, "", code=2)
    twin = row_of(real[0], "tent", seed=1) | {"run_id": tent["run_id"][:10] + 54 * "0"}
    Store(tmp_path).put(twin)
    assert "start of 2 runs" in call("show", tmp_path, tent["run_id"][:9], code=2)


def documented() -> dict[str, str]:
    """Fields of result.json as the page says them, with their unit."""
    text = DOCS.read_text("utf-8")
    part = text[text.index("## result.json") : text.index("## steps.parquet")]
    lines = [line.split("|") for line in part.splitlines() if line.startswith("| `")]
    return {
        name.strip(" `"): cells[2].strip() if len(cells) > 4 else ""
        for cells in lines
        for name in cells[1].split(",")
    }


def test_the_columns_are_those_of_the_page(real: list[dict[str, Any]]) -> None:
    fields = documented()
    assert set(COLUMNS) == set(fields) - {"error_pct_<domain>"}
    for row in real[:2]:
        assert {key for key in row if not key.startswith("error_pct_")} == set(COLUMNS)
    measured = {name for name, unit in fields.items() if unit in ("%", "s", "MiB", "nats")}
    lists = {"visit_error_pct", "round_error_pct"}
    for name in measured - lists - {"error_pct_<domain>"}:
        assert COLUMNS[name] == pa.float64(), name


def test_exports_load_with_their_types(real: list[dict[str, Any]], tmp_path: Path) -> None:
    rows = [*real, row_of(real[0], "tent"), row_of(real[0], "tent", seed=1, note="mine", extra=1)]
    for row in rows:
        Store(tmp_path).put(row)
    files = {suffix: tmp_path / "made" / f"runs.{suffix}" for suffix in ("parquet", "csv", "jsonl")}
    for file in files.values():
        assert "5 runs" in call("export", tmp_path, "--out", file)
    order = ("stream", "setting", "backbone", "method", "seed", "run_id")
    rows.sort(key=lambda row: [row[key] for key in order])

    table = pq.read_table(files["parquet"])
    assert table.schema.metadata[b"schema_version"] == b"1"
    assert table.column_names[: len(COLUMNS)] == list(COLUMNS)
    types = {field.name: field.type for field in table.schema}
    assert {name: types[name] for name in COLUMNS} == COLUMNS
    assert types["error_pct_fog"] == types["class_incremental_forgetting_pct"] == pa.float64()
    assert types["num_tasks"] == pa.int64()
    assert types["carry"] == pa.bool_()
    assert (types["note"], types["extra"]) == (pa.string(), pa.float64())
    texts = {"forgets": json.dumps}
    for got, row in zip(table.to_pylist(), rows, strict=True):
        want = {key: texts.get(key, lambda value: value)(value) for key, value in row.items()}
        assert {key: value for key, value in got.items() if value is not None} == {
            key: value for key, value in want.items() if value is not None
        }

    frame = pd.read_parquet(files["parquet"])
    assert str(frame["seed"].dtype) == "int64"
    assert str(frame["error_pct"].dtype) == "float64"
    polars = pl.read_parquet(files["parquet"])
    assert polars.schema["visit_error_pct"] == pl.List(pl.Float64)
    assert (polars.schema["seed"], polars.schema["config"]) == (pl.Int64, pl.String)
    found = duckdb.sql(f"SELECT seed, error_pct, visit_domain FROM '{files['parquet']}'")
    assert found.types == ["BIGINT", "DOUBLE", "VARCHAR[]"]

    errors = [row["error_pct"] for row in rows]
    seeds = [row["seed"] for row in rows]
    for read in (pd.read_csv, lambda file: pd.read_json(file, lines=True, precise_float=True)):
        file = files["csv" if read is pd.read_csv else "jsonl"]
        assert read(file)["error_pct"].tolist() == pytest.approx(errors, rel=1e-15)
        assert read(file)["seed"].tolist() == seeds
    assert pl.read_csv(files["csv"], infer_schema_length=None)["error_pct"].to_list() == errors
    assert pl.read_ndjson(files["jsonl"])["error_pct"].to_list() == errors
    for kind in ("csv", "jsonl"):
        read = duckdb.sql(f"SELECT error_pct, seed FROM '{files[kind]}'").fetchall()
        assert read == list(zip(errors, seeds, strict=True))
    lists = pd.read_csv(files["csv"])["visit_error_pct"].dropna().map(json.loads).tolist()
    assert lists == [row["visit_error_pct"] for row in rows if row.get("visit_error_pct")]

    first = {kind: file.read_bytes() for kind, file in files.items()}
    for file in files.values():
        call("export", tmp_path, "--out", file)
    assert {kind: file.read_bytes() for kind, file in files.items()} == first


def test_exports_that_cannot_be(real: list[dict[str, Any]], tmp_path: Path) -> None:
    out = tmp_path / "out"
    Store(out).put(row_of(real[0], "tent", batch_size=2.5))
    assert ".parquet, .csv, .jsonl" in call("export", out, "--out", tmp_path / "a.xlsx", code=2)
    line = call("export", out, "--out", tmp_path / "a.csv", code=2)
    assert "batch_size should be int64 in all runs, and is 2.5" in line
    assert "does not exist" in call("export", tmp_path / "x", "--out", tmp_path / "a.csv", code=2)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    (out / FILE).write_bytes(b"no database " * 400)
    for command in (("ls", out), ("show", out, "a"), ("gc", out), ("merge", tmp_path / "m", out)):
        assert f"{FILE} is damaged" in call(*command, code=2)


def test_merges_are_exact_and_may_be_repeated(real: list[dict[str, Any]], tmp_path: Path) -> None:
    out, a, b = (tmp_path / name for name in ("out", "a", "b"))
    tents = [row_of(real[0], "tent", seed=seed) for seed in range(4)]
    finish(out, tents[0])
    # The same run on another machine: other times, another device, the same numbers.
    other = {"seconds": 9.5, "device": "NVIDIA H100", "threads": 64, "version_torch": "9.9"}
    folder = finish(a / "deep", tents[0] | other)
    finish(a, tents[1])
    (a / "tent-s1" / "checkpoint").mkdir(parents=True)
    Store(b).put_many([tents[1], tents[2]])  # a store alone
    (b / FILE).rename(tmp_path / "node7.sqlite")
    waiting, broken = row_of(real[0], "lame"), tents[3]
    mark(a, waiting, "queued", label="lr=0.1")
    mark(a, broken, "failed", reason="no memory")
    mark(out, broken, "queued")
    sources = (a, tmp_path / "node7.sqlite")

    assert call_json("merge", out, *sources) == {
        **{"new": 2, "same": 1, "replaced": 0, "kept": 0},
        **{"folders": 1, "unfinished": 1, "runs": 3},
    }
    expected = sorted(tents[:3], key=lambda row: row["run_id"])
    assert sorted(find_results([out]), key=lambda row: row["run_id"]) == expected
    assert Store(out).rows() == expected
    unfinished = {r.run_id: r for r in Store(out).records() if r.row is None}
    assert unfinished[broken["run_id"]].status == "queued", "ours was known"
    assert unfinished[waiting["run_id"]] == next(
        record for record in Store(a).records() if record.run_id == waiting["run_id"]
    )
    copied = next(out.glob("tent-s1-*"))
    assert all_of(copied) == all_of(next(a.glob("tent-s1-*")))

    before = all_of(out)
    text = call("merge", out, *sources)
    assert text == f"2 there already; {out} has 3 finished runs\n".replace("2", "3", 1)
    assert all_of(out) == before
    assert folder.is_dir()

    (out / FILE).unlink()
    assert call_json("merge", out, out)["runs"] == 2, "what only the store knew is gone"
    assert len(Store(out).rows()) == 2


def test_a_conflict_is_refused_or_decided(real: list[dict[str, Any]], tmp_path: Path) -> None:
    ours, theirs, third = (tmp_path / name for name in ("ours", "theirs", "third"))
    row = row_of(real[0], "tent")
    finish(ours, row)
    finish(ours, row_of(real[0], "eata"))
    changed = row | {"nll": row["nll"] + 1e-9}
    theirs_folder = finish(theirs, changed)
    finish(theirs, row_of(real[0], "lame"))
    before = all_of(ours)
    line = call("merge", ours, theirs, code=2)
    for words in (row["run_id"][:8], str(ours), str(theirs), "nll", "--keep"):
        assert words in line
    assert "so have" not in line
    assert all_of(ours) == before
    assert "say ours or theirs" in call("merge", ours, theirs, "--keep", "mine", code=2)

    # Two sources may disagree as well.
    assert "other numbers" in call("merge", third, theirs, ours, code=2)
    assert not third.exists()
    assert call_json("merge", third, theirs, ours, "--keep", "theirs")["replaced"] == 1
    assert row in find_results([third])

    counts = call_json("merge", ours, theirs, "--keep", "ours")
    assert (counts["new"], counts["kept"], counts["replaced"]) == (1, 1, 0)
    assert row in find_results([ours])
    assert row in Store(ours).rows()
    counts = call_json("merge", ours, theirs, "--keep", "theirs")
    assert (counts["same"], counts["kept"], counts["replaced"]) == (1, 0, 1)
    assert changed in find_results([ours])
    assert changed in Store(ours).rows()
    assert all_of(ours / theirs_folder.name) == all_of(theirs_folder)
    counts = call_json("merge", ours, theirs)
    assert (counts["same"], counts["new"]) == (2, 0)


def test_merges_that_cannot_be(real: list[dict[str, Any]], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "no run in" in call("merge", tmp_path / "out", tmp_path / "empty", code=2)
    assert "does not exist" in call("merge", tmp_path / "out", tmp_path / "none", code=2)
    (tmp_path / "file").touch()
    finish(tmp_path / "a", row_of(real[0], "tent"))
    assert "is a file" in call("merge", tmp_path / "file", tmp_path / "a", code=2)
    assert not (tmp_path / "out").exists()
    # An unfinished run in the way is left alone.
    row = row_of(real[0], "tent")
    begin(tmp_path / "out", row)
    counts = call_json("merge", tmp_path / "out", tmp_path / "a")
    assert (counts["new"], counts["folders"]) == (1, 0)
    assert find_results([tmp_path / "out"]) == [row]
    assert next((tmp_path / "out").glob("*/checkpoint")).is_dir()


def test_gc_takes_what_it_says_and_nothing_else(
    real: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("tent", "lame", "eata", "rotta", "sar")
    tent, lame, eata, rotta, sar = (row_of(real[0], name) for name in names)
    done, cut, failed = (
        finish(tmp_path, tent),
        begin(tmp_path, lame).path,
        begin(tmp_path, sar).path,
    )
    (done / "checkpoint").mkdir()
    (done / "checkpoint" / "steps-000000.parquet").write_bytes(b"x" * 1000)
    (cut / "checkpoint" / "steps-000000.parquet").write_bytes(b"y" * 1000)
    (cut / ".spec.json.abcd1234").write_bytes(b"z" * 10)
    (cut / "checkpoint" / ".state.pt.abcd1234").write_bytes(b"z" * 10)
    (cut / "checkpoint" / ".steps-000001.parquet.abcd1234").write_bytes(b"z" * 10)
    half = tmp_path / f".{done.name}.abcd_123"  # of a merge
    shutil.copytree(done, half)
    (tmp_path / ".notes.markdown").write_text("mine")
    young = cut / ".result.json.zzzzzzzz"
    mark(tmp_path, sar, "failed", reason="no memory")
    mark(tmp_path, eata, "running")
    now = time.time()
    for path in (*tmp_path.rglob(".*"), half):
        os.utime(path, (now - 25 * HOUR, now - 25 * HOUR))
    young.write_bytes(b"at work")
    with monkeypatch.context() as patch:
        patch.setattr(time, "time", lambda: now - 30 * HOUR)
        mark(tmp_path, rotta, "queued")

    def files() -> set[str]:
        return {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*")}

    before = files()
    assert find_results([tmp_path]) == [tent], "the half of a merge is no run"
    said = call_json("gc", tmp_path)
    assert files() == before
    gone = {item["path"] for item in said["items"] if not item["record"]}
    kinds = ("spec.json", "checkpoint/.state.pt", "checkpoint/.steps-000001.parquet")
    leftovers = {str(cut / (kind if "/" in kind else f".{kind}")) + ".abcd1234" for kind in kinds}
    assert gone == {str(done / "checkpoint"), str(half), *leftovers}
    assert [i["record"] for i in said["items"] if i["record"]] == [rotta["run_id"]]
    assert (said["removed"], len(Store(tmp_path).records())) == (False, 4)

    text = call("gc", tmp_path, "--yes")
    assert f"removed: 6, {said['bytes']:,} bytes" in text
    assert {str(tmp_path / path) for path in before - files()} == gone | {
        str(path) for path in (*half_files(half, done), done / "checkpoint/steps-000000.parquet")
    }
    assert {r.run_id for r in Store(tmp_path).records()} == {
        row["run_id"] for row in (tent, eata, sar)
    }
    assert "removed: 0, 0 bytes" in call("gc", tmp_path, "--yes")
    assert failed.is_dir()
    assert "folder of a failed run" in call("gc", tmp_path, "--failed", "--yes")
    assert not failed.exists()
    assert young.exists()
    assert find_results([tmp_path]) == [tent]
    assert Store(tmp_path).rows() == [tent]
    assert "is no folder" in call("gc", tmp_path / "none", code=2)


def half_files(half: Path, done: Path) -> list[Path]:
    return [half / path.relative_to(done) for path in (*done.rglob("*"), done / "checkpoint")] + [
        half / "checkpoint" / "steps-000000.parquet"
    ]


def test_rm_forgets_a_run(real: list[dict[str, Any]], tmp_path: Path) -> None:
    tent, lame = row_of(real[0], "tent"), row_of(real[0], "lame")
    folder = finish(tmp_path, tent)
    finish(tmp_path, lame)
    assert "no run 'zz'" in call("rm", tmp_path, folder.name, "zz", code=2)
    assert folder.is_dir(), "all or nothing"
    assert tent["run_id"] in call("rm", tmp_path, folder.name)
    assert not folder.exists()
    assert find_results([tmp_path]) == Store(tmp_path).rows() == [lame]
