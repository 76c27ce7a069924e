"""Plans: permutations, batches, resets and the hash, before any image is read."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

import streams
from streams import order, settings
from streams.errors import StreamError
from streams.types import Domain

NAMES = ("fog", "snow", "frost")
DOMAINS = tuple(Domain(name=name, corruption=name, severity=5) for name in NAMES)
SIZES = [(1, 1), (1, 4), (2, 4), (4, 4), (5, 4), (7, 3), (10, 1), (23, 7), (64, 64), (64, 200)]


def request(images: int = 10, **changes) -> settings.Request:
    base = settings.Request(
        domains=DOMAINS,
        positions=np.arange(images),
        labels=np.arange(images) % 3,
        batch_size=4,
        seed=0,
        shuffle=True,
    )
    return replace(base, **changes)


def pixels(images: int = 12) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (images, 8, 8, 3), dtype=np.uint8), np.arange(images) % 3


def steps_of(plan: order.Plan) -> list[tuple[np.ndarray, np.ndarray]]:
    return [plan.step(step) for step in range(len(plan))]


# in_batches and shuffled ------------------------------------------------------------------------


def test_in_batches_by_hand():
    assert order.in_batches([5, 3], 2).tolist() == [0, 2, 4, 5, 7, 8]
    assert order.in_batches([4, 4], 4).tolist() == [0, 4, 8]
    assert order.in_batches([3], 10).tolist() == [0, 3]
    assert order.in_batches([2, 0, 1], 2).tolist() == [0, 2, 3]
    assert order.in_batches([5, 3], 2).dtype == np.int64


@pytest.mark.parametrize("batch_size", [1, 2, 3, 5, 8, 200])
@pytest.mark.parametrize("lengths", [[1], [8], [8, 8], [5, 1, 9], [3, 200, 7, 8]])
def test_batches_end_at_borders_and_only_the_last_is_short(lengths, batch_size):
    offsets = order.in_batches(lengths, batch_size)
    sizes = np.diff(offsets)
    assert offsets[0] == 0
    assert offsets[-1] == sum(lengths)
    assert sizes.min() >= 1
    assert sizes.max() <= batch_size
    borders = set(np.cumsum(lengths).tolist())
    assert borders <= set(offsets.tolist())
    assert all(end in borders for end, n in zip(offsets[1:], sizes, strict=True) if n < batch_size)
    assert len(sizes) == sum(-(-length // batch_size) for length in lengths)


def test_shuffled_depends_on_seed_and_purpose_alone():
    positions = np.arange(50)
    first = order.shuffled(positions, 3, "order", "fog", 5)
    np.random.default_rng(0).random(100)
    torch.rand(10)
    assert np.array_equal(first, order.shuffled(positions, 3, "order", "fog", 5))
    others = [
        order.shuffled(positions, 4, "order", "fog", 5),
        order.shuffled(positions, 3, "other", "fog", 5),
        order.shuffled(positions, 3, "order", "snow", 5),
        order.shuffled(positions, 3, "order", "fog", 4),
    ]
    assert not any(np.array_equal(first, other) for other in others)
    assert all(sorted(other) == positions.tolist() for other in (first, *others))
    assert np.array_equal(positions, np.arange(50))


def test_shuffling_leaves_the_global_generators_alone():
    torch_before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()
    order.shuffled(np.arange(9), 0, "order")
    assert torch.equal(torch_before, torch.get_rng_state())
    assert np.array_equal(numpy_before, np.random.get_state()[1])


# plans ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("setting", ["continual", "reset"])
@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize(("images", "batch_size"), SIZES)
def test_each_image_once_in_each_domain(setting, images, batch_size, shuffle):
    plan = settings.make_plan(
        setting, request(images, batch_size=batch_size, shuffle=shuffle, seed=images)
    )
    seen: dict[int, list[int]] = {}
    for positions, domain_ids in steps_of(plan):
        assert 1 <= len(positions) <= batch_size
        assert len(positions) == len(domain_ids)
        for position, domain_id in zip(positions.tolist(), domain_ids.tolist(), strict=True):
            seen.setdefault(domain_id, []).append(position)
    assert {d: sorted(p) for d, p in seen.items()} == {d: list(range(images)) for d in range(3)}
    assert sum(n for _, n, _ in plan.domain_table()) == 3 * images


@pytest.mark.parametrize(("images", "batch_size"), SIZES)
def test_continual_batches_hold_one_domain_and_domains_come_in_order(images, batch_size):
    plan = settings.make_plan("continual", request(images, batch_size=batch_size))
    per_step = [np.unique(ids).tolist() for _, ids in steps_of(plan)]
    assert all(len(ids) == 1 for ids in per_step)
    flat = [ids[0] for ids in per_step]
    assert flat == sorted(flat)
    per_domain = -(-images // batch_size)
    assert len(plan) == 3 * per_domain
    sizes = [len(positions) for positions, _ in steps_of(plan)]
    ragged = images - (per_domain - 1) * batch_size
    assert sizes == 3 * ([batch_size] * (per_domain - 1) + [ragged])
    table = [(d.name, n, first) for d, n, first in plan.domain_table()]
    assert table == [(name, images, i * per_domain) for i, name in enumerate(NAMES)]


@pytest.mark.parametrize(("images", "batch_size"), SIZES)
def test_reset_is_the_continual_order_with_a_reset_at_each_domain(images, batch_size):
    asked = request(images, batch_size=batch_size)
    continual, reset = (settings.make_plan(name, asked) for name in ("continual", "reset"))
    for field in ("positions", "domain_ids", "offsets"):
        assert np.array_equal(getattr(continual, field), getattr(reset, field))
    per_domain = -(-images // batch_size)
    assert continual.reset_steps == ()
    assert reset.reset_steps == tuple(i * per_domain for i in range(3))
    assert [int(reset.step(step)[1][0]) for step in reset.reset_steps] == [0, 1, 2]


def test_without_shuffling_the_images_keep_their_order():
    plan = settings.make_plan("continual", request(5, shuffle=False))
    assert plan.positions.tolist() == 3 * list(range(5))


def test_the_order_of_a_domain_does_not_depend_on_the_domains_beside_it():
    alone = settings.make_plan("continual", request(20, domains=DOMAINS[1:2]))
    among = settings.make_plan("continual", request(20))
    assert np.array_equal(alone.positions, among.positions[20:40])
    assert not np.array_equal(among.positions[:20], among.positions[20:40])


def test_only_images_that_take_part_are_planned():
    chosen = np.array([2, 5, 11])
    plan = settings.make_plan("reset", request(20, positions=chosen))
    assert set(plan.positions.tolist()) == {2, 5, 11}


def test_an_unknown_setting_is_answered_with_the_nearest():
    with pytest.raises(StreamError, match=r"unknown setting 'continuall' .*'continual'"):
        settings.make_plan("continuall", request())


# hash -------------------------------------------------------------------------------------------


def test_digest_depends_on_every_part_of_the_plan():
    plan = settings.make_plan("continual", request())
    assert plan.digest("a") == settings.make_plan("continual", request()).digest("a")
    changed = [
        plan.digest("b"),
        plan.digest("a", ""),
        replace(plan, reset_steps=(0,)).digest("a"),
        replace(plan, domains=plan.domains[::-1]).digest("a"),
        replace(plan, positions=plan.positions[::-1].copy()).digest("a"),
        replace(plan, domain_ids=plan.domain_ids[::-1].copy()).digest("a"),
        replace(plan, offsets=order.in_batches([10] * 3, 5)).digest("a"),
    ]
    assert len({plan.digest("a"), *changed}) == len(changed) + 1
    # Contexts are kept apart: two words are not one.
    assert plan.digest("a", "b") != plan.digest("ab")


def test_the_same_request_has_the_same_hash_and_any_change_another():
    images, labels = pixels()
    base = {"corruptions": ("brightness", "contrast"), "batch_size": 5, "name": "mine"}

    def hash_of(images=images, labels=labels, **changes) -> str:
        return streams.from_arrays(images, labels, **{**base, **changes}).hash

    other_pixel, other_label = images.copy(), labels.copy()
    other_pixel[7, 3, 2, 1] ^= 1
    other_label[7] = (other_label[7] + 1) % 3
    hashes = {
        "same": hash_of(),
        "seed": hash_of(seed=1),
        "batch_size": hash_of(batch_size=4),
        "severity": hash_of(severity=4),
        "severities": hash_of(severity=(5, 4)),
        "num_examples": hash_of(num_examples=11),
        "setting": hash_of(setting="reset"),
        "shuffle": hash_of(shuffle=False),
        "corruptions": hash_of(corruptions=("brightness",)),
        "order": hash_of(corruptions=("contrast", "brightness")),
        "name": hash_of(name="other"),
        "pixel": hash_of(images=other_pixel),
        "label": hash_of(labels=other_label),
    }
    assert hash_of(images=images.copy(), labels=labels.copy()) == hashes["same"]
    # The type in which images are handed out is no part of the plan.
    assert hash_of(dtype=torch.float64) == hashes["same"]
    assert len(set(hashes.values())) == len(hashes)


def test_the_hash_of_given_arrays_depends_on_every_domain():
    images, labels = pixels()
    arrays = {"day": images, "night": images // 2}
    first = streams.from_arrays(arrays, labels).hash
    other = arrays["night"].copy()
    other[-1, -1, -1, -1] ^= 1
    changed = [
        streams.from_arrays(arrays | {"night": other}, labels).hash,
        streams.from_arrays({"day": images, "dusk": images // 2}, labels).hash,
        streams.from_arrays({"night": images // 2, "day": images}, labels).hash,
    ]
    assert first == streams.from_arrays(arrays, labels).hash
    assert len({first, *changed}) == 4


def test_the_embedded_stream_hashes_by_request():
    def hash_of(**changes) -> str:
        asked = {"num_examples": 50, "batch_size": 20, **changes}
        return streams.create("fashion-mnist-c", **asked).hash

    changes = ({}, {"seed": 1}, {"batch_size": 10}, {"severity": 1}, {"num_examples": 49})
    assert len({hash_of(**change) for change in changes}) == len(changes)
    assert hash_of() == hash_of()


# start_at ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("setting", ["continual", "reset", "correlated"])
def test_start_at_gives_the_identical_rest(setting):
    images, labels = pixels()
    stream = streams.from_arrays(
        images, labels, corruptions=("gaussian_noise", "fog"), batch_size=5, setting=setting
    )
    full = list(stream)
    assert len(full) == len(stream) == 6
    assert [batch.step for batch in full] == list(range(6))
    for first in range(len(full) + 1):
        rest = stream.start_at(first)
        batches = list(rest)
        assert len(rest) == len(batches) == len(full) - first
        assert rest.hash == stream.hash
        assert rest.reset_steps == stream.reset_steps
        for got, wanted in zip(batches, full[first:], strict=True):
            assert got.step == wanted.step
            assert (got.domain, got.severity) == (wanted.domain, wanted.severity)
            for field in ("x", "y", "index", "domain_ids"):
                assert torch.equal(getattr(got, field), getattr(wanted, field))
    assert [b.step for b in stream.start_at(4).start_at(2)] == [2, 3, 4, 5]


@pytest.mark.parametrize("step", [-1, 7, 100])
def test_start_at_refuses_a_step_that_is_not_there(step):
    images, labels = pixels()
    stream = streams.from_arrays(images, labels, corruptions=("fog", "snow"), batch_size=5)
    with pytest.raises(StreamError, match=rf"step {step} is not in this stream of 6 steps"):
        stream.start_at(step)


# what a plan says -------------------------------------------------------------------------------


def test_describe_says_the_plan_in_plain_values():
    images, labels = pixels()
    stream = streams.from_arrays(
        images,
        labels,
        corruptions=("fog", "snow"),
        severity=(5, 3),
        batch_size=5,
        setting="reset",
        seed=2,
        num_examples=11,
    )
    said = stream.describe()
    assert said["domains"] == [
        {"name": "fog_5", "severity": 5, "samples": 11, "first_step": 0},
        {"name": "snow_5", "severity": 5, "samples": 11, "first_step": 3},
        {"name": "fog_3", "severity": 3, "samples": 11, "first_step": 6},
        {"name": "snow_3", "severity": 3, "samples": 11, "first_step": 9},
    ]
    wanted = {"steps": 12, "samples": 44, "images": 11, "batch_size": 5, "classes": 3}
    wanted |= {"resets": 4, "seed": 2, "setting": "reset", "hash": stream.hash}
    assert {key: said[key] for key in wanted} == wanted
    assert said["labels"] == [16, 16, 12]
    assert said["provenance"].startswith("generated (")


@pytest.mark.parametrize("count", [0, -1, 13])
def test_a_number_of_images_that_is_not_there(count):
    images, labels = pixels()
    with pytest.raises(StreamError, match=rf"num_examples={count} .*has 12 images"):
        streams.from_arrays(images, labels, num_examples=count)


@pytest.mark.parametrize("batch_size", [0, -3])
def test_a_batch_size_below_one(batch_size):
    images, labels = pixels()
    with pytest.raises(StreamError, match=rf"batch_size={batch_size} .*at least 1"):
        streams.from_arrays(images, labels, batch_size=batch_size)


@pytest.mark.parametrize("severity", [0, 6, (5, 6), ()])
def test_a_severity_out_of_range(severity):
    with pytest.raises(StreamError, match="severity"):
        streams.create("fashion-mnist-c", severity=severity)


def test_a_domain_named_twice():
    with pytest.raises(StreamError, match="named twice"):
        streams.create("fashion-mnist-c", corruptions=("fog", "fog"))
    with pytest.raises(StreamError, match="named twice"):
        streams.create("fashion-mnist-c", severity=(5, 5))


# Sizes come from configuration files and numpy code: what is not a whole number is said so.
@pytest.mark.parametrize(
    "wrong",
    [{"batch_size": 2.5}, {"num_examples": "10"}, {"severity": 5.0}, {"severity": None}],
    ids=str,
)
def test_a_size_that_is_no_integer(wrong):
    with pytest.raises(StreamError, match=next(iter(wrong))):
        streams.create("fashion-mnist-c", **{"num_examples": 10, **wrong})


def test_numpy_integers_are_integers():
    asked = {"severity": 3, "num_examples": 10, "batch_size": 4, "seed": 1}
    plain = streams.create("fashion-mnist-c", **asked)
    numpy = streams.create("fashion-mnist-c", **{k: np.int64(v) for k, v in asked.items()})
    assert plain.hash == numpy.hash
    assert plain.describe() == numpy.describe()
