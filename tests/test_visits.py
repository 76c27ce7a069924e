"""Error per visit: rows, results, console, leaderboard, and the same after a resume."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

import benchmarks
from benchmarks import metrics
from benchmarks.console import results_table
from benchmarks.leaderboard import leaderboard
from benchmarks.leaderboard_columns import columns
from benchmarks.leaderboard_export import to_csv
from benchmarks.results import TIMING_FIELDS, find_results
from streams import settings
from streams.types import Batch, Domain

SMALL = {"num_examples": 30, "batch_size": 20, "corruptions": ("fog", "contrast")}
TWICE = {"setting": "recurring", "setting_options": {"visits": 3}}
FIELDS = ("visit_error_pct", "visit_domain", "round_error_pct")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TTA_BENCH_CACHE", str(tmp_path / "cache"))


def spec_of(method: str, **changes):
    return benchmarks.resolve(method, "fashion-mnist-c", **{**SMALL, **changes})


def steps_of(folder: Path):
    return pq.read_table(next(folder.glob("*/steps.parquet")))


def test_recurring_gives_an_error_for_each_visit_and_round(tmp_path: Path) -> None:
    row = benchmarks.run(spec_of("tent", options={"lr": "0.02"}, **TWICE), tmp_path)
    steps = steps_of(tmp_path).to_pydict()
    # Three rounds of two domains, 30 images in batches of 20 and 10.
    assert steps["visit"] == [v for v in range(6) for _ in range(2)]
    assert row["visit_domain"] == ["fog", "contrast"] * 3
    by_hand = [
        100 * (1 - sum(steps["correct"][2 * v : 2 * v + 2]) / sum(steps["n"][2 * v : 2 * v + 2]))
        for v in range(6)
    ]
    assert row["visit_error_pct"] == pytest.approx(by_hand, abs=1e-9)
    rounds = np.array(by_hand).reshape(3, 2).mean(1)
    assert row["round_error_pct"] == pytest.approx(rounds.tolist(), abs=1e-9)
    assert row["first_visit_error_pct"] == pytest.approx(rounds[0], abs=1e-9)
    assert row["last_visit_error_pct"] == pytest.approx(rounds[2], abs=1e-9)
    # The published mean of the visits is the mean of the domains: all visits are as long.
    assert row["error_pct"] == pytest.approx(rounds.mean(), abs=1e-9)
    json.dumps(row)


def test_a_batch_that_crosses_a_border_has_a_row_for_each_visit(tmp_path: Path) -> None:
    options = {"visits": 2, "base": "practical"}
    row = benchmarks.run(spec_of("source", setting="recurring", setting_options=options), tmp_path)
    table = steps_of(tmp_path).to_pydict()
    assert sum(table["n"]) == 120
    assert [
        sum(n for n, v in zip(table["n"], table["visit"], strict=True) if v == visit)
        for visit in range(4)
    ] == [30] * 4
    # 20 a step: the second step holds the ends of one visit and the start of the next.
    assert [table["visit"][at] for at, step in enumerate(table["step"]) if step == 1] == [0, 1]
    # Without adaptation each visit repeats the first.
    assert row["round_error_pct"][0] == row["round_error_pct"][1] == pytest.approx(row["error_pct"])


def test_gradual_has_visits_and_no_rounds(tmp_path: Path) -> None:
    chosen = {"corruptions": ("contrast",), "severity": (2,), "num_examples": 10}
    row = benchmarks.run(spec_of("source", setting="gradual", **chosen), tmp_path)
    assert row["visit_domain"] == ["contrast_1", "contrast_2", "contrast_1"]
    assert row["visit_error_pct"][0] == row["visit_error_pct"][2]
    assert row["round_error_pct"] is None  # severity 2 comes once, severity 1 twice
    assert row["first_visit_error_pct"] is None


def test_where_each_domain_comes_once_there_are_no_visits(tmp_path: Path) -> None:
    row = benchmarks.run(spec_of("source"), tmp_path)
    assert [row[name] for name in FIELDS] == [None] * 3
    assert set(steps_of(tmp_path).to_pydict()["visit"]) == {None}


def test_visits_by_hand() -> None:
    """Visit 1 has a batch of its own and a part of another; one domain is visited longer."""
    domains = [Domain(name=n, corruption=n, severity=5) for n in ("fog", "snow")]

    def rows(step: int, y: list[int], ids: list[int], visits: list[int]) -> list[dict]:
        batch = Batch(
            x=torch.zeros(len(y), 3, 2, 2),
            y=torch.tensor(y),
            domain="mixed",
            severity=0,
            index=torch.arange(len(y)),
            step=step,
            domain_ids=torch.tensor(ids),
        )
        logits = torch.tensor([[1.0, 0.0]]).repeat(len(y), 1)
        return metrics.step_rows(batch, logits, domains, {}, 0.1, np.array(visits))

    made = rows(0, [0, 0, 1], [0, 0, 1], [0, 0, 1]) + rows(1, [1, 0, 1], [1, 0, 1], [1, 2, 3])
    assert [(r["step"], r["visit"], r["domain"]) for r in made] == [
        (0, 0, "fog"),
        (0, 1, "snow"),
        (1, 1, "snow"),
        (1, 2, "fog"),
        (1, 3, "snow"),
    ]
    table = {key: np.array([row[key] for row in made], dtype=object) for key in made[0]}
    found = metrics.visit_errors(table)
    assert found["visit_error_pct"] == [0, 100, 0, 100]
    assert found["visit_domain"] == ["fog", "snow", "fog", "snow"]
    assert found["round_error_pct"] == [50, 50]
    # A visit of another length is no second round.
    longer = {key: np.concatenate([column, column[:1]]) for key, column in table.items()}
    longer["n"] = np.array([2, 1, 1, 9, 1, 2], dtype=object)
    assert metrics.visit_errors(longer)["round_error_pct"] is None


def test_visits_of_a_step_follow_the_plan() -> None:
    plan = settings.make_plan(
        "recurring",
        settings.Request(
            domains=(Domain(name="fog", corruption="fog", severity=5),),
            positions=np.arange(5),
            labels=np.zeros(5, dtype=np.int64),
            batch_size=3,
            seed=0,
            shuffle=True,
            options={"visits": 2, "base": "practical"},
        ),
    )
    assert [plan.visits(step).tolist() for step in range(len(plan))] == [
        [0, 0, 0],
        [0, 0, 1],
        [1, 1, 1],
    ]


class StopError(Exception):
    pass


@pytest.mark.parametrize("base", ["continual", "practical"])
def test_visits_are_the_same_after_a_resume(base: str, tmp_path: Path) -> None:
    spec = spec_of("tent", setting="recurring", setting_options={"visits": 2, "base": base})
    whole = benchmarks.run(spec, tmp_path / "whole")

    def stop(done: int, total: int, error: float) -> None:
        if done == 3:
            raise StopError

    with pytest.raises(StopError):
        benchmarks.run(spec, tmp_path / "cut", checkpoint_seconds=0, progress=stop)
    resumed = benchmarks.run(spec, tmp_path / "cut", resume=True)
    for row in (whole, resumed):
        for key in TIMING_FIELDS:
            row.pop(key)
    assert whole == resumed
    left, right = (steps_of(tmp_path / name).drop(["seconds"]) for name in ("whole", "cut"))
    assert left == right


def test_console_and_leaderboard(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    row = benchmarks.run(spec_of("source", **TWICE), tmp_path)
    results_table([row])
    shown = capsys.readouterr().out
    assert "visit 1 " in shown
    assert "visit 3 " in shown
    assert "mean of 3 visits" in shown
    old = {k: v for k, v in row.items() if "visit" not in k and "round" not in k}
    old["config"] = json.dumps({"other": 1})  # as an earlier version left it
    ranked = leaderboard([row, old])
    assert len(ranked) == 2
    assert {"first_visit_error_pct", "last_visit_error_pct"} <= set(columns(ranked))
    assert not any("round" in name or name == "visit_error_pct" for name in columns(ranked))
    assert to_csv(ranked).count("\n") == 3
    results_table([old])
    assert "visit 1" not in capsys.readouterr().out


@pytest.mark.slow
def test_kill_nine_and_resume_with_visits_and_unknown_images(tmp_path: Path) -> None:
    """The process is killed in the second visit; with --resume the result is the same."""
    command = [
        *(sys.executable, "-m", "benchmarks.cli", "run", "--method", "tent"),
        *("--stream", "fashion-mnist-c", "--num-examples", "40", "--batch-size", "8"),
        *("--corruptions", "fog,contrast", "--setting", "recurring"),
        *("--setting-set", "visits=3", "--setting-set", "base=practical"),
        *("--open-set", "noise", "--open-ratio", "0.3", "--checkpoint-seconds", "0.02"),
    ]
    quiet = {
        "env": {**os.environ, "OMP_NUM_THREADS": "1"},
        "stdout": subprocess.DEVNULL,
        "stderr": subprocess.PIPE,
    }
    cut = tmp_path / "cut"
    process = subprocess.Popen([*command, "--out", cut], **quiet)
    deadline = time.monotonic() + 120
    while not list(cut.glob("*/checkpoint/steps-000003.parquet")):
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not list(cut.rglob("result.json"))
    subprocess.run([*command, "--out", cut, "--resume"], check=True, **quiet)
    subprocess.run([*command, "--out", tmp_path / "whole"], check=True, **quiet)
    rows = [find_results([tmp_path / name])[0] for name in ("whole", "cut")]
    for row in rows:
        for key in TIMING_FIELDS:
            row.pop(key)
    assert rows[0] == rows[1]
    assert len(rows[0]["visit_error_pct"]) == 6
    assert rows[0]["auroc_pct"] is not None
    left, right = (steps_of(tmp_path / name).drop(["seconds"]) for name in ("whole", "cut"))
    assert left == right
