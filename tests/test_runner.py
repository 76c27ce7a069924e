"""The loop: rows, results, resume after a kill, references, leaderboard."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

import benchmarks
import streams
from benchmarks import metrics
from benchmarks.leaderboard import leaderboard
from benchmarks.leaderboard_columns import LEADING, TRAILING, columns
from benchmarks.leaderboard_export import export
from benchmarks.results import STEP_SCHEMA, TIMING_FIELDS, RunFolder, find_results
from streams.types import Batch, Domain

SMALL = {"num_examples": 60, "batch_size": 25, "corruptions": ("fog", "contrast")}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TTA_BENCH_CACHE", str(tmp_path / "cache"))


def run(method: str, out: Path, *, seed: int = 0, resume: bool = False, **changes):
    spec = benchmarks.resolve(method, "fashion-mnist-c", seed=seed, **{**SMALL, **changes})
    return benchmarks.run(spec, out, resume=resume)


def without_timing(row: dict) -> dict:
    return {key: value for key, value in row.items() if key not in TIMING_FIELDS}


def test_a_run_leaves_spec_steps_and_result(tmp_path: Path) -> None:
    row = run("tent", tmp_path)
    (folder,) = tmp_path.glob("tent-*")
    assert sorted(p.name for p in folder.iterdir()) == ["result.json", "spec.json", "steps.parquet"]
    assert json.loads((folder / "result.json").read_text()) == row
    table = pq.read_table(folder / "steps.parquet")
    assert table.schema == STEP_SCHEMA
    steps = table.to_pydict()
    # 60 images a domain in batches of 25: the last batch of each domain has 10.
    assert steps["n"] == [25, 25, 10, 25, 25, 10]
    assert steps["domain"] == ["fog"] * 3 + ["contrast"] * 3
    assert steps["step"] == list(range(6))
    fog = 100 * (1 - sum(steps["correct"][:3]) / 60)
    contrast = 100 * (1 - sum(steps["correct"][3:]) / 60)
    assert row["error_pct_fog"] == pytest.approx(fog)
    assert row["error_pct"] == pytest.approx((fog + contrast) / 2)
    assert row["protocol"] == (
        "fashion-mnist-c-continual-v1+corruptions=fog,contrast+batch_size=25+num_examples=60"
    )
    assert row["reset_policy"] == "never"
    assert row["predicts"] == "before the update"
    assert row["forwards_per_image"] == row["backwards_per_image"] == 1.0
    assert row["num_samples"] == 120


def test_source_reference_equals_the_source_run(tmp_path: Path) -> None:
    source = run("source", tmp_path)
    adapted = run("norm", tmp_path)
    assert source["error_pct"] == source["source_error_pct"] == adapted["source_error_pct"]
    assert source["clean_error_pct"] == source["source_clean_error_pct"]
    assert adapted["clean_error_pct"] is not None


def test_a_cached_reference_changes_no_number(tmp_path: Path) -> None:
    cold = run("tent", tmp_path / "cold")
    assert list((tmp_path / "cache" / "source").glob("*.json"))
    warm = run("tent", tmp_path / "warm")
    assert without_timing(cold) == without_timing(warm)


def test_clean_images_that_fail_are_an_error_and_not_their_absence() -> None:
    from benchmarks.reference import clean_counts

    broken = streams.create("fashion-mnist-c", num_examples=20, batch_size=10)

    class Damaged(type(broken.source)):
        def images(self, positions, domain):
            raise streams.StreamError("image 3 does not decode")

    damaged = replace(broken, source=Damaged(clean=broken.source.clean))
    with pytest.raises(streams.StreamError, match="image 3"):
        clean_counts(None, damaged, "cpu")
    arrays = np.zeros((4, 32, 32, 3), dtype=np.uint8)
    assert clean_counts(None, streams.from_arrays(arrays, np.arange(4)), "cpu") is None


def test_settings_differ_in_state_alone(tmp_path: Path) -> None:
    """Reset and continual see the same batches: source and the first domain are equal."""
    options = {"options": {"lr": "0.05"}}
    continual = run("tent", tmp_path, **options)
    reset = run("tent", tmp_path, setting="reset", **options)
    assert reset["source_error_pct"] == continual["source_error_pct"]
    assert reset["error_pct_fog"] == continual["error_pct_fog"]
    assert reset["nll"] != continual["nll"]
    assert reset["reset_policy"] == "every domain"


def test_seeds_change_the_order_and_not_the_pixels(tmp_path: Path) -> None:
    rows = [run("source", tmp_path, seed=seed) for seed in (0, 1)]
    assert rows[0]["stream_hash"] != rows[1]["stream_hash"]
    assert rows[0]["error_pct"] == rows[1]["error_pct"]


def test_finished_runs_are_reused_and_overwrite_runs_again(tmp_path: Path) -> None:
    first = run("source", tmp_path)
    assert run("source", tmp_path) == first
    spec = benchmarks.resolve("source", "fashion-mnist-c", **SMALL)
    again = benchmarks.run(spec, tmp_path, overwrite=True)
    assert without_timing(again) == without_timing(first)
    assert len(find_results([tmp_path])) == 1


class StopError(Exception):
    pass


@pytest.mark.parametrize("method", ["source", "norm", "tent", "deyo"])
@pytest.mark.parametrize("at", [1, 3, 5])
def test_resume_from_any_step_is_exact(method: str, at: int, tmp_path: Path) -> None:
    options = {"options": {"statistics": "ema"}} if method == "norm" else {}
    spec = benchmarks.resolve(method, "fashion-mnist-c", **SMALL, **options)
    whole = benchmarks.run(spec, tmp_path / "whole")

    def stop(done: int, total: int, error: float) -> None:
        if done == at:
            raise StopError

    for folder in (tmp_path / "cache" / "source").iterdir():
        folder.unlink()  # the source reference is resumed too
    cut = tmp_path / "cut"
    with pytest.raises(StopError):
        benchmarks.run(spec, cut, checkpoint_seconds=0, progress=stop)
    with pytest.raises(benchmarks.UsageError, match="--resume goes on"):
        benchmarks.run(spec, cut)
    resumed = benchmarks.run(spec, cut, resume=True)
    assert without_timing(resumed) == without_timing(whole)
    left, right = (next(p.glob("*/steps.parquet")) for p in (tmp_path / "whole", cut))
    drop = ["seconds"]
    assert pq.read_table(left).drop(drop) == pq.read_table(right).drop(drop)


def test_a_run_goes_on_with_as_many_threads_as_it_began_with(tmp_path: Path) -> None:
    """How many share a sum says how it is rounded."""
    spec = benchmarks.resolve("tent", "fashion-mnist-c", **SMALL)

    def stop(done: int, total: int, error: float) -> None:
        if done == 2:
            raise StopError

    before = torch.get_num_threads()
    torch.set_num_threads(before + 1)
    try:
        whole = benchmarks.run(spec, tmp_path / "whole")
        with pytest.raises(StopError):
            benchmarks.run(spec, tmp_path / "cut", checkpoint_seconds=0, progress=stop)
    finally:
        torch.set_num_threads(before)
    resumed = benchmarks.run(spec, tmp_path / "cut", resume=True)
    assert resumed["threads"] == whole["threads"] == before + 1
    assert without_timing(resumed) == without_timing(whole)
    assert torch.get_num_threads() == before


def test_workers_change_no_number(tmp_path: Path) -> None:
    spec = benchmarks.resolve("tent", "fashion-mnist-c", **SMALL)
    alone = benchmarks.run(spec, tmp_path / "alone")
    ahead = benchmarks.run(spec, tmp_path / "ahead", workers=2)
    assert without_timing(alone) == without_timing(ahead)


def test_a_damaged_checkpoint_is_named(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.create({})
    folder.save({"step": 1})
    file = tmp_path / "run" / "checkpoint" / "state.pt"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(benchmarks.UsageError, match="--overwrite"):
        RunFolder(tmp_path / "run").load("cpu")


def batch_of(y: list[int], ids: list[int], step: int = 0) -> Batch:
    count = len(y)
    return Batch(
        x=torch.zeros(count, 3, 2, 2),
        y=torch.tensor(y),
        domain="mixed",
        severity=0,
        index=torch.arange(count),
        step=step,
        domain_ids=torch.tensor(ids),
    )


DOMAINS = [Domain(name=n, corruption=n, severity=5) for n in ("fog", "snow")]


def test_metrics_by_hand() -> None:
    """Two domains in one batch; one NaN row counts as an error and in nothing else."""
    p = torch.tensor([[0.7, 0.3], [0.4, 0.6], [0.9, 0.1], [float("nan"), 0.0]]).double()
    rows = metrics.step_rows(
        batch_of([0, 0, 0, 0], [0, 1, 1, 1]), p.log(), DOMAINS, {"forwards": 4, "backwards": 2}, 0.5
    )
    assert [row["domain"] for row in rows] == ["fog", "snow"]
    assert [row["n"] for row in rows] == [1, 3]
    assert [row["correct"] for row in rows] == [1, 1]
    assert [row["non_finite"] for row in rows] == [0, 1]
    assert [row["forwards"] for row in rows] == [4, 0]
    table = {key: np.array([row[key] for row in rows], dtype=object) for key in rows[0]}
    table["domain"] = np.array(["fog", "snow"])
    table["selected_fraction"] = np.array([np.nan, np.nan])
    result = metrics.summarise(table, DOMAINS)
    assert result["error_pct_fog"] == 0
    assert result["error_pct_snow"] == pytest.approx(100 * 2 / 3)
    assert result["error_pct"] == pytest.approx(100 / 3)
    nll = -(np.log(0.7) + np.log(0.4) + np.log(0.9)) / 3
    assert result["nll"] == pytest.approx(nll)
    assert result["brier"] == pytest.approx((0.18 + 0.72 + 0.02) / 3)
    # Each of the three predictions stands alone in its bin.
    assert result["ece_pct"] == pytest.approx(100 * (0.3 + 0.6 + 0.1) / 3)
    assert result["worst_domain"] == "snow"
    assert result["backwards_per_image"] == 0.5


def test_ece_equals_an_independent_implementation() -> None:
    from torchmetrics.classification import MulticlassCalibrationError

    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(500, 10, generator=generator).double()
    y = torch.randint(10, (500,), generator=generator)
    rows = metrics.step_rows(batch_of(y.tolist(), [0] * 500), logits, DOMAINS, {}, 1.0)
    table = {key: np.array([row[key] for row in rows], dtype=object) for key in rows[0]}
    table["selected_fraction"] = np.array([np.nan])
    expected = MulticlassCalibrationError(10, n_bins=15, norm="l1")(logits.softmax(1), y)
    result = metrics.summarise(table, DOMAINS[:1])
    assert result["ece_pct"] == pytest.approx(100 * float(expected), abs=1e-4)


def test_leaderboard_ranks_within_protocol_and_averages_seeds(tmp_path: Path) -> None:
    for seed in (0, 1):
        run("source", tmp_path, seed=seed)
        run("norm", tmp_path, seed=seed)
    run("tent", tmp_path, num_examples=40)  # another protocol: a ranking of its own
    run("norm", tmp_path, options={"statistics": "alpha"})  # another config: a row of its own
    rows = leaderboard(find_results([tmp_path]))
    groups = {}
    for row in rows:
        groups.setdefault(row["protocol"], []).append(row)
    assert len(groups) == 2
    main = next(group for group in groups.values() if len(group) == 3)
    assert [row["rank"] for row in main] == [1, 2, 3]
    errors = [row["error_pct"] for row in main]
    assert errors == sorted(errors)
    by_seeds = {(row["method"], row["seeds"]) for row in main}
    assert by_seeds == {("source", 2), ("norm", 2), ("norm", 1)}
    source = next(row for row in main if row["method"] == "source")
    assert source["error_pct_std"] == 0
    assert next(r for r in main if r["seeds"] == 1)["error_pct_std"] is None

    export(rows, tmp_path / "l.csv")
    with (tmp_path / "l.csv").open() as file:
        read = list(csv.DictReader(file))
    assert list(read[0]) == columns(rows)
    assert list(read[0])[:3] == ["rank", "method", "error_pct"]
    assert set(LEADING) | set(TRAILING) < set(read[0])
    assert {"error_pct_fog", "error_pct_contrast"} <= set(read[0])
    assert float(read[0]["error_pct"]) == pytest.approx(rows[0]["error_pct"], abs=1e-6)
    export(rows, tmp_path / "l.md")
    text = (tmp_path / "l.md").read_text()
    assert text.count("###") == 2
    assert "| 1 | " in text


def test_mixed_up_protocols_do_not_share_a_name() -> None:
    plain = benchmarks.resolve("tent", "fashion-mnist-c")
    same = benchmarks.resolve("tent", "fashion-mnist-c", batch_size=200, severity=(5,))
    other = benchmarks.resolve("tent", "fashion-mnist-c", severity=(3,))
    assert plain.protocol == same.protocol == "fashion-mnist-c-continual-v1"
    assert other.protocol == "fashion-mnist-c-continual-v1+severity=3"
    assert plain.identity() == same.identity() != other.identity()
    where = benchmarks.resolve("tent", "fashion-mnist-c", data_dir="elsewhere")
    assert where.identity() == plain.identity()


def test_presets_and_options_have_their_order() -> None:
    assert benchmarks.resolve("deyo", "fashion-mnist-c").config["optimizer"] == "adam"
    chosen = benchmarks.resolve("deyo", "fashion-mnist-c", options={"optimizer": "sgd"})
    assert chosen.config["optimizer"] == "sgd"
    assert chosen.config["skip_top"] == "names"
    read = benchmarks.resolve(
        "tent", "fashion-mnist-c", options={"norm_kinds": "bn,gn", "nesterov": "true", "lr": "1e-4"}
    ).config
    assert (read["norm_kinds"], read["nesterov"], read["lr"]) == (("bn", "gn"), True, 1e-4)
    custom = benchmarks.resolve("tent", "npy-folder", backbone="cifar-resnet20")
    assert custom.protocol == "custom-npy-folder-continual"


def test_every_preset_and_protocol_is_valid() -> None:
    import streams
    import tta
    from benchmarks.protocols import presets, protocols

    for method, by_stream in presets().items():
        for stream, options in by_stream.items():
            assert stream in streams.list_streams()
            tta.adapter_config(method).create(options)
    for protocol in protocols().values():
        assert protocol.stream in streams.list_streams()
        assert protocol.setting in streams.list_settings()
