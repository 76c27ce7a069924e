"""A life written down: rows, evaluations, results, resume after a kill, the command line."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from typer.testing import CliRunner

from benchmarks import learning_runner
from benchmarks.cli import app
from benchmarks.curves import places
from benchmarks.errors import UsageError
from benchmarks.leaderboard import leaderboard
from benchmarks.leaderboard_columns import columns
from benchmarks.learning_method import Method
from benchmarks.learning_results import EVAL_SCHEMA, LEARNING_TIMING_FIELDS, read_evals
from benchmarks.learning_runner import run
from benchmarks.learning_spec import resolve_learning
from benchmarks.results import STEP_SCHEMA, RunFolder, find_results
from continual import models
from continual.evaluate import Evaluation
from continual.factory import list_strategies
from tta.errors import AdapterError, BackboneError
from tta.factory import list_adapters

STREAM = "split-fashion-mnist"
SMALL = {
    "num_tasks": 2,
    "num_examples": 40,
    "source_options": {"test_examples": 20},
    "backbone": "small-cnn",
    "batch_size": 16,
}
MIXED = {
    "setting": "mixed-life",
    "setting_options": {"corruptions": "fog,contrast", "segment_examples": 20, "batch_size": 10},
}
WORDS = (
    *("--stream", STREAM, "--num-tasks", "2", "--num-examples", "40", "--batch-size", "16"),
    *("--source-set", "test_examples=20", "--backbone", "small-cnn"),
)


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TTA_BENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


def spec_of(method: str, **changes: Any):
    return resolve_learning(method, STREAM, **{**SMALL, **changes})


def call(*arguments: str | Path):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def left_by(out: Path) -> tuple[dict, list, list]:
    """Result, step rows and evaluations of the one run in a folder, without what timing changes."""
    (folder,) = (file.parent for file in out.rglob("result.json"))
    result = json.loads((folder / "result.json").read_text())
    steps = pq.read_table(folder / "steps.parquet").drop_columns(["seconds"]).to_pylist()
    evals = pq.read_table(folder / "evals.parquet").to_pylist()
    assert not (folder / "checkpoint").exists()
    return {k: v for k, v in result.items() if k not in LEARNING_TIMING_FIELDS}, steps, evals


def test_a_run_leaves_rows_evaluations_and_a_result(tmp_path: Path) -> None:
    told = []
    row = run(spec_of("naive", eval_every=2), tmp_path, progress=lambda *now: told.append(now))
    (folder,) = tmp_path.glob("naive-split-fashion-mnist-sequential-small-cnn-s0-*")
    names = ["evals.parquet", "result.json", "spec.json", "steps.parquet"]
    assert sorted(p.name for p in folder.iterdir()) == names
    assert json.loads((folder / "result.json").read_text()) == row
    steps = pq.read_table(folder / "steps.parquet")
    assert steps.schema == STEP_SCHEMA
    rows = steps.to_pydict()
    # 40 images a task in batches of 16; the item's number stands as the visit.
    assert rows["n"] == [16, 16, 8] * 2
    assert rows["domain"] == ["task_0"] * 3 + ["task_1"] * 3
    assert rows["visit"] == [0] * 3 + [1] * 3
    assert rows["step"] == list(range(6))
    assert rows["forwards"] == rows["backwards"] == rows["n"]
    assert [t[:2] for t in told] == [(n, 6) for n in range(1, 7)]
    evals = pq.read_table(folder / "evals.parquet")
    assert evals.schema == EVAL_SCHEMA
    looks, tasks = read_evals(folder)
    assert tasks == ["task_0", "task_1"]
    # Looks at steps 2, 4 and 6, beside those at the ends of the items.
    assert [(e.kind, e.step) for e in looks] == [
        *(("before", 0), ("step", 2), ("experience", 3)),
        *(("step", 4), ("step", 6), ("experience", 6)),
    ]
    assert row["num_evaluations"] == 6
    last = np.array(looks[-1].correct) / 20
    assert row["class_incremental_final_accuracy_pct"] == pytest.approx(100 * last.mean())
    assert row["error_pct"] == pytest.approx(100 - 100 * last.mean())
    assert row["error_pct_task_1"] == pytest.approx(100 - 100 * last[1])
    assert row["online_error_pct"] == pytest.approx(100 - 100 * sum(rows["correct"]) / 80)
    assert row["protocol"] == (
        "learn-split-fashion-mnist-sequential-v1+num_tasks=2+num_examples=40"
        "+source_options=test_examples:20+eval_every=2"
    )
    assert row["forwards_per_image"] == row["backwards_per_image"] == 1.0
    assert row["segment_error_pct"] is row["nll"] is None
    assert (row["num_samples"], row["train_steps"], row["batch_size"]) == (80, 6, 16)


def test_the_same_weights_and_rows_from_the_same_seed(tmp_path: Path) -> None:
    first = run(spec_of("naive"), tmp_path / "a")
    torch.rand(3)
    second = run(spec_of("naive"), tmp_path / "b")
    assert left_by(tmp_path / "a") == left_by(tmp_path / "b")
    other = run(spec_of("naive", seed=1), tmp_path / "c")
    assert first["weight_hash"] == second["weight_hash"] != other["weight_hash"]


def test_a_mixed_life_has_rows_of_segments(tmp_path: Path) -> None:
    row = run(spec_of("tent", **MIXED), tmp_path)
    assert row["method"] == "naive+tent"
    result, steps, _ = left_by(tmp_path)
    inside = [r for r in steps if r["visit"] == 1]
    names = ["segment_after_task_0/fog", "segment_after_task_0/contrast"]
    assert [r["domain"] for r in inside] == [names[0]] * 2 + [names[1]] * 2
    assert [r["severity"] for r in inside] == [5] * 4
    errors = [
        100 * (1 - sum(r["correct"] for r in steps if r["visit"] == item) / 40) for item in (1, 3)
    ]
    assert result["segment_error_pct"] == pytest.approx(np.mean(errors))
    assert result["worst_segment_error_pct"] == pytest.approx(max(errors))
    assert result["segment_error_pct_segment_after_task_1"] == pytest.approx(errors[1])
    assert result["nll"] > 0
    assert result["class_incremental_retention_pct"] is not None
    # The source adapter is none at all: the same predictions as without one, and no change.
    run(spec_of("source", **MIXED), tmp_path / "source")
    run(spec_of("naive", **MIXED), tmp_path / "naive")
    source, plain = left_by(tmp_path / "source"), left_by(tmp_path / "naive")
    assert source[1:] == plain[1:]
    assert source[0]["class_incremental_segment_change_pct"] == 0
    assert source[1] != steps


def test_an_interrupted_life_goes_on_from_every_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = spec_of("replay+tent", eval_every=2, **MIXED)
    run(spec, tmp_path / "whole")
    whole = left_by(tmp_path / "whole")
    save = RunFolder.save
    count = 0

    class Killed(BaseException):
        pass

    def dies(self: RunFolder, state: dict[str, Any]) -> None:
        nonlocal count
        count += 1
        save(self, state)
        raise Killed

    # Every process lives for one checkpoint.
    monkeypatch.setattr(RunFolder, "save", dies)
    for _ in range(100):
        try:
            run(spec, tmp_path / "parts", resume=True, checkpoint_seconds=0)
            break
        except Killed:
            assert list((tmp_path / "parts").rglob("evals.parquet"))
    # 14 steps and batches, the ends of 4 items, and the look before.
    assert count == 19
    assert left_by(tmp_path / "parts") == whole


def test_an_unfinished_run_is_in_the_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def dies(*_: Any) -> None:
        raise RuntimeError

    with monkeypatch.context() as patch:
        patch.setattr(learning_runner.Recorder, "learned", dies)
        with pytest.raises(RuntimeError):
            run(spec_of("naive"), tmp_path)
    with pytest.raises(UsageError, match="--resume goes on"):
        run(spec_of("naive"), tmp_path)
    row = run(spec_of("naive"), tmp_path, resume=True)
    assert run(spec_of("naive"), tmp_path) == row


def test_killed_and_resumed(tmp_path: Path) -> None:
    """SIGKILL in a process of its own, at whatever moment."""
    command = [
        *(sys.executable, "-m", "benchmarks.cli", "run", "-m", "naive", *WORDS),
        *("--set", "epochs=10", "--checkpoint-seconds", "0", "--out", str(tmp_path / "killed")),
    ]
    # Sums are rounded as the number of threads says.
    one = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, stderr=subprocess.DEVNULL, env=one) as process:
        for _ in range(600):
            if len(list(tmp_path.rglob("steps-*.parquet"))) > 5:
                break
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
    assert not list(tmp_path.rglob("result.json"))
    spec = spec_of("naive", options={"epochs": "10"})
    run(spec, tmp_path / "killed", resume=True)
    run(spec, tmp_path / "whole")
    assert left_by(tmp_path / "killed") == left_by(tmp_path / "whole")


def test_requests_to_forget(tmp_path: Path) -> None:
    changes = {"setting": "forget", "setting_options": {"what": "class"}}
    row = run(spec_of("fine-tune", **changes), tmp_path)
    (request,) = row["forgets"]
    assert request["served_by"] == "fine-tune"
    assert (request["kind"], request["samples"], request["item"]) == ("class", 8, 1)
    # Before it, right after it, after the next experience.
    assert len(request["curve_pct"]) == 1
    assert row["forget_forgotten_accuracy_pct"] == request["accuracy_forgotten_pct"]
    assert "seconds" not in request
    assert row["forget_seconds"] > 0
    naive = run(spec_of("naive", **changes), tmp_path)
    assert naive["forgets"][0]["served_by"] is None


def test_a_strategy_of_avalanche(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By its path: the same files, the same resume, and a row of the leaderboard."""
    spec = spec_of("avalanche.training.supervised:EWC", options={"ewc_lambda": "1"})
    whole = run(spec, tmp_path / "whole")
    (folder,) = (tmp_path / "whole").glob("EWC-*")
    assert folder.name.startswith("EWC-split-fashion-mnist-sequential-small-cnn-s0-")
    assert whole["version_avalanche"]
    evaluated = learning_runner.Recorder.evaluated

    def dies(self: Any, evaluation: Evaluation) -> None:
        if evaluation.item == 1:
            raise KeyboardInterrupt
        evaluated(self, evaluation)

    with monkeypatch.context() as patch:
        patch.setattr(learning_runner.Recorder, "evaluated", dies)
        with pytest.raises(KeyboardInterrupt):
            run(spec, tmp_path / "parts", checkpoint_seconds=0)
    run(spec, tmp_path / "parts", resume=True)
    assert left_by(tmp_path / "parts") == left_by(tmp_path / "whole")
    assert call("leaderboard", "whole", "--export", "l.csv").exit_code == 0
    assert "EWC" in (tmp_path / "l.csv").read_text()
    with pytest.raises(AdapterError, match="did you mean 'ewc_lambda'"):
        run(spec_of(spec.method, options={"ewc_lamda": "1"}), tmp_path)
    options = json.loads(call("describe", "-m", spec.method, "--json").stdout)
    assert "ewc_lambda" in {option["option"] for option in options}


# Methods and options ----------------------------------------------------------------------------


def test_no_name_is_of_a_strategy_and_an_adapter() -> None:
    assert not set(list_strategies()) & {*list_adapters(), "learner", "avalanche"}


def test_methods_are_read() -> None:
    assert Method.read("tent") == Method(strategies=("naive",), adapter="tent")
    assert Method.read("replay+tent") == Method(strategies=("replay",), adapter="tent")
    assert Method.read("refresh+der_pp").name == "refresh+der-pp"
    path = "avalanche.training.supervised:EWC"
    assert Method.read(f"{path}+source") == Method(avalanche=path, adapter="source")


@pytest.mark.parametrize(
    ("method", "words"),
    [
        ("naiv", "did you mean 'naive'"),
        ("replay+tentt", "did you mean 'tent'"),
        ("tent+eata", "two adapters"),
        ("a.b:C+d.e:F", "two Avalanche strategies"),
        ("a.b:C+replay", "takes none of our strategies"),
        ("replay+replay", "twice"),
    ],
)
def test_methods_that_are_none(method: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        Method.read(method)


def test_options_go_to_the_part_that_has_them() -> None:
    options = {"epochs": "3", "tent.lr": "1e-4", "replay.ratio": "0.5", "learner.lr": "0.2"}
    config = spec_of("replay+tent", options=options, seed=3).config
    assert config["learner"]["epochs"] == 3
    assert (config["learner"]["lr"], config["tent"]["lr"]) == (0.2, 1e-4)
    assert config["replay"]["ratio"] == 0.5
    assert {part["seed"] for part in config.values()} == {3}
    avalanche = resolve_learning(
        "avalanche.training.supervised:EWC",
        STREAM,
        options={"ewc_lambda": "1", "lr": "0.5", "EWC.mode": "online", "avalanche.x": "2"},
    ).config
    assert avalanche["avalanche"] == {"ewc_lambda": "1", "mode": "online", "x": "2"}
    assert avalanche["learner"]["lr"] == 0.5


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"lr": "1"}, "write learner.lr or tent.lr"),
        ({"epoch": "1"}, "did you mean 'epochs'"),
        ({"tent.lrr": "1"}, "tent has no option 'lrr'.*did you mean 'lr'"),
        ({"eata.lr": "1"}, "'eata' is no part of replay\\+tent"),
        ({"epochs": "many"}, "epochs='many'"),
        ({"batch_size": "3"}, "--batch-size and --set"),
    ],
)
def test_options_that_have_no_place(options: dict[str, str], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        spec_of("replay+tent", options=options)


def test_an_option_out_of_range() -> None:
    with pytest.raises(AdapterError, match="out of range"):
        spec_of("naive", options={"learner.lr": "-1"})


def test_the_identity_of_a_spec() -> None:
    base = spec_of("naive")
    assert base.identity() == spec_of("naive", data_dir="elsewhere").identity()
    assert base.identity() != spec_of("naive", eval_every=1).identity()
    assert base.identity() != base.identity("other weights")
    defaults = spec_of("naive", setting_options={}, source_options={"test_examples": 0})
    assert "source_options" not in defaults.protocol
    assert resolve_learning("naive", "permuted-fashion-mnist").backbone == "mlp-100"
    assert resolve_learning("naive", STREAM).backbone == "slim-resnet18-20"


# Networks ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*models.NAMES, "mlp-7", "slim-resnet18-4"])
def test_networks(name: str) -> None:
    before = torch.get_rng_state()
    made = models.build(name, 7, (3, 16, 16), seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    assert made(torch.rand(2, 3, 16, 16)).shape == (2, 7)
    again, other = (models.build(name, 7, (3, 16, 16), seed=seed) for seed in (1, 2))
    weights = [torch.cat([p.flatten() for p in m.parameters()]) for m in (made, again, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_the_slim_resnet_is_the_usual_one() -> None:
    """11.17 million weights at 64 filters and 10 classes, as ResNet-18 for CIFAR-10 has."""
    made = models.build("slim-resnet18-64", 10, (3, 32, 32))
    assert sum(p.numel() for p in made.parameters()) == 11_173_962


def test_names_of_networks() -> None:
    assert models.is_model("mlp")
    assert not models.is_model("fashion-resnet")
    with pytest.raises(AdapterError, match="width of at least 1"):
        models.build("mlp-0", 2, (3, 4, 4))


def test_a_checkpoint_is_a_start(tmp_path: Path) -> None:
    weights = models.build("small-cnn", 10, (3, 32, 32), seed=5)
    torch.save(weights.state_dict(), tmp_path / "start.pt")
    row = run(spec_of("naive", checkpoint=str(tmp_path / "start.pt")), tmp_path)
    other = run(spec_of("naive", seed=0), tmp_path)
    assert row["weights"] == "file start.pt"
    assert row["weight_hash"] != other["weight_hash"]
    with pytest.raises(BackboneError, match="no such file"):
        run(spec_of("naive", checkpoint="none.pt"), tmp_path)


# The command line -------------------------------------------------------------------------------


def test_run_leaderboard_and_curves(tmp_path: Path) -> None:
    setting = ("--setting", "mixed-life", "--setting-set", "corruptions=fog")
    setting += ("--setting-set", "segment_examples=20")
    done = call("run", "-m", "naive,tent", *WORDS, *setting, "--seed", "0,1", "--out", "r")
    assert done.exit_code == 0, done.output
    for words in ("naive s0", "naive+tent s1", "task_1", "forgetting", "BWT", "AAA", "results: r"):
        assert words in done.stdout
    ranked = json.loads(call("leaderboard", "r", "--export", "l.csv", "--json").stdout)
    assert {row["method"]: row["seeds"] for row in ranked} == {"naive": 2, "naive+tent": 2}
    assert "class_incremental_forgetting_pct" in columns(ranked)
    assert "task_incremental_aaa_pct" in (tmp_path / "l.csv").read_text().splitlines()[0]
    shown = call("leaderboard", "r").stdout
    assert "BWT" in shown
    picture = call("curves", "r", "--out", "c.png")
    assert picture.exit_code == 0, picture.output
    assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")
    assert call("curves", "r", "--out", "c.png", "--masked").exit_code == 0


def test_learning_columns_stand_where_they_are(tmp_path: Path) -> None:
    run(spec_of("naive"), tmp_path)
    found = find_results([tmp_path])
    assert "class_incremental_bwt_pct" in columns(leaderboard(found))
    plain = {k: v for k, v in found[0].items() if "incremental" not in k}
    assert "class_incremental_bwt_pct" not in columns(leaderboard([plain]))


WRONG = {
    "stream": (("--stream", "split-fashion-mnst"), "did you mean 'split-fashion-mnist'"),
    "setting": (("--setting", "sequentiel"), "did you mean 'sequential'"),
    "setting option": (("--setting-set", "blurr=1"), "has no option 'blurr'"),
    "source option": (("--source-set", "test_example=1"), "did you mean 'test_examples'"),
    "method": (("-m", "replayy"), "did you mean 'replay'"),
    "pattern": (("-m", "zz*"), "no strategy matches"),
    "option": (("--set", "lrr=1"), "did you mean 'lr'"),
    "option form": (("--set", "lr"), "expected key=value"),
    "option part": (("--set", "ewc.lr=1"), "no part of this run's methods"),
    "severity": (("--severity", "3"), "--severity has no effect on a learning stream"),
    "window": (("--window", "3"), "--window has no effect"),
    "dtype": (("--dtype", "float64"), "--dtype has no effect"),
    "tasks": (("--num-tasks", "3"), "cannot be divided"),
    "tasks none": (("--num-tasks", "0"), "num_tasks"),
    "every": (("--eval-every", "-1"), "eval_every"),
    "backbone": (("--backbone", "small-cn"), "to learn from scratch"),
    "adapter without segments": (("-m", "tent"), "take --setting mixed-life"),
    "adapter without layers": (
        ("-m", "tent", "--setting", "mixed-life", "--backbone", "mlp-8"),
        "tent on mlp-8",
    ),
    "device": (("--device", "cuda:99"), "not available"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_input(case: str) -> None:
    arguments, words = WRONG[case]
    base = list(WORDS)
    method = () if "-m" in arguments else ("-m", "naive")
    for option in ("--stream", "--num-tasks", "--backbone"):
        if option in arguments:
            at = base.index(option)
            del base[at : at + 2]
    done = call("run", *method, *base, *arguments)
    assert done.exit_code == 2, done.output
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert words in done.stderr
    assert not list(Path().rglob("spec.json"))


def test_learning_options_on_another_stream() -> None:
    done = call("run", "-m", "tent", "-s", "fashion-mnist-c", "--eval-every", "3")
    assert done.exit_code == 2
    assert "--eval-every is for learning streams" in done.stderr


def test_curves_of_nothing(tmp_path: Path) -> None:
    for arguments, words in {
        ("none",): "does not exist",
        (".",): "no run on a learning stream",
    }.items():
        done = call("curves", *arguments, "--out", "c.png")
        assert done.exit_code == 2
        assert words in done.stderr


def test_the_axis_of_curves() -> None:
    def look(item: int, kind: str, step: int) -> Evaluation:
        return Evaluation(
            item=item, kind=kind, name="", step=step, correct=(1,), masked=(1,), total=(1,)
        )

    looks = [look(-1, "before", 0), look(0, "step", 5), look(0, "experience", 20)]
    looks += [look(1, "segment", 20), look(2, "step", 30), look(2, "experience", 40)]
    assert places(looks) == [0, 0.25, 1, 2, 2.5, 3]


def test_lists_and_descriptions() -> None:
    for kind, name in {
        "strategies": "naive",
        "learning-streams": STREAM,
        "learning-settings": "sequential",
        "backbones": "small-cnn",
    }.items():
        assert name in json.loads(call("list", kind, "--json").stdout)[kind]
    plan = json.loads(call("describe", "-s", STREAM, "--num-examples", "10", "--json").stdout)
    assert [item["samples"] for item in plan["items"]] == [10] * 5
    assert "items in the order" in call("describe", "-s", STREAM).stdout
    options = json.loads(call("describe", "-m", "refresh", "--json").stdout)
    assert {"option", "default", "type", "meaning"} == set(options[0])
    joint = json.loads(call("describe", "-m", "replay+tent", "--json").stdout)
    assert "tent.lr" in {option["option"] for option in joint}
    assert "batch_size" in call("describe", "-m", "learner").stdout
    done = call("describe", "-m", "refrsh")
    assert done.exit_code == 2
    assert "did you mean 'refresh'" in done.stderr
