"""Learning streams: who is in which task, in which order, and what is said when it cannot be."""

from __future__ import annotations

import io
import pickle
import re
import struct
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import streams
from streams.learning_factory import (
    COMMON,
    learning_options,
)
from streams.learning_settings.blurred import blurred_tasks
from streams.learning_tasks import balanced_order, order_of_classes
from streams.learning_types import Experience, ForgetRequest, LearningStream, Samples, Segment
from streams.powerlaw import Schedule
from streams.scan import scan
from streams.types import CLEAN

EMBEDDED = ("split-fashion-mnist", "permuted-fashion-mnist", "domains-fashion-mnist")


def create(name: str = "split-fashion-mnist", setting: str = "sequential", **asked):
    plain = {key: asked.pop(key) for key in ("num_tasks", "num_examples", "seed") if key in asked}
    folder = asked.pop("data_dir", None)
    own = {key: asked.pop(key) for key in learning_options(name) if key in asked}
    return streams.create_learning(
        name, setting=setting, data_dir=folder, options=own, setting_options=asked, **plain
    )


def positions_of(samples: list[Samples]) -> set[int]:
    return set(np.concatenate([s.positions for s in samples]).tolist())


def counts(samples: Samples, classes) -> list[int]:
    return np.bincount(samples.labels, minlength=10)[list(classes)].tolist()


def error(**asked) -> str:
    with pytest.raises(streams.StreamError) as raised:
        create(**asked)
    text = str(raised.value)
    assert "\n" not in text
    assert len(text) > 20
    return text


def seen_by_item(stream: LearningStream):
    """Each item with the labelled samples that were met before it."""
    seen: list[Samples] = []
    for item in stream.items:
        yield item, list(seen)
        if isinstance(item, Experience):
            seen.append(item.train)


# Registries -------------------------------------------------------------------------------------


def test_every_file_is_a_set_or_a_setting():
    for kind, function in (("learning", "open_tasks"), ("learning_settings", "arrange")):
        entries = scan(f"streams.{kind}", kind)
        for name in entries.names():
            assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name)
            assert callable(getattr(entries.load(name), function))
            assert len(entries.summary(name)) > 20
    assert set(EMBEDDED) < set(streams.list_learning_streams())
    assert {"online", "label-swap"} < set(streams.list_learning_settings())


def test_options_are_arguments_with_the_same_defaults():
    from inspect import signature

    for name in streams.list_learning_streams():
        taken = signature(scan("streams.learning", "set").load(name).open_tasks).parameters
        known = learning_options(name)
        assert set(taken) - {"data_dir", "num_tasks", "seed"} == set(known) - set(COMMON)
        assert all(taken[key].default == known[key][0] for key in set(known) - set(COMMON))


# Tasks ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", EMBEDDED)
def test_no_image_is_learnt_from_and_tested_on(name):
    stream = create(name)
    train = positions_of([task.train for task in stream.tasks])
    test = positions_of([task.test for task in stream.tasks])
    assert not train & test
    assert len(train) == 8000
    assert len(test) == 2000
    assert all(task.train.source is stream.tasks[0].train.source for task in stream.tasks)
    for side in ("training", "testing"):
        assert f"of the 10,000 Fashion-MNIST test images, kept for {side}" in stream.provenance


@pytest.mark.parametrize("asked", [{}, {"num_tasks": 2}, {"class_order": "shuffled"}])
def test_split_classes_are_disjoint_complete_and_balanced(asked):
    stream = create(**asked)
    assert len(stream.tasks) == asked.get("num_tasks", 5)
    assert not any(set(a.classes) & set(b.classes) for a, b in combinations(stream.tasks, 2))
    assert sorted(c for task in stream.tasks for c in task.classes) == list(range(10))
    for number, task in enumerate(stream.tasks):
        assert counts(task.train, task.classes) == [800] * len(task.classes)
        assert counts(task.test, task.classes) == [200] * len(task.classes)
        assert set(task.train.tasks) == set(task.test.tasks) == {number}
        assert np.array_equal(task.train.labels, task.train.source.labels[task.train.positions])
    assert stream.num_classes == 10


def test_class_orders():
    assert [task.classes for task in create().tasks] == [(0, 1), (2, 3), (4, 5), (6, 7), (8, 9)]
    # The order that papers print for CIFAR-100.
    assert order_of_classes(100, "1993", 7)[:8].tolist() == [68, 56, 78, 8, 23, 84, 90, 65]
    one, same, other = (order_of_classes(100, "shuffled", seed).tolist() for seed in (0, 0, 1))
    assert one == same != other
    assert sorted(one) == list(range(100))


def test_a_permuted_task_has_the_same_images_with_moved_pixels():
    stream = create("permuted-fashion-mnist", num_tasks=3, identity_first=1)
    assert [task.name for task in stream.tasks] == ["clean", "permutation_1", "permutation_2"]
    at = np.arange(5)
    plain, *moved = (task.train.images(at) for task in stream.tasks)
    assert torch.equal(
        plain, stream.tasks[0].train.source.clean.read(stream.tasks[0].train.positions[:5])
    )
    assert not torch.equal(moved[0], moved[1])
    for images in moved:
        assert not torch.equal(images, plain)
        assert torch.equal(images.flatten(1).sort().values, plain.flatten(1).sort().values)
    # Training and test images of a task are permuted alike, those of another seed otherwise.
    other = create("permuted-fashion-mnist", num_tasks=3, identity_first=1, seed=1)
    assert not torch.equal(other.tasks[1].train.images(at), moved[0])
    assert len(np.unique(np.concatenate([task.train.keys for task in stream.tasks]))) == 24_000


def test_domains_corrupt_training_and_test_images():
    stream = create("domains-fashion-mnist")
    assert [task.name for task in stream.tasks] == ["clean", "gaussian_noise", "contrast"]
    for side in ("train", "test"):
        clean, noise, contrast = (
            getattr(task, side).images(np.arange(4)).float() for task in stream.tasks
        )
        assert (noise - clean).std() > 10
        assert contrast.std() < 0.5 * clean.std()
    assert all(task.classes == tuple(range(10)) for task in stream.tasks)
    assert [t.name for t in create("domains-fashion-mnist", num_tasks=1).tasks] == ["clean"]


def test_num_examples_and_test_examples_are_balanced_parts():
    whole, capped = create(), create(num_examples=51, test_examples=10)
    for one, part in zip(whole.tasks, capped.tasks, strict=True):
        assert len(part.train) == 51
        assert max(counts(part.train, part.classes)) == 26
        assert counts(part.test, part.classes) == [5, 5]
        assert set(part.train.positions) <= set(one.train.positions)
    again, other = (create(num_examples=51, test_examples=10, seed=seed) for seed in (0, 1))
    assert again.hash == capped.hash
    assert not np.array_equal(other.tasks[0].train.positions, capped.tasks[0].train.positions)
    assert np.array_equal(other.tasks[0].test.positions, capped.tasks[0].test.positions)
    smaller = create(num_examples=20)
    assert set(smaller.tasks[0].train.positions) < set(capped.tasks[0].train.positions)


def test_every_beginning_of_a_balanced_order_is_balanced():
    labels = np.array([3, 1, 1, 3, 7, 3, 1, 1, 3, 7])
    order = balanced_order(labels, 0, "test")
    assert sorted(order) == list(range(10))
    for length in range(1, 11):
        found = np.bincount(labels[order[:length]], minlength=8)[[1, 3, 7]]
        # A class lags behind the most frequent one by one, unless it has no more images.
        assert (found >= np.minimum(found.max() - 1, [4, 4, 2])).all()


# Settings ---------------------------------------------------------------------------------------

SETTINGS = {
    "sequential": {},
    "online": {"chunk": 30},
    "blurred": {},
    "revisits": {},
    "label-swap": {"epochs": 2},
    "mixed-life": {"corruptions": "fog,contrast", "segment_examples": 20},
    "forget": {},
}


@pytest.mark.parametrize("setting", SETTINGS)
def test_the_plan_depends_on_the_seed_alone(setting):
    asked = {"setting": setting, "num_examples": 60, **SETTINGS[setting]}
    one, same, other = (create(seed=seed, **asked) for seed in (0, 0, 1))
    assert one.hash == same.hash != other.hash
    assert one.describe() == same.describe()
    assert {item["name"] for item in one.describe()["items"]}.__len__() == len(one.items)
    assert setting in streams.list_learning_settings()
    for item, past in zip(same.items, one.items, strict=True):
        if isinstance(item, Experience):
            assert np.array_equal(item.train.keys, past.train.keys)


def test_all_settings_are_tested():
    assert set(SETTINGS) == set(streams.list_learning_settings())


@pytest.mark.parametrize("setting", SETTINGS)
def test_no_setting_trains_on_a_test_image(setting):
    stream = create(setting=setting, num_examples=60, **SETTINGS[setting])
    tests = positions_of([task.test for task in stream.tasks])
    for item in stream.items:
        if isinstance(item, Experience):
            assert not set(item.train.positions) & tests
            assert item.task == item.train.tasks.max()


def test_online_is_one_pass_in_chunks_across_borders():
    stream = create(setting="online", num_examples=50, chunk=40)
    items = stream.experiences
    assert [len(item.train) for item in items] == [40] * 6 + [10]
    assert all(item.epochs == 1 for item in items)
    assert items[1].tasks == (0, 1)
    assert items[1].task == 1
    keys = np.concatenate([item.train.keys for item in items])
    assert len(np.unique(keys)) == 250
    assert np.array_equal(
        np.sort(keys), np.sort(np.concatenate([t.train.keys for t in stream.tasks]))
    )
    tasks = np.concatenate([item.train.tasks for item in items])
    assert np.array_equal(tasks, np.repeat(np.arange(5), 50))
    first = np.concatenate([item.train.labels for item in items])[:50]
    assert np.count_nonzero(np.diff(first)) > 5  # classes of a task are mixed


def test_blurred_tasks_by_hand():
    assert blurred_tasks([4, 4], 0).tolist() == [0] * 4 + [1] * 4
    # w = 2: of the first 1, 2, 3, 4 slots of the window 0, 1, 1, 2 are of the next task.
    assert blurred_tasks([4, 4], 1.0).tolist() == [0, 0, 0, 1, 0, 1, 1, 1]
    # w = floor(0.5 * 4 / 2) = 1 at each border: round(1 / 4) = 0, then 1.
    assert blurred_tasks([4, 8, 4], 0.5).tolist() == [0] * 4 + [1] * 8 + [2] * 4


@pytest.mark.parametrize("blur", [0.1, 0.5, 1.0])
def test_blurred_counts_are_the_schedule_and_nothing_is_lost(blur):
    stream = create(setting="blurred", num_examples=400, blur=blur, parts=4)
    assert len(stream.experiences) == 20
    of = np.concatenate([item.train.tasks for item in stream.experiences])
    assert np.array_equal(of, blurred_tasks([400] * 5, blur))
    assert np.bincount(of).tolist() == [400] * 5
    keys = np.concatenate([item.train.keys for item in stream.experiences])
    assert len(np.unique(keys)) == 2000
    # The share of the next task around a border is linear.
    width = int(blur * 200)
    window = of[400 - width : 400 + width] == 1
    quarters = window.reshape(4, -1).sum(axis=1)
    assert quarters == pytest.approx(width / 8 * np.array([0.5, 1.5, 2.5, 3.5]), abs=1.01)
    assert window.sum() == width


@pytest.mark.parametrize(
    ("asked", "schedule"),
    [
        ({}, {"mode": "power", "budget": 1.0}),
        ({"budget": -1}, {"mode": "power"}),
        ({"mode": "position-power", "budget": 0.5}, {"mode": "position-power", "budget": 0.5}),
        (
            {"mode": "exponential", "beta": 2.0},
            {"mode": "exponential", "beta": 2.0, "budget": 1.0},
        ),
        ({"mode": "uniform", "budget": 0.25}, {"mode": "uniform", "budget": 0.25}),
        ({"mode": "none"}, {"mode": "none"}),
        ({"mode": "joint"}, {"mode": "joint"}),
        ({"mode": "table"}, {"mode": "table"}),
    ],
)
def test_revisits_have_exactly_the_scheduled_counts(asked, schedule):
    stream = create("permuted-fashion-mnist", "revisits", num_tasks=6, num_examples=300, **asked)
    expected = Schedule(num_samples=300, **schedule)
    for phase, item in enumerate(stream.experiences):
        found = np.bincount(item.train.tasks, minlength=phase + 1)
        assert tuple(found.tolist()) == expected.counts(phase)
        assert item.task == phase
        assert len(np.unique(item.train.keys)) == len(item.train)
        assert np.array_equal(item.train.tasks, item.train.domain_ids)  # a task is a permutation


def test_a_revisit_draws_anew():
    stream = create("permuted-fashion-mnist", "revisits", num_tasks=4, num_examples=300)
    two, three = (item.train for item in stream.experiences[2:])
    assert set(three.keys[three.tasks == 0].tolist()) - set(two.keys[two.tasks == 0].tolist())


def test_joint_revisits_grow_by_a_whole_task():
    stream = create(setting="revisits", mode="joint")
    assert [len(item.train) for item in stream.experiences] == [1600 * n for n in range(1, 6)]


def test_label_swaps_accumulate_and_tests_follow():
    stream = create(setting="label-swap", num_examples=100, swaps_per_epoch=2, epochs=3)
    assert [len(item.train) for item in stream.experiences] == [250] * 6
    assert all(item.epochs == 1 for item in stream.experiences)
    truth = stream.tasks[0].train.source.labels
    state = np.arange(10)
    for number, (task, item) in enumerate(zip(stream.tasks, stream.experiences, strict=True)):
        pairs = np.unique(np.stack([truth[item.train.positions], item.train.labels], 1), axis=0)
        assert len(pairs) == 10  # one label a class
        now = pairs[:, 1]
        changed = np.flatnonzero(now != state)
        assert len(changed) == (0 if number == 0 else 2)
        assert now[changed].tolist() == state[changed][::-1].tolist()  # exchanged
        assert np.array_equal(task.test.labels, now[truth[task.test.positions]])
        assert set(item.train.tasks) == set(task.test.tasks) == {item.task} == {number}
        state = now
    assert not np.array_equal(state, np.arange(10))
    # Every epoch shows every image once.
    for epoch in range(3):
        two = stream.experiences[2 * epoch : 2 * epoch + 2]
        assert len(np.unique(np.concatenate([item.train.keys for item in two]))) == 500


def test_label_swaps_come_at_a_changing_rate():
    asked = {"setting": "label-swap", "swaps_per_epoch": 10, "epochs": 4}
    lengths = {
        course: [len(item.train) for item in create(rate_schedule=course, **asked).experiences]
        for course in ("constant", "rising", "falling")
    }
    assert set(lengths["constant"]) == {800}
    assert lengths["rising"][0] == 2000  # 10 * 2 / 5 swaps an epoch at first
    assert lengths["falling"][0] == 500
    assert sorted(lengths["rising"][:-1], reverse=True) == lengths["rising"][:-1]
    assert sorted(lengths["falling"][:-1]) == lengths["falling"][:-1]
    assert all(sum(given) == 32_000 for given in lengths.values())
    assert len(lengths["constant"]) == 40
    assert abs(len(lengths["rising"]) - 40) <= 3
    tests = create(max_tests=200, **asked).tasks
    assert {len(task.test) for task in tests} == {10}
    assert len(create(setting="label-swap", swaps_per_epoch=0, epochs=2).experiences) == 1


@pytest.mark.parametrize("segments", ["together", "each"])
def test_segments_hold_seen_classes_and_test_images_alone(segments):
    stream = create(
        setting="mixed-life", corruptions="fog, contrast", segment_examples=30, segments=segments
    )
    train = positions_of([task.train for task in stream.tasks])
    assert len(stream.items) == 5 * (2 if segments == "together" else 3)
    for item, seen in seen_by_item(stream):
        if not isinstance(item, Segment):
            continue
        plan = item.stream.plan
        labels = np.concatenate([samples.labels for samples in seen])
        shown = item.stream.source.labels[plan.positions]
        assert set(shown) == set(labels)
        assert not set(plan.positions.tolist()) & train
        assert len(plan.positions) == 30 * len(item.stream.domains)
        found = np.bincount(shown)
        assert np.ptp(found[found > 0]) <= len(item.stream.domains)
        assert {d.severity for d in item.stream.domains} == {5}
    names = [item.name for item in stream.items]
    assert names[1] == ("segment" if segments == "together" else "fog") + "_after_task_0"


def test_a_segment_is_a_stream_that_resumes_with_the_corrupted_pixels():
    stream = create(
        setting="mixed-life", corruptions="fog", segment_examples=6, batch_size=4, when="last"
    )
    *experiences, segment = stream.items
    assert all(isinstance(item, Experience) for item in experiences)
    assert isinstance(segment, Segment)
    first, second = list(segment.stream)
    (resumed,) = list(segment.stream.start_at(1))
    assert torch.equal(resumed.x, second.x)
    assert (first.domain, len(first.x), len(second.x)) == ("fog", 4, 2)
    plain = streams.create("fashion-mnist-c", corruptions=("fog",)).source
    (domain,) = segment.stream.domains
    made = plain.images(first.index.numpy(), domain)  # embedded positions: the same draws
    assert torch.equal((first.x * 255).round().to(torch.uint8), made)
    assert len(create(setting="mixed-life", num_tasks=1).items[1].stream.domains) == 15


def test_segments_are_drawn_anew():
    stream = create(setting="mixed-life", corruptions="fog", segment_examples=40)
    segments = [item.stream for item in stream.items if isinstance(item, Segment)]
    assert not np.array_equal(segments[3].plan.positions, segments[4].plan.positions)
    everything = create(setting="mixed-life", corruptions="fog", segment_examples=0)
    assert len(everything.items[3].stream.plan.positions) == 800


@pytest.mark.parametrize("asked", [{"what": "samples"}, {"what": "class"}])
def test_requests_name_seen_samples_once(asked):
    stream = create(setting="forget", after="1,3", num_examples=40, fraction=0.25, **asked)
    kinds = [type(item) for item in stream.items]
    assert [n for n, kind in enumerate(kinds) if kind is ForgetRequest] == [2, 5]
    gone: set[int] = set()
    for item, seen in seen_by_item(stream):
        if not isinstance(item, ForgetRequest):
            continue
        keys = set(item.samples.keys.tolist())
        met = {key for samples in seen for key in samples.keys.tolist()}
        assert keys <= met - gone
        assert len(keys) == len(item.samples)
        if asked["what"] == "samples":
            assert len(keys) == (len(met) - len(gone)) // 4
            assert item.label is None
        else:
            assert set(item.samples.labels) == {item.label}
            assert len(keys) == 20
        gone |= keys


def test_requests_can_be_of_the_last_experience_or_a_named_class():
    last = create(setting="forget", after="2", scope="last", num_examples=40)
    assert set(last.items[3].samples.tasks) == {2}
    named = create(setting="forget", what="class", label=3, after="4")
    assert named.items[-1].name == "forget_class_3_after_task_4"
    assert len(named.items[-1].samples) == 800
    domains = create("domains-fashion-mnist", "forget", what="class", label=3, after="1")
    assert len(domains.items[2].samples) == 2 * 800


# What is said -----------------------------------------------------------------------------------


def test_describe_and_hash_name_what_was_asked_for():
    plain = create(num_examples=20)
    said = plain.describe()
    assert said["options"] == {"num_examples": 20}
    assert [item["samples_by_task"] for item in said["items"]] == [{n: 20} for n in range(5)]
    both = create("domains-fashion-mnist", "mixed-life", num_examples=20, num_tasks=1, severity="3")
    assert both.options == {"num_examples": 20, "num_tasks": 1, "source.severity": 3}
    assert create(num_examples=20, class_order="natural").hash == plain.hash
    hashes = {create(setting=s, num_examples=40, **o).hash for s, o in SETTINGS.items()}
    assert len(hashes) == len(SETTINGS)


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"num_tasks": 3}, "take one of 1, 2, 5, 10"),
        ({"num_tasks": 0}, "num_tasks=0 is out of range"),
        ({"num_examples": 0}, "num_examples=0 is out of range"),
        ({"num_examples": 1.5}, "must be an integer"),
        ({"class_order": "random"}, "'natural', 'shuffled', '1993'"),
        ({"name": "permuted-fashion-mnist", "identity_first": 2}, "must be 0 or 1"),
        ({"name": "permuted-fashion-mnist", "num_tasks": 1001}, "permutation_1000"),
        ({"name": "domains-fashion-mnist", "corruptions": "fgo"}, "did you mean 'fog'"),
        ({"name": "domains-fashion-mnist", "corruptions": "fog,fog"}, "names one twice"),
        ({"name": "domains-fashion-mnist", "num_tasks": 4}, "3 corruptions are named"),
        ({"name": "domains-fashion-mnist", "severity": 6}, "severity"),
        ({"setting": "online", "chunk": 0}, "chunk=0 is out of range"),
        ({"setting": "online", "chunks": 5}, "did you mean 'chunk'"),
        ({"setting": "online", "chunk": "many"}, "must be an integer"),
        ({"setting": "sequential", "chunk": 5}, "it has none"),
        ({"setting": "blurred", "blur": 1.5}, "at most 1"),
        ({"setting": "revisits", "mode": "powr"}, "is none of 'power'"),
        ({"setting": "revisits", "mode": "none", "budget": 0.5}, "takes no budget"),
        ({"setting": "label-swap", "rate_schedule": "up"}, "'rising'"),
        ({"setting": "label-swap", "swaps_per_epoch": 1e9}, "swaps_per_epoch"),
        ({"name": "permuted-fashion-mnist", "setting": "mixed-life"}, "take a split stream"),
        ({"setting": "mixed-life", "corruptions": "fog,fog"}, "names one twice"),
        ({"setting": "mixed-life", "corruptions": "fgo"}, "did you mean 'fog'"),
        ({"setting": "mixed-life", "order": "gradual"}, "changes the severity"),
        ({"setting": "mixed-life", "when": "often"}, "'every', 'last'"),
        ({"setting": "forget", "after": "5"}, "numbers from 0 to 4"),
        ({"setting": "forget", "after": ""}, "numbers from 0 to 4"),
        ({"setting": "forget", "fraction": 0.0}, "above 0"),
        ({"setting": "forget", "num_examples": 5, "fraction": 0.1}, "take a larger one"),
        ({"setting": "forget", "what": "class", "label": 9}, "classes seen are 0, 1"),
    ],
)
def test_wrong_values_are_named(asked, words):
    assert words in error(**asked)


def test_wrong_names_get_the_nearest():
    with pytest.raises(streams.StreamError, match="did you mean 'split-fashion-mnist'"):
        streams.create_learning("split-fashion-mnits")
    with pytest.raises(streams.StreamError, match="did you mean 'sequential'"):
        streams.create_learning("split-fashion-mnist", setting="sequentiel")


# Files ------------------------------------------------------------------------------------------


def write_idx(path: Path, values: np.ndarray) -> None:
    head = bytes((0, 0, 8, values.ndim)) + struct.pack(f">{values.ndim}I", *values.shape)
    path.write_bytes(head + values.astype(np.uint8).tobytes())


def test_fashion_mnist_of_the_four_files(tmp_path):
    draw = np.random.default_rng(0)
    for split, count in (("train", 40), ("t10k", 20)):
        write_idx(tmp_path / f"{split}-images-idx3-ubyte", draw.integers(0, 256, (count, 28, 28)))
        write_idx(tmp_path / f"{split}-labels-idx1-ubyte", np.arange(count) % 10)
    stream = create(data_dir=tmp_path)
    assert [len(task.train) for task in stream.tasks] == [8] * 5
    assert [len(task.test) for task in stream.tasks] == [4] * 5
    assert "Fashion-MNIST train" in stream.provenance
    assert stream.tasks[0].train.images(np.arange(2)).shape == (2, 3, 32, 32)
    # A corruption of training image i has other draws than one of test image i.
    corrupted = create("domains-fashion-mnist", data_dir=tmp_path)
    assert set(corrupted.tasks[0].train.source.clean.ids) == set(range(20, 60))
    (tmp_path / "t10k-labels-idx1-ubyte").unlink()
    text = error(data_dir=tmp_path)
    assert "no t10k-labels-idx1-ubyte.gz" in text
    assert "tta-bench data fetch fashion-mnist" in text


def png(image: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()


def write_parquet(path: Path, images: np.ndarray, labels: np.ndarray) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path.parent.mkdir(parents=True, exist_ok=True)
    cells = [{"bytes": png(image), "path": None} for image in images]
    pq.write_table(pa.table({"img": cells, "label": labels}), path)


def pictures(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)


def test_cifar_of_two_parquet_files(tmp_path):
    images = pictures(30)
    names = ("train-00000-of-00001.parquet", "test-00000-of-00001.parquet")
    write_parquet(tmp_path / "cifar10" / names[1], pictures(20, 1), np.arange(20) % 10)
    text = error(name="split-cifar10", data_dir=tmp_path)
    assert "no train split of CIFAR-10" in text
    assert f"--file {names[0]}" in text
    assert "data_batch_5" in text
    write_parquet(tmp_path / "cifar10" / names[0], images, np.arange(30) % 10)
    stream = create("split-cifar10", data_dir=tmp_path)
    assert [(len(t.train), len(t.test)) for t in stream.tasks] == [(6, 4)] * 5
    train = stream.tasks[1].train
    assert train.positions.tolist() == [2, 3, 12, 13, 22, 23]
    expected = torch.from_numpy(images[train.positions]).permute(0, 3, 1, 2)
    assert torch.equal(train.images(np.arange(6)), expected)
    assert "CIFAR-10 train" in stream.provenance
    assert "CIFAR-10 test" in stream.provenance


def test_cifar_of_python_batches(tmp_path):
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    images = pictures(60)
    for number, name in enumerate([*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"]):
        rows = images[10 * number : 10 * number + 10].transpose(0, 3, 1, 2).reshape(10, -1)
        content = {b"data": rows, b"labels": list(range(10))}
        (folder / name).write_bytes(pickle.dumps(content, protocol=2))
    stream = create("split-cifar10", data_dir=tmp_path)
    assert [len(task.train) for task in stream.tasks] == [10] * 5
    everything = stream.tasks[0].train.source.images(np.arange(50), CLEAN)
    assert torch.equal(everything, torch.from_numpy(images[:50]).permute(0, 3, 1, 2))
    before = stream.hash
    content = {b"data": images[:10].reshape(10, -1), b"labels": list(range(10))}
    (folder / "data_batch_5").write_bytes(pickle.dumps(content, protocol=2))
    assert create("split-cifar10", data_dir=tmp_path).hash != before
    (folder / "data_batch_5").unlink()
    assert "no train split" in error(name="split-cifar10", data_dir=tmp_path)


def test_cifar100_of_two_parquet_files(tmp_path):
    for split, count in (("train", 200), ("test", 100)):
        path = tmp_path / "cifar100" / f"{split}-00000-of-00001.parquet"
        write_parquet(path, np.zeros((count, 32, 32, 3), np.uint8), np.arange(count) % 100)
    stream = create("split-cifar100", data_dir=tmp_path, class_order="1993")
    assert len(stream.tasks) == 10
    assert stream.num_classes == 100
    assert set(stream.tasks[0].classes) == {68, 56, 78, 8, 23, 84, 90, 65, 74, 76}
    assert all(len(task.train) == 20 for task in stream.tasks)
    assert len(create("split-cifar100", data_dir=tmp_path, num_tasks=20).tasks) == 20


def test_imagenet_r_is_split_by_a_recorded_rule(tmp_path):
    from streams.imagenet_classes import subset

    encoded = png(np.full((230, 224, 3), 90, np.uint8))
    for number, wnid in enumerate(sorted(subset("imagenet_r"))):
        folder = tmp_path / "imagenet-r" / wnid
        folder.mkdir(parents=True)
        for image in range(2 if number else 7):
            (folder / f"art_{image}.png").write_bytes(encoded)
    stream = create("split-imagenet-r", data_dir=tmp_path)
    assert [len(task.classes) for task in stream.tasks] == [20] * 10
    assert [len(task.train) for task in stream.tasks] == [24] + [20] * 9  # 5 of 7, 1 of 2
    assert [len(task.test) for task in stream.tasks] == [21] + [20] * 9
    train, test = (
        np.concatenate([getattr(task, side).positions for task in stream.tasks])
        for side in ("train", "test")
    )
    assert sorted([*train, *test]) == list(range(405))
    assert "for training (no official split)" in stream.provenance
    assert stream.image_shape == (3, 224, 224)
    x, y = stream.tasks[9].test.batch(np.arange(2))
    assert x.shape == (2, 3, 224, 224)
    assert y.tolist() == stream.tasks[9].test.labels[:2].tolist()
    life = create("split-imagenet-r", "mixed-life", data_dir=tmp_path, corruptions="fog")
    assert life.items[1].stream.source.profile == "imagenet"
    uneven = create("split-imagenet-r", "revisits", data_dir=tmp_path)
    assert np.bincount(uneven.experiences[0].train.tasks).tolist() == [20]
    (tmp_path / "imagenet-r" / wnid / "art_1.png").unlink()
    text = error(name="split-imagenet-r", data_dir=tmp_path)
    assert "unpack the whole archive" in text


@pytest.mark.shared
def test_the_real_cifar10(shared):
    stream = create("split-cifar10", data_dir=shared / "data", num_examples=200)
    assert all(counts(task.train, task.classes) == [100, 100] for task in stream.tasks)
    assert sum(len(task.test) for task in stream.tasks) == len(stream.tasks[0].test.source.labels)
    train, test = (stream.tasks[0].train, stream.tasks[0].test)
    shown, tested = train.images(np.arange(200)), test.images(np.arange(len(test)))
    assert 90 < shown.float().mean() < 150
    hashes = {image.numpy().tobytes() for image in tested}
    assert not hashes & {image.numpy().tobytes() for image in shown}
