"""``run --log``: what trackers are told is read back; no number changes, no file is elsewhere."""

from __future__ import annotations

import json
import os
import struct
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

import benchmarks
from benchmarks.cli import app
from benchmarks.errors import UsageError
from benchmarks.results import TIMING_FIELDS
from benchmarks.tracking import Several, make_tracker, parameters, step_values

SMALL = {"num_examples": 40, "batch_size": 20, "corruptions": ("fog", "contrast")}
SPEC = benchmarks.resolve("eta", "fashion-mnist-c", options={"lr": 1e-2}, **SMALL)


class Killed(BaseException):
    """As from outside."""


@pytest.fixture(autouse=True)
def _own_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TTA_BENCH_CACHE", str(tmp_path / "cache"))
    for name in ("MLFLOW_TRACKING_URI", "WANDB_MODE", "WANDB_API_KEY", "MLFLOW_ALLOW_FILE_STORE"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    yield
    assert not list((tmp_path / "here").iterdir()), "something was written into the working folder"


def kill_after(steps: int):
    def progress(done: int, total: int, error: float) -> None:
        if done == steps:
            raise Killed

    return progress


def untimed(row: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key not in TIMING_FIELDS}


def folder_of(out: Path) -> Path:
    (found,) = (path for path in out.iterdir() if path.name.startswith("eta-"))
    return found


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return {
        tag: [(event.step, event.value) for event in events.Scalars(tag)]
        for tag in events.Tags()["scalars"]
    }


def test_no_number_changes_and_the_row_stays_as_it_is(tmp_path: Path) -> None:
    plain = benchmarks.run(SPEC, tmp_path / "plain")
    told = benchmarks.run(
        SPEC, tmp_path / "told", tracker=make_tracker(["tensorboard", "mlflow", "tensorboard"])
    )
    assert untimed(told) == untimed(plain)
    first, second = (
        pq.read_table(folder_of(tmp_path / n) / "steps.parquet") for n in ("plain", "told")
    )
    assert first.drop(["seconds"]).equals(second.drop(["seconds"]))
    assert sorted(p.name for p in (tmp_path / "told").iterdir() if p.name != "mlruns") == sorted(
        p.name for p in (tmp_path / "plain").iterdir()
    )
    assert "MLFLOW_ALLOW_FILE_STORE" not in os.environ


def test_tensorboard(tmp_path: Path) -> None:
    row = benchmarks.run(SPEC, tmp_path, tracker=make_tracker(["tensorboard"]))
    folder = folder_of(tmp_path)
    told = scalars(folder)
    steps = pq.read_table(folder / "steps.parquet").to_pydict()
    assert [step for step, _ in told["step/error_pct"]] == steps["step"] == [0, 1, 2, 3]
    for key in ("error_pct", "entropy", "confidence", "selected_fraction"):
        assert [value for _, value in told[f"step/{key}"]] == pytest.approx(steps[key])
    losses = [value for value in steps["loss"] if value is not None]
    assert [value for _, value in told["step/loss"]] == pytest.approx(losses)
    assert told["domain/fog"] == [(4, pytest.approx(row["error_pct_fog"]))]
    assert told["final/source_error_pct"] == [(4, pytest.approx(row["source_error_pct"]))]


def test_a_resumed_run_continues_the_axis(tmp_path: Path) -> None:
    names = ["tensorboard", "mlflow"]
    with pytest.raises(Killed):
        benchmarks.run(
            SPEC,
            tmp_path,
            checkpoint_seconds=0,
            progress=kill_after(2),
            tracker=make_tracker(names),
        )
    folder = folder_of(tmp_path)
    assert [step for step, _ in scalars(folder)["step/error_pct"]] == [0, 1]
    row = benchmarks.run(SPEC, tmp_path, resume=True, tracker=make_tracker(names))
    assert [step for step, _ in scalars(folder)["step/error_pct"]] == [0, 1, 2, 3]
    (run,) = mlflow_runs(tmp_path)
    assert run.info.status == "FINISHED"
    history = client_of(tmp_path).get_metric_history(run.info.run_id, "error_pct")
    assert [point.step for point in history] == [0, 1, 2, 3]
    steps = pq.read_table(folder / "steps.parquet").to_pydict()
    assert [point.value for point in history] == pytest.approx(steps["error_pct"])
    assert run.data.metrics["final/error_pct"] == pytest.approx(row["error_pct"])


def test_what_was_written_past_the_checkpoint_is_not_there_twice(tmp_path: Path) -> None:
    names = ["tensorboard", "mlflow"]
    with pytest.raises(Killed):
        benchmarks.run(SPEC, tmp_path, progress=kill_after(3), tracker=make_tracker(names))
    benchmarks.run(SPEC, tmp_path, resume=True, tracker=make_tracker(names))
    (run,) = mlflow_runs(tmp_path)
    history = client_of(tmp_path).get_metric_history(run.info.run_id, "error_pct")
    assert [point.step for point in history] == [0, 1, 2, 3]
    assert [step for step, _ in scalars(folder_of(tmp_path))["step/error_pct"]] == [0, 1, 2, 3]


def client_of(out: Path):
    from mlflow.tracking import MlflowClient

    from benchmarks.trackers import _file_client

    return _file_client(MlflowClient, out)


def mlflow_runs(out: Path):
    client = client_of(out)
    return client.search_runs([client.get_experiment_by_name("tta-bench").experiment_id])


def test_mlflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = benchmarks.run(SPEC, tmp_path / "a", tracker=make_tracker(["mlflow"]))
    (run,) = mlflow_runs(tmp_path / "a")
    assert run.data.tags["tta_bench.run_id"] == row["run_id"]
    assert run.data.params["config.lr"] == "0.01"
    assert run.data.params["method"] == "eta"
    assert "data_dir" not in run.data.params
    assert run.data.metrics["domain/contrast"] == pytest.approx(row["error_pct_contrast"])
    # A run that is made again is another one.
    benchmarks.run(SPEC, tmp_path / "a", overwrite=True, tracker=make_tracker(["mlflow"]))
    assert len(mlflow_runs(tmp_path / "a")) == 2
    # The user's own store is asked where one is named.
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mine" / "mlruns").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    benchmarks.run(SPEC, tmp_path / "b", tracker=make_tracker(["mlflow"]))
    assert not (tmp_path / "b" / "mlruns").exists()
    assert len(mlflow_runs(tmp_path / "mine")) == 1


def wandb_records(file: Path) -> Iterator[Any]:
    """Records of an offline run: LevelDB's log format behind a header of seven bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, whole = file.read_bytes(), 7, b""
    while at + 7 <= len(data):
        left = 32768 - at % 32768
        if left < 7:
            at += left
            continue
        _, size, kind = struct.unpack("<IHB", data[at : at + 7])
        if at + 7 + size > len(data):
            return  # still being written
        whole += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):
            record = Record()
            record.ParseFromString(whole)
            whole = b""
            yield record


def test_wandb_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "here"))
    row = benchmarks.run(SPEC, tmp_path / "out", tracker=make_tracker(["wandb"]))
    folder = folder_of(tmp_path / "out")
    (file,) = (folder / "wandb").glob("offline-run-*/*.wandb")
    # Its service writes the file, and may do so after the run is finished here.
    end = time.monotonic() + 100
    while not (records := list(wandb_records(file))) or not records[-1].HasField("exit"):
        assert time.monotonic() < end
        time.sleep(0.1)
    # The library may send the config with the run or after it.
    config = [u for r in records for u in (*r.run.config.update, *r.config.update)]
    said = {u.key or ".".join(u.nested_key): u.value_json for u in config}
    assert said["config.lr"] == "0.01"
    points = [
        {item.key or item.nested_key[0]: json.loads(item.value_json) for item in r.history.item}
        for r in records
        if r.HasField("history")
    ]
    steps = pq.read_table(folder / "steps.parquet").to_pydict()
    assert [point["_step"] for point in points] == steps["step"]
    assert [point["error_pct"] for point in points] == pytest.approx(steps["error_pct"])
    summary = [u for r in records if r.HasField("summary") for u in r.summary.update]
    last = {u.key or u.nested_key[0]: json.loads(u.value_json) for u in summary}
    assert last["run_id"] == row["run_id"]
    assert last["domain/fog"] == pytest.approx(row["error_pct_fog"])


def test_learning_streams_are_told_too(tmp_path: Path) -> None:
    done = CliRunner().invoke(
        app,
        [
            *("run", "-m", "naive", "-s", "split-fashion-mnist", "--backbone", "small-cnn"),
            *("--num-examples", "20", "--num-tasks", "2", "--out", str(tmp_path / "out")),
            *("--log", "tensorboard", "--json"),
        ],
    )
    assert done.exit_code == 0, done.output
    (row,) = json.loads(done.stdout)
    (folder,) = (path for path in (tmp_path / "out").iterdir() if path.is_dir())
    told = scalars(folder)
    assert len(told["step/loss"]) == row["num_steps"]
    assert told["final/error_pct"][0][1] == pytest.approx(row["error_pct"])


def test_wrong_words(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert make_tracker([]) is None
    with pytest.raises(UsageError, match="known trackers are tensorboard, mlflow, wandb"):
        make_tracker(["mlfow"])
    monkeypatch.setitem(__import__("sys").modules, "wandb", None)
    words = ["run", "-m", "tent", "-s", "fashion-mnist-c", "--log", "wandb", "--out", str(tmp_path)]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 2
    assert "--log wandb needs wandb: pip install wandb" in done.stderr
    assert not list(tmp_path.rglob("spec.json"))


class Broken:
    """A server that goes away."""

    def start(self, spec: Any, folder: Path) -> None: ...

    def step(self, rows: Any) -> None:
        raise ConnectionError("the server is gone\nand more")

    def finish(self, row: Any) -> None:
        raise AssertionError("it was left out")

    close = finish


class Unreachable(Broken):
    def start(self, spec: Any, folder: Path) -> None:
        raise ConnectionError("no route")

    def close(self, row: Any = None) -> None: ...


def test_a_tracker_that_fails_costs_no_run(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="--log broken is left out: the server is gone$"):
        row = benchmarks.run(SPEC, tmp_path, tracker=Several({"broken": Broken()}))
    assert row["num_steps"] == 4
    with pytest.raises(UsageError, match="--log far cannot start"):
        benchmarks.run(SPEC, tmp_path / "far", tracker=Several({"far": Unreachable()}))
    # A finished run is read, and nobody is told.
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        benchmarks.run(SPEC, tmp_path, tracker=Several({"broken": Broken()}))


def test_values_of_a_step() -> None:
    rows = [
        {
            "n": 1,
            "correct": 1,
            "loss": 0.5,
            "selected_fraction": None,
            "entropy": 1.0,
            "confidence": 0.5,
        },
        {
            "n": 3,
            "correct": 0,
            "loss": 0.5,
            "selected_fraction": None,
            "entropy": 2.0,
            "confidence": 0.7,
        },
    ]
    assert step_values(rows) == {
        "error_pct": 75.0,
        "loss": 0.5,
        "entropy": 1.75,
        "confidence": pytest.approx(0.65),
    }
    nothing = {**rows[0], "n": 0, "correct": 0, "loss": float("nan")}
    assert step_values([nothing]) == {}
    flat = parameters({"config": {"a": 1, "b": {"c": [1]}}, "norm": None, "data_dir": "/x"})
    assert flat == {"config.a": 1, "config.b.c": "[1]", "norm": "null"}
