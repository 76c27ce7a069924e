"""What a report makes of the steps of runs: collapses, and lines short enough for a page."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import benchmarks
from benchmarks.report.data import read
from benchmarks.report.events import collapses
from benchmarks.report.series import MAX_POINTS, axis_of, error_line

SMALL = {"num_examples": 20, "batch_size": 10, "corruptions": ("fog", "contrast")}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two methods, two seeds, two domains."""
    out = tmp_path_factory.mktemp("results")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TTA_BENCH_CACHE", str(tmp_path_factory.mktemp("cache")))
        for method in ("source", "tent"):
            for seed in (0, 1):
                spec = benchmarks.resolve(method, "fashion-mnist-c", seed=seed, **SMALL)
                benchmarks.run(spec, out)
    return out


@pytest.fixture
def copied(results: Path, tmp_path: Path) -> Path:
    """The runs, to be changed."""
    return Path(shutil.copytree(results, tmp_path / "results"))


def change(file: Path, **fields: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text("utf-8")) | fields), "utf-8")


def group_of(roots: Path):
    (group,) = read([roots]).groups
    return group


def test_collapse_is_found_where_it_is(copied: Path) -> None:
    assert not collapses(group_of(copied), 10)
    folder = next(copied.glob("tent-*-s1-*"))
    table = pq.read_table(folder / "steps.parquet")
    rows = [{**row, "n": 30, "correct": 15} for row in table.to_pylist()]
    # Steps 0 to 9 of fog and 10 to 19 of contrast; near chance in steps 7 to 13.
    long = [
        {**rows[2 * (step > 9)], "step": step, "correct": 2 if 7 <= step <= 13 else 15}
        for step in range(20)
    ]
    long[2]["correct"] = long[3]["correct"] = 0  # two steps are too few
    long[16]["non_finite"] = 4
    pq.write_table(pa.Table.from_pylist(long, table.schema), folder / "steps.parquet")
    for file in copied.glob("source-*/result.json"):
        change(file, error_pct_fog=40.0, error_pct_contrast=50.0)
    group = group_of(copied)
    found = {(e.step, e.steps, e.domain): e.reason for e in collapses(group, 10)}
    assert set(found) == {(7, 7, "fog, contrast"), (16, 1, "contrast")}
    assert found[7, 7, "fog, contrast"].startswith("error 93.3 % over 210 images, chance 90.0 %")
    assert found[16, 1, "contrast"] == "4 predictions with NaN or infinity"
    assert [e.step for e in collapses(group, None)] == [16]
    # Where the source model is no better nothing collapsed.
    for file in copied.glob("source-*/result.json"):
        change(file, error_pct_fog=95.0, error_pct_contrast=95.0)
    assert [e.step for e in collapses(group_of(copied), 10)] == [16]


def test_clean_images_at_chance_are_a_collapse(copied: Path) -> None:
    change(next(copied.glob("tent-*-s0-*")) / "result.json", clean_error_pct=88.0)
    (event,) = collapses(group_of(copied), 10)
    assert (event.entry.method, event.step, event.domain) == ("tent", None, "clean")


def test_long_runs_are_pooled(copied: Path) -> None:
    for file in copied.glob("*/steps.parquet"):
        table = pq.read_table(file)
        rows = table.to_pylist()
        long = [{**rows[2 * (s >= 400)], "step": s, "correct": s % 10} for s in range(1000)]
        pq.write_table(pa.Table.from_pylist(long, table.schema), file)
    group = group_of(copied)
    axis = axis_of(group)
    assert len(axis.starts) <= MAX_POINTS
    assert [(band.name, band.first, band.end) for band in axis.bands] == [
        ("fog", 0, 400),
        ("contrast", 400, 1000),
    ]
    assert 400 in axis.starts  # no point is of two domains
    correct = [s % 10 for s in range(1000)]
    line = error_line(group.entries[0], axis)
    end = axis.starts[1]
    assert line.mean[0] == pytest.approx(100 - 10 * np.mean(correct[:end]), abs=0.01)


def test_points_of_single_images_are_pooled(copied: Path) -> None:
    for file in copied.glob("*/steps.parquet"):
        table = pq.read_table(file)
        row = table.to_pylist()[0]
        alone = [{**row, "step": step, "n": 1, "correct": step % 2} for step in range(40)]
        pq.write_table(pa.Table.from_pylist(alone, table.schema), file)
    group = group_of(copied)
    axis = axis_of(group)
    assert axis.starts.tolist() == [0, 10, 20, 30]
    assert error_line(group.entries[0], axis).mean == [50.0] * 4
