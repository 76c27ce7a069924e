"""The command line: help, lists, what a run prints. Wrong input: tests/test_bad_inputs.py."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from benchmarks.cli import app

RUN = ("run", "--method", "tent", "--stream", "fashion-mnist-c", "--num-examples", "20")


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TTA_BENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


def call(*arguments: str | Path):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def npy_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "arrays"
    folder.mkdir()
    generator = np.random.default_rng(0)
    np.save(folder / "labels.npy", generator.integers(0, 10, 30))
    np.save(folder / "fog.npy", generator.integers(0, 256, (30, 32, 32, 3), dtype=np.uint8))
    return folder


def run_folder(folder: Path) -> tuple[str | Path, ...]:
    return (
        *("run", "-m", "tent", "-s", "npy-folder", "--data-dir", folder),
        *("--corruptions", "fog", "--backbone", "fashion-resnet", "--out", "out"),
    )


def test_npy_folder_runs(tmp_path: Path) -> None:
    result = call(*run_folder(npy_folder(tmp_path)), "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)[0]["num_samples"] == 30


def test_run_prints_a_table_and_leaderboard_exports(tmp_path: Path) -> None:
    first = call(*RUN, "--method", "source", "--corruptions", "fog,snow", "--out", "r")
    assert first.exit_code == 0, first.output
    assert "finished before" not in first.stderr
    for words in ("tent", "source", "fog", "snow", "mean", "results: r"):
        assert words in first.stdout
    result = call("leaderboard", "r", "--export", "l.csv", "--export", "l.md", "--json")
    rows = json.loads(result.stdout)
    assert {row["method"] for row in rows} == {"tent", "source"}
    assert (tmp_path / "l.csv").read_text().startswith("rank,method,error_pct")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cache", "l.csv", "l.md", "r"]
    again = call(*RUN, "--method", "source", "--corruptions", "fog,snow", "--out", "r")
    assert again.stderr.count("finished before and reused") == 2
    assert again.stdout == first.stdout


def test_set_for_one_method() -> None:
    result = call(
        *("run", "-m", "source,tent", "-s", "fashion-mnist-c", "--num-examples", "20"),
        *("--corruptions", "fog", "--set", "tent.lr=0.5", "--json"),
    )
    configs = [json.loads(row["config"]) for row in json.loads(result.stdout)]
    assert "lr" not in configs[0]
    assert configs[1]["lr"] == 0.5


def test_describe() -> None:
    result = call("describe", "-s", "fashion-mnist-c", "--setting", "reset", "--json")
    plan = json.loads(result.stdout)
    assert plan["samples"] == 150_000
    assert plan["resets"] == 15
    assert [d["first_step"] for d in plan["domains"]][:3] == [0, 50, 100]
    options = json.loads(call("describe", "-m", "deyo", "--json").stdout)
    assert {
        key: next(o for o in options if o["option"] == "plpd_threshold")[key]
        for key in ("option", "default")
    } == {"option": "plpd_threshold", "default": 0.2}


@pytest.mark.parametrize("arguments", [["--help"], ["list"], ["run", "--help"]])
def test_help_and_list_import_nothing_heavy(arguments: list[str]) -> None:
    code = (
        "import sys\n"
        "from benchmarks.cli import app\n"
        f"try: app({arguments!r})\n"
        "except SystemExit as done: assert not done.code\n"
        "heavy = {'torch', 'numpy', 'timm', 'avalanche', 'robustbench', 'pandas', 'pyarrow'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.shared
def test_cifar10_c_on_real_images(shared: Path, tmp_path: Path) -> None:
    result = call(
        *("run", "-m", "source,deyo", "-s", "cifar10-c", "--data-dir", shared / "data" / "cifar10"),
        *("--backbone", "cifar-resnet20", "--num-examples", "200", "--json"),
        *("--corruptions", "gaussian_noise,contrast"),
        *("--checkpoint", shared / "data" / "weights" / "resnet20-12fca82f.th"),
    )
    assert result.exit_code == 0, result.output
    source, deyo = json.loads(result.stdout)
    assert source["provenance"].startswith("generated")
    assert deyo["error_pct"] < source["error_pct"] - 5


def test_the_module_runs_as_a_script() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.cli", "list", "settings"],
        capture_output=True,
        text=True,
        env=os.environ,
    )
    assert done.returncode == 0
    assert "continual" in done.stdout
