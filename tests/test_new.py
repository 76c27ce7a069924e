"""A method in a package of its own: written, checked, listed, run and ranked."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from benchmarks.cli import app

BENCH = [sys.executable, "-m", "benchmarks.cli"]


@pytest.mark.slow
def test_a_new_package_is_one_of_the_methods(tmp_path: Path) -> None:
    written = CliRunner().invoke(app, ["new", "adapter", "soft-labels", "--out", str(tmp_path)])
    assert written.exit_code == 0, written.output
    package = tmp_path / "tta-soft-labels"
    site = tmp_path / "site"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "--no-index", "--target", site, package], check=True)
    env = os.environ | {"PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"}

    def call(*words: str | Path) -> str:
        done = subprocess.run(
            list(words), env=env, cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    tests = call(sys.executable, "-m", "pytest", "-q", package / "tests", "-p", "no:cacheprovider")
    assert " passed" in tests
    assert "failed" not in tests
    assert "soft-labels" in json.loads(call(*BENCH, "list", "methods", "--json"))["methods"]
    stream = ["-s", "fashion-mnist-c", "--num-examples", "40", "--corruptions", "fog"]
    call(*BENCH, "run", "-m", "source,soft-labels", *stream, "--out", "results")
    ranked = json.loads(call(*BENCH, "leaderboard", "results", "--json"))
    assert {row["method"] for row in ranked} == {"source", "soft-labels"}


@pytest.mark.parametrize(
    ("name", "word"), [("tent", "already"), ("Big", "lower case"), ("../x", "lower case")]
)
def test_a_bad_name_is_one_line(name: str, word: str, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["new", "adapter", name, "--out", str(tmp_path)])
    assert done.exit_code == 2
    assert word in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "tta-mine").mkdir()
    done = CliRunner().invoke(app, ["new", "adapter", "mine", "--out", str(tmp_path)])
    assert done.exit_code == 2
    assert "already" in done.stderr
