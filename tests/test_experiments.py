"""Experiments on learning streams: files, resumed runs, paired tables."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from benchmarks.cli import app
from benchmarks.errors import UsageError
from benchmarks.experiments import experiments, interval, markdown, parse, run, table
from benchmarks.learning_setup import prepare
from streams.errors import StreamError

SMALL = """
title = "replay or not"
claim = "none"
stream = "split-fashion-mnist"
backbone = "mlp-8"
num_tasks = 2
num_examples = 40
source_set = { test_examples = 20 }
seeds = [0, 1]
metrics = ["class_incremental_final_accuracy_pct", "class_incremental_forgetting_pct"]
[set]
lr = 0.1
[variants.naive]
method = "naive"
[variants.replay]
method = "replay"
baseline = "naive"
set = { "replay.size" = 20 }
"""


def test_every_experiment_can_be_run():
    """Each variant of each file can be built, as far as it needs no download; none is trained."""
    found = experiments()
    assert len(found) >= 6
    for made in found.values():
        for name in made.variants:
            spec = made.spec(name, 3, None)
            assert spec.seed == 3
            if "cifar" not in made.stream:
                assert prepare(spec).spec is spec


def test_a_variant_that_cannot_be_built_stops_all_before_they_run(tmp_path: Path):
    text = SMALL + '[variants.none]\nmethod = "naive"\nsetting_set = { mode = "none" }\n'
    made = parse("small", text.replace("[set]", 'setting = "revisits"\n[set]'))
    made = made.model_copy(update={"setting_set": {"budget": 0.5}})
    with pytest.raises(StreamError, match="mode 'none' takes no budget"):
        run(made, tmp_path)
    assert not list(tmp_path.iterdir())


def test_intervals_by_hand():
    mean, half = interval([1.0, 2.0, 3.0])
    # t(0.975, 2) = 4.302653; standard deviation 1, root of 3.
    assert mean == 2.0
    assert half == pytest.approx(4.302653 / 3**0.5, rel=1e-6)
    assert interval([5.0]) == (5.0, None)


def test_differences_are_paired_by_seed():
    made = parse("small", SMALL)
    first, second = made.metrics
    runs = {
        "naive": [{first: 10.0, second: 1.0}, {first: 50.0, second: None}],
        "replay": [{first: 13.0, second: 1.0}, {first: 53.0, second: 2.0}],
    }
    naive, replay = table(made, runs)
    assert naive[second] is None
    assert naive["difference"] is None
    assert (replay["difference"], replay["difference_ci95"]) == (3.0, 0.0)
    assert "+3.00 ± 0.00 (naive)" in markdown(made, [naive, replay])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("seeds = [0, 1]", "seeds = 3"), "seeds=3"),
        (('baseline = "naive"', 'baseline = "nave"'), "compared with 'nave'"),
        (("_forgetting_pct", "_forgeting_pct"), "did you mean 'class_incremental_forgetting_pct'"),
        (("[set]", "[set"), "small: "),
        (("title =", "titel ="), "title"),
    ],
)
def test_a_wrong_file_is_one_line(change, message):
    with pytest.raises(UsageError, match=message):
        parse("small", SMALL.replace(*change))


def test_a_metric_that_is_not_defined_leaves_its_cells_empty():
    """A variant without a value has no mean, no interval and no difference, the others theirs."""
    made = parse("small", SMALL)
    first, second = made.metrics
    runs = {
        "naive": [{first: None, second: 1.0}, {first: 50.0, second: 2.0}],
        "replay": [{first: 13.0, second: 1.0}, {first: 53.0, second: 2.0}],
    }
    naive, replay = table(made, runs)
    assert (naive[first], replay[first], replay["difference"]) == (None, 33.0, None)
    assert naive[second] == 1.5


def test_the_command_runs_lists_and_does_not_run_twice(tmp_path: Path):
    def invoke(*words: str):
        return CliRunner().invoke(app, ["experiment", *words])

    assert set(json.loads(invoke("--json").stdout)) == set(experiments())
    file = tmp_path / "small.toml"
    file.write_text(SMALL)
    words = (str(file), "--out", str(tmp_path / "out"), "--json")
    done = invoke(*words)
    assert done.exit_code == 0, done.stderr
    rows = json.loads(done.stdout)
    assert [row["variant"] for row in rows] == ["naive", "replay"]
    assert all(row["seeds"] == 2 for row in rows)
    stamps = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("result.json")}
    assert len(stamps) == 4
    assert json.loads(invoke(*words).stdout) == rows
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps
    wrong = invoke("refresh-fashio")
    assert wrong.exit_code == 2
    assert "did you mean 'refresh-fashion'" in wrong.stderr
