"""The commands that measure what a guard is worth and what it costs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import guard_cost, guard_matrix


def test_collapse(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A row for each method of the case; again, it is read and not run."""
    words = ["guard_matrix", "collapse", "--out", str(tmp_path), "--methods", "tent"]
    monkeypatch.setattr("sys.argv", [*words, "--case", "continual", "--num-examples", "20"])
    tables = []
    for _ in range(2):
        assert guard_matrix.main() == 0
        tables.append(capsys.readouterr().out)
    assert tables[0] == tables[1]
    (row,) = [line for line in tables[0].splitlines() if "tent" in line]
    name, method, source, without, guarded, alarms, _ = (
        cell.strip() for cell in row.strip("|").split("|")
    )
    assert (name, method, alarms) == ("continual", "tent", "0")
    assert without == guarded != source
    assert len(list(tmp_path.glob("*/result.json"))) == 2


def test_a_case_that_does_not_exist(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["guard_matrix", "collapse", "--out", str(tmp_path / "out"), "--case", "batches"]
    monkeypatch.setattr("sys.argv", words)
    assert guard_matrix.main() == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("guard_matrix: error: no case begins with 'batches'; there are: recur")
    assert not (tmp_path / "out").exists()


def test_estimate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["guard_matrix", "estimate", "--out", str(tmp_path), "--methods", "tent"]
    words += ["--num-examples", "12", "--batch-size", "6", "--settings", "label-shift"]
    monkeypatch.setattr("sys.argv", words)
    assert guard_matrix.main() == 0
    (row,) = [line for line in capsys.readouterr().out.splitlines() if "tent" in line]
    setting, method, *figures = (cell.strip() for cell in row.strip("|").split("|"))
    assert (setting, method) == ("label-shift", "tent")
    assert all(0 <= float(figure) <= 100 for figure in figures)
    (spec,) = tmp_path.glob("*/spec.json")
    assert json.loads(spec.read_text("utf-8"))["batch_size"] == 6
    monkeypatch.setattr("sys.argv", [*words, "--settings", "label-shfit"])
    assert guard_matrix.main() == 2
    assert "did you mean 'label-shift'?" in capsys.readouterr().err


def test_cost(tmp_path: Path) -> None:
    file = tmp_path / "cost.json"
    words = ["--method", "tent", "--batch-size", "8", "--steps", "6", "--json", str(file)]
    assert guard_cost.main(words) == 0
    (row,) = json.loads(file.read_text("utf-8"))["rows"]
    assert row["backbone"] == "fashion-resnet"
    assert (row["steps"], row["batch_size"], row["alarms"]) == (6, 8, 0)
    # Eight images are no window: checks see the last ones together.
    assert row["checks"] < 6
    assert row["quiet_pct"] > 0
    assert guard_cost.main([*words, "--backbone", "resnet-of-nobody"]) == 2
