"""Open set: where the unknown images come, what they look like, and what is measured."""

from __future__ import annotations

import itertools
import pickle
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

import benchmarks
import streams
from benchmarks.open_metrics import OpenScores, auroc, false_positive_rate, harmonic
from benchmarks.results import TIMING_FIELDS
from streams import open_set, settings
from streams.clean import GeneratedSource, in_memory
from streams.corruptions import corrupt
from streams.errors import StreamError
from streams.factory import choose_domains, plan_stream
from streams.types import UNKNOWN, Batch

HELD = "held-out:0,3,7"


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TTA_BENCH_CACHE", str(tmp_path / "cache"))


def fashion(kind: str | None = "noise", **changes) -> streams.Stream:
    asked = {"num_examples": 40, "batch_size": 16, "corruptions": ("fog", "brightness")}
    return streams.create("fashion-mnist-c", open_set=kind, **{**asked, **changes})


def samples(stream: streams.Stream) -> tuple[np.ndarray, np.ndarray]:
    plan = stream.plan
    return stream.source.labels[plan.positions], plan.domain_ids


# Order ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("setting", settings.list_settings())
def test_the_known_images_keep_their_order_and_steps_are_sound(setting: str) -> None:
    options = {"visits": 2} if setting == "recurring" else None
    plain = fashion(None, setting=setting, setting_options=options)
    for kind, held in (("noise", set()), (HELD, {0, 3, 7})):
        mixed = fashion(kind, setting=setting, setting_options=options)
        labels, ids = samples(mixed)
        own = plain.source.labels[plain.plan.positions]
        kept = ~np.isin(own, list(held))
        assert np.array_equal(mixed.plan.positions[labels >= 0], plain.plan.positions[kept])
        assert np.array_equal(ids[labels >= 0], plain.plan.domain_ids[kept])
        offsets = mixed.plan.offsets
        assert offsets[0] == 0
        assert offsets[-1] == len(labels)
        assert 1 <= np.diff(offsets).min() <= np.diff(offsets).max() <= 16
        assert len(mixed.reset_steps) == len(plain.reset_steps)
        assert len(mixed.plan.visit_starts) == len(plain.plan.visit_starts)
        for step, before in zip(mixed.reset_steps, plain.reset_steps, strict=True):
            # The first known image after a reset is the same.
            at = int(offsets[step]) + int(np.argmax(labels[offsets[step] :] >= 0))
            first = plain.plan.offsets[before] + np.argmax(kept[plain.plan.offsets[before] :])
            assert mixed.plan.positions[at] == plain.plan.positions[first]
        assert fashion(kind, setting=setting, setting_options=options).hash == mixed.hash
        assert mixed.hash != plain.hash


@pytest.mark.parametrize(("ratio", "count"), [(1.0, 40), (0.25, 10), (2.5, 100)])
def test_the_ratio_counts_in_each_domain(ratio: float, count: int) -> None:
    labels, ids = samples(fashion(open_ratio=ratio))
    assert [int((labels[ids == d] == UNKNOWN).sum()) for d in (0, 1)] == [count, count]
    assert len(set(samples_at(fashion(open_ratio=ratio), 0))) == count


def samples_at(stream: streams.Stream, domain: int) -> list[int]:
    labels, ids = samples(stream)
    return stream.plan.positions[(labels == UNKNOWN) & (ids == domain)].tolist()


def test_held_out_classes_give_what_they_have_and_renumber_the_rest() -> None:
    stream = fashion(HELD)
    plain = fashion(None)
    own = plain.source.labels[:40]
    held = int(np.isin(own, [0, 3, 7]).sum())
    labels, ids = samples(stream)
    assert sorted(samples_at(stream, 0)) == np.flatnonzero(np.isin(own, [0, 3, 7])).tolist()
    assert int((labels[ids == 1] == UNKNOWN).sum()) == held < 20
    assert stream.num_classes == 7
    assert stream.source.class_ids == (1, 2, 4, 5, 6, 8, 9)
    known = labels >= 0
    kept = np.array(stream.source.class_ids)
    assert np.array_equal(kept[labels[known]], plain.source.labels[stream.plan.positions[known]])
    said = stream.describe()
    assert said["unknown"] == 2 * held
    assert sum(said["labels"]) == 80 - 2 * held
    assert "unknown" not in plain.describe()


def test_unknown_images_are_spread_uniformly() -> None:
    """Over seeds each place of a domain is unknown in half the cases, whatever came before."""
    hits = np.zeros(80)
    pairs = 0
    for seed in range(300):
        labels, _ = samples(fashion(seed=seed, corruptions=("fog",)))
        unknown = labels == UNKNOWN
        hits += unknown
        pairs += int((unknown[1:] & unknown[:-1]).sum())
    assert abs(hits.mean() / 300 - 0.5) < 1e-12
    assert np.abs(hits / 300 - 0.5).max() < 4.5 * 0.5 / np.sqrt(300)
    # 79 neighbours, both unknown with probability 40/80 * 39/79.
    expected = 300 * 79 * 0.5 * 39 / 79
    assert abs(pairs - expected) < 5 * np.sqrt(expected)


def test_every_round_is_mixed_alike_and_seeds_differ() -> None:
    stream = fashion(setting="recurring", setting_options={"visits": 2})
    half = len(stream.plan.positions) // 2
    assert np.array_equal(stream.plan.positions[:half], stream.plan.positions[half:])
    assert stream.plan.visit_starts == (0, 80, 160, 240)
    other = fashion(setting="recurring", setting_options={"visits": 2}, seed=1)
    assert other.plan.digest() != stream.plan.digest()


# Pixels -----------------------------------------------------------------------------------------


def toy(side: int = 16) -> streams.Stream:
    rng = np.random.default_rng(1)
    images = rng.integers(0, 256, (24, side, side, 3), dtype=np.uint8)
    source = GeneratedSource(clean=in_memory(images, np.arange(24) % 3, name="toy", num_classes=3))
    return plan_stream(
        "toy",
        source,
        choose_domains("continual", ("brightness", "gaussian_noise"), 4),
        setting="continual",
        num_examples=None,
        batch_size=7,
        seed=0,
        shuffle=True,
        dtype=None,
    )


def pixels_by_sample(stream: streams.Stream) -> dict[tuple[int, int], torch.Tensor]:
    return {
        (int(d), int(i)): x
        for batch in stream
        for d, i, x in zip(batch.domain_ids, batch.index, batch.x, strict=True)
    }


def test_images_of_another_data_set_are_resized_and_corrupted_alike() -> None:
    stream = open_set.mix(toy(), "stream:fashion-mnist", 0.5)
    found = pixels_by_sample(stream)
    other = streams.create("fashion-mnist")
    for (domain, position), x in found.items():
        if position < 24:
            continue
        wanted = other.source.images(np.array([position - 24]), other.domains[0])
        resized = stream.source.other.images(np.array([position - 24]), 16, 16)
        assert abs(float(wanted.float().mean() - resized.float().mean())) < 6
        name = stream.domains[domain].corruption
        made = corrupt(resized, name, 4, ids=[position - 24 + (1 << 40)])
        assert torch.equal(x, made[0] / 255)
    plain = pixels_by_sample(toy())
    assert all(torch.equal(found[key], x) for key, x in plain.items())
    assert "Fashion-MNIST test, clean, 10000 images" in str(stream.provenance)


def test_noise_is_uniform_and_its_own_in_each_image() -> None:
    stream = open_set.mix(toy(), "noise")
    found = {k: x for k, x in pixels_by_sample(stream).items() if k[1] >= 24}
    values = torch.cat([x.flatten() for x in found.values()])
    assert abs(float(values.mean()) - 0.5) < 0.01
    assert abs(float(values.var()) - 1 / 12) < 0.004
    assert len({x.numpy().tobytes() for x in found.values()}) == 24
    again = open_set.mix(toy(), "noise", 0.5)
    small = {k: x for k, x in pixels_by_sample(again).items() if k[1] >= 24}
    assert all(torch.equal(found[0, k[1]], x) for k, x in small.items())


def test_batches_say_minus_one_and_clean_batches_are_known() -> None:
    stream = fashion(HELD)
    batches = list(stream)
    assert {int(y) for b in batches for y in b.y} == {UNKNOWN, *range(7)}
    again = pickle.loads(pickle.dumps(stream))
    assert torch.equal(again.batch(2).x, batches[2].x)
    assert [b.step for b in stream.start_at(3)] == list(range(3, len(batches)))
    clean = torch.cat([y for _, y in stream.clean_batches()])
    assert int(clean.min()) >= 0
    assert len(clean) == len({int(i) for b in batches for i in b.index[b.y >= 0]})


def test_what_cannot_be_mixed_is_said_in_one_line(tmp_path: Path) -> None:
    for kind, words in [
        ("open", "is none of held-out:0,3,7, stream:NAME or noise"),
        ("held-out:", "must name labels"),
        ("held-out:12", "labels 0 to 9"),
        ("held-out:0,1,2,3,4,5,6,7,8", "two must be known"),
        ("stream:fashion", "unknown stream"),
        ("stream:cifar10", "no CIFAR-10 in"),
    ]:
        with pytest.raises(StreamError, match=words) as caught:
            fashion(kind, data_dir=tmp_path)
        assert "\n" not in str(caught.value)
    with pytest.raises(StreamError, match="open_ratio=0"):
        fashion(open_ratio=0)
    with pytest.raises(benchmarks.UsageError, match="open_ratio has no effect"):
        benchmarks.resolve("source", "fashion-mnist-c", open_ratio=2.0)
    arrays = {"other": np.zeros((6, 16, 16, 3), dtype=np.uint8)}
    own = streams.from_arrays(arrays, np.arange(6) % 2)
    assert open_set.mix(own, "stream:fashion-mnist").batch(0).x.shape[0] == 12


def test_a_picture_has_a_row_for_unknown(tmp_path: Path) -> None:
    from streams.picture import save_png

    assert save_png(fashion(), tmp_path / "p.png").stat().st_size > 5000


# Metrics ----------------------------------------------------------------------------------------


def test_auroc_and_fpr_by_hand() -> None:
    known, unknown = np.array([0.9, 0.8, 0.5, 0.5]), np.array([0.5, 0.1, 0.85])
    wins = sum((k > u) + (k == u) / 2 for k, u in itertools.product(known, unknown))
    assert auroc(known, unknown) == pytest.approx(wins / 12, abs=1e-12)
    assert auroc(known, unknown) == pytest.approx(8 / 12, abs=1e-12)
    # 95 % of four known samples are all four: threshold 0.5, which two unknown ones reach.
    assert false_positive_rate(known, unknown) == pytest.approx(2 / 3)
    assert false_positive_rate(known, unknown, recall=0.5) == pytest.approx(1 / 3)
    assert harmonic(80, 60) == pytest.approx(2 * 80 * 60 / 140)
    assert harmonic(0, 0) == 0


def test_auroc_equals_an_independent_implementation() -> None:
    from torchmetrics.functional.classification import binary_auroc

    rng = np.random.default_rng(0)
    known = rng.normal(1, 1, 3000).round(1).astype(np.float32)
    unknown = rng.normal(0, 1, 2000).round(1).astype(np.float32)
    scores = torch.from_numpy(np.concatenate([known, unknown]))
    target = torch.tensor([1] * 3000 + [0] * 2000)
    # Scores are made to lie in [0, 1], as torchmetrics would squash others.
    squashed = (scores - scores.min()) / (scores.max() - scores.min())
    assert auroc(known, unknown) == pytest.approx(float(binary_auroc(squashed, target)), abs=1e-6)


def test_scores_by_hand_and_after_a_checkpoint() -> None:
    def batch(y: list[int]) -> Batch:
        zeros = torch.zeros(len(y), dtype=torch.int64)
        return Batch(
            x=torch.zeros(len(y), 3, 2, 2),
            y=torch.tensor(y),
            domain="fog",
            severity=5,
            index=zeros,
            step=0,
            domain_ids=zeros,
        )

    p = torch.tensor([[0.9, 0.1], [0.6, 0.4], [0.7, 0.3], [float("nan"), 0.0]]).double()
    logits = p.log() + torch.tensor([[0.0], [3.0], [2.0], [0.0]])
    one = OpenScores()
    one.add(batch([0, 0, -1, -1]), logits)
    found = one.summarise(accuracy_pct=75)
    # Confidence .9 and .6 against .7 and one that is lowest: three of four pairs.
    assert found["auroc_pct"] == pytest.approx(75)
    assert found["fpr95_pct"] == pytest.approx(50)
    # Energy 0 and 3 against 2 and one that is lowest.
    assert found["auroc_energy_pct"] == pytest.approx(75)
    assert found["fpr95_energy_pct"] == pytest.approx(50)
    assert found["h_score_pct"] == pytest.approx(75)
    two = OpenScores()
    two.add(batch([0, 0]), logits[:2])
    three = OpenScores()
    three.restore(two.state())
    three.add(batch([-1, -1]), logits[2:])
    assert three.summarise(75) == found
    assert three.state()["scores"].dtype == torch.float32
    assert set(two.summarise(75).values()) == {None}


# Runs -------------------------------------------------------------------------------------------


def spec_of(method: str, **changes):
    small = {"num_examples": 40, "batch_size": 16, "corruptions": ("fog", "contrast")}
    return benchmarks.resolve(method, "fashion-mnist-c", **{**small, **changes})


def test_a_run_measures_known_and_unknown_apart(tmp_path: Path) -> None:
    row = benchmarks.run(spec_of("source", open_set=HELD), tmp_path)
    steps = pq.read_table(next(tmp_path.glob("*/steps.parquet"))).to_pydict()
    stream = fashion(HELD, corruptions=("fog", "contrast"))
    labels, _ = samples(stream)
    assert sum(steps["n"]) == int((labels >= 0).sum())
    assert sum(steps["unknown"]) == row["num_unknown"] == int((labels < 0).sum())
    assert row["num_samples"] == len(labels)
    assert row["forwards_per_image"] == 1
    assert row["error_pct"] == row["source_error_pct"]
    assert "open_set=held-out:0,3,7" in row["protocol"]
    assert "unknown_per_known=1" in row["provenance"]
    # By hand: the model's seven logits on the same batches.
    from tta.backbones import load

    model, hits, known, unknown = load("fashion-resnet").model, 0, [], []
    with torch.no_grad():
        for batch in stream:
            logits = model(batch.x)[:, list(stream.source.class_ids)]
            hits += int((logits.argmax(1) == batch.y).sum())
            score = logits.double().softmax(1).amax(1).float()
            known += score[batch.y >= 0].tolist()
            unknown += score[batch.y < 0].tolist()
    wins = sum((k > u) + (k == u) / 2 for k, u in itertools.product(known, unknown))
    assert row["auroc_pct"] == pytest.approx(100 * wins / len(known) / len(unknown), abs=1e-6)
    assert 100 * (1 - hits / len(known)) == pytest.approx(row["error_pct"], abs=1e-9)
    assert row["h_score_pct"] == pytest.approx(
        harmonic(100 - row["error_pct"], row["auroc_pct"]), abs=1e-9
    )


def test_closed_runs_have_no_such_numbers_and_keep_their_identity(tmp_path: Path) -> None:
    spec = spec_of("source")
    row = benchmarks.run(spec, tmp_path)
    assert row["auroc_pct"] is row["open_set"] is row["h_score_pct"] is None
    assert row["num_unknown"] == 0
    import json

    assert "open" not in json.dumps(
        json.loads(spec.model_dump_json(exclude={"open_set"}))["config"]
    )
    assert spec.identity() != spec_of("source", open_set="noise").identity()


def test_a_batch_of_unknown_images_alone_is_a_step(tmp_path: Path) -> None:
    chosen = {"num_examples": 4, "batch_size": 1, "corruptions": ("fog",)}
    row = benchmarks.run(spec_of("source", open_set="noise", **chosen), tmp_path)
    steps = pq.read_table(next(tmp_path.glob("*/steps.parquet"))).to_pydict()
    assert sorted(zip(steps["n"], steps["unknown"], strict=True)) == [(0, 1)] * 4 + [(1, 0)] * 4
    assert [e is None for e in steps["error_pct"]] == [n == 0 for n in steps["n"]]
    assert row["num_samples"] == 8
    assert row["auroc_pct"] is not None


class StopError(Exception):
    pass


@pytest.mark.parametrize("kind", ["noise", HELD])
@pytest.mark.parametrize("at", [1, 6])
def test_resume_is_exact(kind: str, at: int, tmp_path: Path) -> None:
    spec = spec_of("tent", open_set=kind, open_ratio=0.8)
    whole = benchmarks.run(spec, tmp_path / "whole")
    for file in (tmp_path / "cache" / "source").iterdir():
        file.unlink()

    def stop(done: int, total: int, error: float) -> None:
        if done == at:
            raise StopError

    if at >= whole["num_steps"]:
        at = whole["num_steps"] - 1
    with pytest.raises(StopError):
        benchmarks.run(spec, tmp_path / "cut", checkpoint_seconds=0, progress=stop)
    resumed = benchmarks.run(spec, tmp_path / "cut", resume=True, workers=1)
    for row in (whole, resumed):
        for key in TIMING_FIELDS:
            row.pop(key)
    assert whole == resumed
    tables = [pq.read_table(next((tmp_path / n).glob("*/steps.parquet"))) for n in ("whole", "cut")]
    assert tables[0].drop(["seconds"]) == tables[1].drop(["seconds"])
