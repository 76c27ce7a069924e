"""The guard: signals on hand-made logits, alarms, exact resumes; the estimate; the budget."""

from __future__ import annotations

import copy
import io
import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import benchmarks
import tta
from benchmarks.cli import app
from benchmarks.results import TIMING_FIELDS
from tta import budget, estimate
from tta import guard as guards
from tta import guard_signals as signals
from tta.factory import adapters

K = 5
SMALL = {"num_examples": 60, "batch_size": 20, "corruptions": ("fog", "contrast")}


def peaked(labels: list[int], height: float = 4.0) -> torch.Tensor:
    """Logits that are sure of the given labels."""
    return height * nn.functional.one_hot(torch.tensor(labels), K).float()


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 36, K)
    )


def images(n: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(n, 1, 8, 8, generator=torch.Generator().manual_seed(seed))


# Signals ----------------------------------------------------------------------------------------


def test_a_collapsed_marginal_scores_and_a_better_adapter_does_not():
    even = [i % K for i in range(100)]
    source = peaked(even) + torch.randn(100, K, generator=torch.Generator().manual_seed(0))
    fallen = signals.compare(peaked([0] * 100), source)
    assert fallen.scores["collapse"] > 10
    assert fallen.agreement < 0.4
    # A source that a corruption drove into two classes, an adapter that found all five: disagrees
    # with it as much, and is left alone.
    driven = peaked([i % 2 for i in range(100)], 2.0)
    better = signals.compare(peaked(even), driven)
    assert better.agreement < 0.6
    assert max(better.scores.values()) < 0


def test_unsure_is_relative_to_the_source_and_excused_by_more_classes():
    even = [i % K for i in range(100)]
    noise = torch.randn(100, K, generator=torch.Generator().manual_seed(0)) / 4
    vague = peaked(even, 1.0) + noise
    assert signals.compare(vague, peaked(even) + noise).scores["unsure"] > 10
    one_class = peaked([0] * 100, 3.0) + noise
    assert signals.compare(peaked(even, 2.5) + noise, one_class).scores["unsure"] < 0


def test_the_same_model_is_never_alarmed_whatever_the_labels():
    for labels in ([0] * 50, [i % K for i in range(50)]):
        made = signals.compare(peaked(labels), peaked(labels))
        assert max(made.scores.values()) < 0
        assert made.agreement == 1


def test_one_loud_check_alarms_or_several_that_are_less_so():
    calm = dict.fromkeys(signals.SIGNALS, -1.0)
    sums, reason = signals.accumulate(signals.no_sums(), {**calm, "collapse": 4.5}, 3.0)
    assert reason == "collapse"
    sums, reasons = signals.no_sums(), []
    for _ in range(3):
        sums, reason = signals.accumulate(sums, {**calm, "unsure": 2.2}, 3.0)
        reasons.append(reason)
    assert reasons == [None, None, "unsure"]
    sums, _ = signals.accumulate(sums, calm, 3.0)
    assert sums == {"collapse": 0.0, "unsure": pytest.approx(3 * 1.2 - 2)}


def test_watched_values_are_measured_against_the_spread_of_the_source():
    values = {"entropy": 1.0, "marginal": 1.5, "log_norm": 2.0}
    spread = signals.no_spread()
    for shift in (-0.1, 0.0, 0.1):
        spread = signals.observe(spread, {name: v + shift for name, v in values.items()})
    assert spread["squares"]["entropy"] / 2 == pytest.approx(0.01)
    assert not signals.suspicious({**values, "marginal": 1.25}, values, spread, 3.0)
    assert signals.suspicious({**values, "marginal": 1.15}, values, spread, 3.0)
    assert signals.suspicious({**values, "log_norm": 2.4}, values, spread, 3.0)


# What an alarm does -----------------------------------------------------------------------------


def guarded(action: str = "rollback", **options) -> tta.Adapter:
    model = network()
    return tta.wrap(
        model, "tent", lr=1e-3, guard={"action": action, "window": 16, "every": 4, **options}
    )


def damage(adapter: tta.Adapter) -> None:
    """Weights that answer one class for everything, surely."""
    with torch.no_grad():
        adapter.model[1].weight.zero_()
        adapter.model[1].bias.copy_(torch.linspace(1, 60, 6))


def worsen_source(adapter: tta.Adapter) -> None:
    """A source that answers one class, and an adapter that is sure: every check is good."""
    with torch.no_grad():
        adapter._guard.source[4].bias[0] = 50.0
        for tensors in (adapter._initial["tensors"], dict(adapter.model.named_parameters("model"))):
            if "model.4.weight" in tensors:
                tensors["model.4.weight"].mul_(30)


def test_an_answer_that_raises_an_alarm_is_the_sources_and_the_snapshot_comes_back():
    adapter = guarded()
    with torch.no_grad():
        adapter.model[1].bias.add_(0.01)
    good = adapter._snapshot()
    before = copy.deepcopy(good["tensors"])
    adapter.guard_state["good"] = good
    damage(adapter)
    x = images(32)
    logits = adapter(x)
    assert adapter.guard_event == "alarm: collapse; rollback"
    assert torch.equal(logits, adapter._guard.source(x))
    now = dict(adapter.named_parameters()) | dict(adapter.named_buffers())
    assert before
    assert all(torch.equal(now[name], value) for name, value in before.items())
    assert adapter.num_steps == 1
    assert adapter.guard_state["alarms"] == 1
    # Damaged again, at the check that follows at once: now the source answers for a while.
    damage(adapter)
    adapter(images(32, 1))
    assert adapter.guard_event == "alarm: collapse; fallback"
    adapter(images(32, 2))
    assert adapter.guard_phase == "hold"


def test_a_snapshot_is_taken_one_check_late():
    adapter = guarded()
    worsen_source(adapter)
    kept = []
    for step in range(3):
        adapter(images(32, step))
        kept.append(copy.deepcopy(adapter.model[1].weight.detach()))
    state = adapter.guard_state
    # Checks at steps 0, 1 and 3.
    assert torch.equal(state["good"]["tensors"]["model.1.weight"], kept[0])
    assert torch.equal(state["candidate"]["tensors"]["model.1.weight"], kept[1])
    assert state["good"]["states"]["guard_state"] == {}


@pytest.mark.parametrize("action", ["fallback", "freeze", "watch"])
def test_the_other_actions(action):
    adapter = guarded(action)
    damage(adapter)
    x = images(32, 9)
    source, wrong = adapter._guard.source(x), adapter.predict(x)
    logits = adapter(x)
    assert "alarm: collapse" in adapter.guard_event
    assert torch.equal(logits, source) is (action != "watch")
    if action == "watch":
        torch.testing.assert_close(logits, wrong)
        return
    weights = {k: v.clone() for k, v in adapter.named_parameters()}
    y = images(32, 10)
    again = adapter(y)
    if action == "fallback":
        assert adapter.guard_phase == "hold"
        assert torch.equal(again, adapter._guard.source(y))
    else:
        assert adapter.guard_phase == "frozen"
    assert all(torch.equal(v, weights[k]) for k, v in adapter.named_parameters())
    assert adapter.report["backwards"] == 0


def test_suspensions_double_and_probes_bring_the_adapter_back():
    adapter = guarded("fallback")
    worsen_source(adapter)
    adapter.guard_state.update(phase="hold", hold=2, strikes=1)
    phases = []
    for step in range(12):
        adapter(images(32, step))
        phases.append(adapter.guard_phase)
    assert phases == ["hold"] * 2 + ["probe"] + ["hold"] * 4 + ["probe"] + ["live"] * 4
    adapter = guarded("fallback")
    adapter.guard_state.update(phase="probe", hold=0, strikes=1)
    with torch.no_grad():
        for tensors in (adapter._initial["tensors"], dict(adapter.named_parameters())):
            tensors["model.1.weight"].zero_()
            tensors["model.1.bias"].copy_(torch.linspace(1, 60, 6))
    adapter(images(32))
    assert adapter.guard_event == "probe failed"
    assert adapter.guard_state["hold"] == 2 * 4
    assert adapter.guard_state["strikes"] == 2


def test_nan_answers_are_an_alarm_and_nan_images_are_not():
    adapter = guarded()
    x = images(32)
    x[3] = float("nan")
    logits = adapter(x)
    assert adapter.guard_state["alarms"] == 0
    assert logits[3].isnan().all()
    assert logits[torch.arange(32) != 3].isfinite().all()
    with torch.no_grad():
        adapter.model[1].weight[0] = float("nan")
    y = images(32, 1)
    assert torch.equal(adapter(y), adapter._guard.source(y))
    assert "not finite" in adapter.guard_event


def test_single_images_are_pooled():
    adapter = guarded(window=16)
    seen = []
    for step in range(33):
        adapter(images(1, step))
        seen.append(adapter.report["guard_forwards"])
    assert [step for step, count in enumerate(seen) if count] == [15, 31]
    assert seen[15] == 16


@pytest.mark.parametrize("method", ["cotta", "petal"])
@pytest.mark.parametrize("batch", [40, 8])
def test_a_mean_over_views_is_not_taken_for_doubt(method, batch, monkeypatch):
    """Its teacher is compared, which is the source's equal here: nothing was learnt."""
    model = network()
    with torch.no_grad():
        model[4].weight.mul_(20)
        model[1].momentum = None
        model(images(400, 99))  # running statistics of these images: the teacher is as good
    options = {"lr": 1e-9, "num_views": 8, "confidence_threshold": 1.0}
    watching = {"action": "watch", "window": 40, "every": 1}

    def alarms(answers_with_views: bool) -> int:
        adapter = tta.wrap(model, method, **options, guard=watching)
        kind = type(adapter)
        # Other images for views: each is answered surely, the mean is not.
        monkeypatch.setattr(kind, "augment", lambda self, x, purpose: x.roll(int(purpose[-1]), 0))
        monkeypatch.setattr(kind, "answers_with_views", answers_with_views)
        for seed in range(160 // batch):
            adapter(images(batch, seed))
        assert adapter.report["guard_forwards"] == 40
        return adapter.guard_state["alarms"]

    assert adapters.get(method).answers_with_views
    assert alarms(True) == 0
    assert alarms(False) > 0


def test_a_guard_that_sees_no_reason_changes_no_number():
    plain = tta.wrap(network(), "tent", lr=1e-3)
    watched = guarded("watch", estimate=True)
    for step in range(6):
        x = images(20, step)
        assert torch.equal(plain(x), watched(x))
        assert 0 <= watched.report["estimated_accuracy"] <= 100
    assert set(plain.state_dict()) == set(watched.state_dict())


@pytest.mark.parametrize("at", [1, 5, 9])
@pytest.mark.parametrize("action", ["rollback", "fallback"])
def test_saved_and_loaded_it_goes_on_bit_for_bit(action, at):
    def fresh() -> tta.Adapter:
        return tta.wrap(
            network(),
            "cotta",
            lr=0.3,
            num_views=2,
            guard={"action": action, "window": 16, "every": 2, "level": 0.5, "estimate": True},
            budget={"update_every": 2},
        )

    whole, first, second = fresh(), fresh(), fresh()
    answers = [whole(images(20, step)) for step in range(14)]
    for step in range(at):
        first(images(20, step))
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    second.load_state_dict(torch.load(file, weights_only=True))
    for step in range(at, 14):
        assert torch.equal(second(images(20, step)), answers[step])
    assert json.dumps(second.report) == json.dumps(whole.report)
    second.reset()
    assert torch.equal(second(images(20, 0)), answers[0])


def test_a_guarded_state_and_a_plain_one_do_not_mix():
    with pytest.raises(tta.AdapterError, match="guard="):
        tta.wrap(network(), "tent").load_state_dict(guarded().state_dict())
    with pytest.raises(tta.AdapterError, match="guard="):
        guarded().load_state_dict(tta.wrap(network(), "tent").state_dict())


def test_wrong_options_are_named():
    with pytest.raises(tta.AdapterError, match="did you mean 'rollback'"):
        tta.wrap(network(), "tent", guard="rolback")
    with pytest.raises(tta.AdapterError, match="did you mean 'every'"):
        tta.wrap(network(), "tent", guard={"evry": 3})
    with pytest.raises(tta.AdapterError, match="episodic"):
        tta.wrap(network(), "tent", guard="freeze", episodic=True)
    with pytest.raises(tta.AdapterError, match="did you mean 'update_every'"):
        tta.wrap(network(), "tent", budget={"updat_every": 3})


# The estimate -----------------------------------------------------------------------------------


def test_estimate_by_hand():
    even = torch.eye(K).repeat(4, 1)
    sure = estimate.Call(1000 * even, torch.eye(K), None)
    generator = torch.Generator().manual_seed(0)
    # One feature an image: where it is dropped all logits are equal, and class 0 is answered.
    wrong, corrected = estimate.errors(sure, 0.5, generator)
    assert wrong == pytest.approx(0.5 * 0.8, abs=0.1)
    assert corrected >= wrong
    assert estimate.errors(sure, 1e-9, generator) == (0.0, 0.0)
    fallen = estimate.Call(torch.ones(20, 3), torch.zeros(K, 3), torch.tensor([9.0, 8, 0, 0, 0]))
    assert estimate.errors(fallen, 0.4, generator) == (0.0, 0.0)
    assert estimate.smooth(None, 0.2, 0.5) == pytest.approx(0.6 * 0.2 + 0.4 * 0.5)
    assert estimate.smooth(0.4, 0.2, 0.5) == pytest.approx(0.6 * 0.4 + 0.4 * 0.5)


def test_recovery_rule():
    assert estimate.recovery([0.5, 0.19])
    assert not estimate.recovery([0.5] * 9)
    assert not estimate.recovery([0.5] * 5 + [0.48] * 5)
    assert estimate.recovery([0.5] * 5 + [0.47] * 5)


@pytest.mark.parametrize("method", ["tent", "deyo", "cotta", "rotta"])
def test_features_of_the_step_are_used_again(method):
    adapter = tta.wrap(
        network(), method, guard={"action": "watch", "estimate": True, "every": 100, "window": 16}
    )
    adapter(images(20))
    again = "estimate_forwards" in adapter.report
    # An unsure cotta answers with a mean over views: no single pass gave it.
    assert again is (method == "cotta")
    assert adapter.report["estimate_classifier_forwards"] == 10 * 20


# The budget -------------------------------------------------------------------------------------


def test_update_every_and_max_selected():
    adapter = tta.wrap(network(), "tent", budget={"update_every": 3, "max_selected": 30})
    said = []
    for step in range(8):
        x = images(20, step)
        expected = adapter.predict(x)
        logits = adapter(x)
        said.append(adapter.degraded)
        if adapter.degraded:
            assert torch.equal(logits, expected)
            assert adapter.report["backwards"] == 0
            assert adapter.report["degraded"] == 1
    every, most = "update_every", "max_selected"
    assert said == [None, every, every, None, every, every, most, every]
    adapter.reset()
    adapter(images(20))
    assert adapter.degraded is None


def test_a_slow_step_is_paid_back(monkeypatch):
    clock = iter([0.0, 2.5, 10.0, 10.25, 20.0, 20.25, 30.0, 30.25])
    monkeypatch.setattr(budget.time, "perf_counter", lambda: next(clock))
    adapter = tta.wrap(network(), "tent", budget={"max_step_seconds": 1.0})
    said = []
    for step in range(4):
        adapter(images(20, step))
        said.append(adapter.degraded)
    # 1.5 s over; each prediction pays 0.75 s back.
    assert said == [None, "max_step_seconds", "max_step_seconds", None]


# Runs -------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TTA_BENCH_CACHE", str(tmp_path / "cache"))


def test_a_guarded_run_has_its_columns_and_a_name_of_its_own(tmp_path: Path) -> None:
    plain = benchmarks.resolve("tent", "fashion-mnist-c", **SMALL)
    same = benchmarks.resolve("tent", "fashion-mnist-c", guard=None, **SMALL)
    spec = benchmarks.resolve(
        "tent",
        "fashion-mnist-c",
        guard={"estimate": "true", "every": "1", "window": "20"},
        **SMALL,
    )
    assert plain.identity() == same.identity() != spec.identity()
    row = benchmarks.run(spec, tmp_path)
    table = pq.read_table(next(tmp_path.glob("*/steps.parquet"))).to_pylist()
    errors = [abs(r["estimated_accuracy"] - (100 - r["error_pct"])) for r in table]
    assert row["estimate_mae"] == pytest.approx(sum(errors) / len(errors))
    errors = [abs(r["source_agreement"] - (100 - r["error_pct"])) for r in table]
    assert row["agreement_mae"] == pytest.approx(sum(errors) / len(errors))
    errors = [abs(100 * r["confidence"] - (100 - r["error_pct"])) for r in table]
    assert row["confidence_mae"] == pytest.approx(sum(errors) / len(errors))
    assert row["guard_forwards_per_image"] == 1
    unguarded = benchmarks.run(plain, tmp_path)
    assert unguarded["estimate_mae"] is unguarded["guard"] is unguarded["guard_alarms"] is None


def test_a_guarded_run_resumes_exactly(tmp_path: Path) -> None:
    spec = benchmarks.resolve(
        "tent",
        "fashion-mnist-c",
        guard={"window": 20, "every": 2, "level": 0.5, "estimate": True},
        options={"lr": 0.5},
        **SMALL,
    )
    whole = benchmarks.run(spec, tmp_path / "whole")
    assert whole["guard_alarms"] > 0

    def stop(done: int, total: int, error: float) -> None:
        if done == 3:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        benchmarks.run(spec, tmp_path / "cut", checkpoint_seconds=0, progress=stop)
    resumed = benchmarks.run(spec, tmp_path / "cut", resume=True)
    timing = dict.fromkeys(TIMING_FIELDS)
    assert resumed | timing == whole | timing
    left, right = (next(p.glob("*/steps.parquet")) for p in (tmp_path / "whole", tmp_path / "cut"))
    assert pq.read_table(left).drop(["seconds"]) == pq.read_table(right).drop(["seconds"])


def test_options_on_the_command_line(tmp_path: Path) -> None:
    base = ["run", "-m", "tent", "-s", "fashion-mnist-c", "--num-examples", "20", "--json"]
    base += ["--corruptions", "fog", "--batch-size", "10", "--out", str(tmp_path)]
    done = CliRunner().invoke(
        app, [*base, "--guard", "freeze", "--guard-set", "every=2", "--budget", "update_every=2"]
    )
    assert done.exit_code == 0, done.output
    (row,) = json.loads(done.stdout)
    assert json.loads(row["guard"])["every"] == 2
    assert row["degraded_pct"] == 50
    for words, said in (
        (["--guard", "freez"], "Input should be 'rollback'"),
        (["--guard-set", "every=2"], "no effect without a guard"),
        (["--guard", "freeze", "--guard-set", "every=x"], "every"),
        (["--budget", "update_every=0"], "at least 1"),
    ):
        done = CliRunner().invoke(app, [*base, *words])
        assert done.exit_code == 2, words
        assert said in done.output, (words, done.output)


def test_an_empty_state_is_plain():
    assert torch.load(_saved(guards.empty()), weights_only=True) == guards.empty()


def _saved(value: object) -> io.BytesIO:
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return file
