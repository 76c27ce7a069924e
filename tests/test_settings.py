"""Settings of the literature: what each promises about its order, and the theory it must meet."""

from __future__ import annotations

import time
import tracemalloc
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as profile
from hypothesis import strategies as st
from scipy import stats

import streams
from streams import order, order_labels, order_markov, picture, settings
from streams.domain_orders import ORDERS, arrange
from streams.errors import StreamError
from streams.factory import choose_domains
from streams.order_markov import Chain
from streams.types import Domain

ALL = settings.list_settings()
# Another value of every option, under which the plan must be another.
OTHERS = {
    "correlated": {"delta": 0.5, "reset": 1},
    "gradual": {"form": "cotta"},
    "label-shift": {"ratio": 2, "hold": 7, "reset": 0},
    "long-tail": {"imbalance": 3, "tail": "dynamic", "gamma": 1.5, "slots": 4},
    "mixed-correlated": {"delta": 0.5},
    "practical": {"gamma": 1.5, "slots": 4},
    "recurring": {"visits": 3, "base": "practical", "redraw": 1},
    "unitta": {
        "class_stay": 0.5,
        "class_imbalance": 2,
        "domain_stay": 1,
        "domain_imbalance": 2,
        "cap": 2,
        "empty": "stop",
    },
}


def request(images: int = 30, classes: int = 3, domains: int = 3, **changes) -> settings.Request:
    """A request over corruptions at one severity, labels in no order."""
    names = ORDERS["default"][:domains]
    base = settings.Request(
        domains=tuple(Domain(name=n, corruption=n, severity=5) for n in names),
        positions=np.arange(images),
        labels=np.random.default_rng(0).permutation(np.arange(images) % classes),
        batch_size=8,
        seed=0,
        shuffle=True,
    )
    return replace(base, **changes)


def make(setting: str, asked: settings.Request, **options) -> order.Plan:
    if setting == "gradual":
        names = [d.corruption for d in asked.domains]
        asked = replace(asked, domains=tuple(choose_domains("gradual", names, 5)))
    return settings.make_plan(setting, replace(asked, options=options))


def seen(plan: order.Plan) -> Counter[tuple[int, int]]:
    pairs = zip(plan.domain_ids.tolist(), plan.positions.tolist(), strict=True)
    return Counter(pairs)


def tiny(setting: str, **asked) -> streams.Stream:
    rng = np.random.default_rng(1)
    images = rng.integers(0, 256, (24, 8, 8, 3), dtype=np.uint8)
    corruptions = ("gaussian_noise", "brightness")
    labels = rng.permutation(np.arange(24) % 3)
    given = {"corruptions": corruptions, "batch_size": 5, "setting": setting, **asked}
    return streams.from_arrays(images, labels, **given)


# Every setting ----------------------------------------------------------------------------------

sizes = st.fixed_dictionaries(
    {"images": st.integers(1, 60), "classes": st.integers(1, 6), "domains": st.integers(1, 4)}
)
keys = st.fixed_dictionaries(
    {"batch_size": st.integers(1, 17), "seed": st.integers(0, 9), "shuffle": st.booleans()}
)


@pytest.mark.parametrize("setting", ALL)
@given(size=sizes, key=keys)
@profile(max_examples=25, deadline=None, derandomize=True, database=None)
def test_a_plan_is_sound_and_depends_on_its_request_alone(setting, size, key):
    asked = request(**size, **key)
    plan = make(setting, asked)
    steps = np.diff(plan.offsets)
    assert plan.offsets[0] == 0
    assert plan.offsets[-1] == len(plan.positions) == len(plan.domain_ids)
    assert steps.min() >= 1
    assert steps.max() <= key["batch_size"]
    assert {a.dtype for a in (plan.positions, plan.domain_ids, plan.offsets)} == {np.dtype("i8")}
    assert set(plan.domain_ids.tolist()) <= set(range(len(plan.domains)))
    assert all(0 <= step < len(plan) for step in plan.reset_steps)
    assert all(0 <= first < len(plan.positions) for first in plan.visit_starts)
    np.random.default_rng(0).random(9)
    assert make(setting, asked).digest("a") == plan.digest("a")


@pytest.mark.parametrize(
    ("setting", "options", "times"),
    [
        ("continual", {}, 1),
        ("reset", {}, 1),
        ("mixed", {}, 1),
        ("correlated", {}, 1),
        ("correlated", {"delta": 1.0, "min_chunk": 0}, 1),
        ("mixed-correlated", {"delta": 0}, 1),
        ("mixed-correlated", {"delta": 1.0, "min_chunk": 0}, 1),
        ("practical", {}, 1),
        ("practical", {"gamma": 0.001}, 1),
        ("long-tail", {"imbalance": 1}, 1),
        ("unitta", {"cap": 0}, 1),
        ("unitta", {"cap": 0, "class_stay": 0, "domain_stay": 0}, 1),
        ("unitta", {"cap": 0, "domain_stay": 1}, 1),
        ("recurring", {"visits": 3}, 3),
        ("recurring", {"visits": 3, "base": "practical", "redraw": 1}, 3),
    ],
    ids=str,
)
@given(size=sizes, key=keys)
@profile(max_examples=25, deadline=None, derandomize=True, database=None)
def test_each_image_once_in_each_domain_and_visit(setting, options, times, size, key):
    if size["images"] % size["classes"]:
        size = {**size, "images": size["images"] * size["classes"]}
    plan = make(setting, request(**size, **key), **options)
    found = seen(plan)
    every = {(d, p) for d in range(size["domains"]) for p in range(size["images"])}
    assert set(found) <= every
    total = times * len(every)
    crossing = setting in ("practical", "long-tail") or "base" in options
    left_out = crossing and key["batch_size"] > 1 and total % key["batch_size"] == 1 and total > 1
    assert sum(found.values()) == total - left_out
    assert max(found.values()) <= times


@pytest.mark.parametrize("setting", ALL)
def test_start_at_any_step_gives_the_identical_rest(setting):
    stream = tiny(setting, setting_options={"visits": 2} if setting == "recurring" else None)
    full = list(stream)
    for first in {0, 1, len(full) // 2, len(full) - 1, len(full)}:
        rest = stream.start_at(first)
        assert rest.hash == stream.hash
        batches = list(rest)
        assert [b.step for b in batches] == list(range(first, len(full)))
        for got, wanted in zip(batches, full[first:], strict=True):
            assert (got.domain, got.severity) == (wanted.domain, wanted.severity)
            for field in ("x", "y", "index", "domain_ids"):
                assert torch.equal(getattr(got, field), getattr(wanted, field))


def test_pixels_of_a_mixed_batch_are_those_of_each_domain_alone():
    alone = {
        (int(i), b.domain): x for b in tiny("continual") for i, x in zip(b.index, b.x, strict=True)
    }
    stream = tiny("mixed")
    for batch in stream:
        for x, i, d in zip(batch.x, batch.index, batch.domain_ids, strict=True):
            assert torch.equal(x, alone[int(i), stream.domains[int(d)].name])


def test_continual_and_reset_are_what_they_were():
    asked = request(10, domains=2)
    fog_snow = tuple(Domain(name=n, corruption=n, severity=5) for n in ("fog", "snow"))
    asked = replace(asked, domains=fog_snow, labels=np.arange(10) % 3, batch_size=4)
    digests = [settings.make_plan(name, asked).digest("a")[:16] for name in ("continual", "reset")]
    assert digests == ["291d6ec02a0fa115", "273e94f986b53fdf"]


# Options ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("setting", ALL)
def test_every_option_has_a_default_and_a_line_that_says_what_it_is(setting):
    for name, (default, words) in settings.options(setting).items():
        assert type(default) in (int, float, str), name
        assert len(words) > 15, name


@pytest.mark.parametrize(("setting", "name"), [(s, n) for s, some in OTHERS.items() for n in some])
def test_an_option_changes_plan_and_hash(setting, name):
    chosen = {name: OTHERS[setting][name]}
    plain, other = tiny(setting), tiny(setting, setting_options=chosen)
    assert plain.hash != other.hash
    assert plain.plan.digest() != other.plan.digest()
    assert other.hash == tiny(setting, setting_options=chosen).hash
    assert list(other.options) == [name]


@pytest.mark.parametrize("setting", ALL)
def test_every_option_is_tried_and_a_default_said_aloud_changes_nothing(setting):
    known = settings.options(setting)
    hidden = {"recurring": {"gamma", "slots"}, "correlated": {"min_chunk"}}
    hidden["mixed-correlated"] = {"min_chunk"}
    assert set(known) == set(OTHERS.get(setting, {})) | hidden.get(setting, set())
    spoken = {name: default for name, (default, _) in known.items()}
    assert tiny(setting, setting_options=spoken).hash == tiny(setting).hash
    assert tiny(setting, setting_options={}).hash == tiny(setting).hash


@pytest.mark.parametrize(
    ("setting", "given", "words"),
    [
        ("practical", {"gama": 1}, r"'practical' has no option 'gama' \(did you mean 'gamma'\?\)"),
        ("continual", {"gamma": 1}, "'continual' has no option 'gamma'; it has none"),
        ("practical", {"gamma": 0}, "gamma=0.0 is out of range: it must be above 0"),
        ("practical", {"gamma": "much"}, "gamma='much' must be a finite number"),
        ("practical", {"gamma": float("nan")}, "gamma=nan must be a finite number"),
        ("practical", {"gamma": None}, "gamma=None must be a finite number"),
        ("practical", {"slots": 2.5}, "slots=2.5 must be an integer"),
        ("practical", {"slots": -1}, "slots=-1 is out of range: it must be at least 0"),
        ("practical", 3, "setting options must be values by name, got 3"),
        ("gradual", {"form": "up"}, "form='up' is none of 'up-down', 'cotta'"),
        ("gradual", {"form": 1}, "form=1 must be text"),
        ("recurring", {"visits": 0}, "visits=0 is out of range: it must be at least 1"),
        ("recurring", {"gamma": 1}, "gamma has no effect on base='continual'"),
        ("correlated", {"reset": 2}, "reset=2 is none of 0, 1"),
        ("correlated", {"delta": -1}, "delta=-1.0 is out of range"),
        ("label-shift", {"ratio": 0.5}, "ratio=0.5 is out of range: it must be at least 1"),
        ("unitta", {"domain_stay": 1.5}, "domain_stay=1.5 .* at least 0 and at most 1"),
        ("unitta", {"domain_stay": 0.1}, "domain_stay=0.1 .*it is at least 0.5, or 0"),
        ("unitta", {"class_stay": 1}, "class_stay=1 is out of range"),
    ],
    ids=str,
)
def test_a_wrong_option_is_answered_in_one_line(setting, given, words):
    with pytest.raises(StreamError, match=words) as caught:
        tiny(setting, setting_options=given)
    assert "\n" not in str(caught.value)


def test_options_may_be_text_as_a_command_line_gives_them():
    text = tiny("practical", setting_options={"gamma": "0.5", "slots": "4"})
    assert text.hash == tiny("practical", setting_options={"gamma": 0.5, "slots": 4}).hash


# Orders of the domains --------------------------------------------------------------------------


def test_the_orders_are_permutations_and_rotta_is_the_fifth_of_cotta():
    assert len(ORDERS) == 12
    assert all(sorted(names) == sorted(ORDERS["default"]) for names in ORDERS.values())
    assert len({ORDERS[f"cotta-{n}"] for n in range(10)}) == 10
    words = (
        "motion_blur snow fog shot_noise defocus_blur contrast zoom_blur brightness frost "
        "elastic_transform glass_blur gaussian_noise pixelate jpeg_compression impulse_noise"
    )
    assert ORDERS["rotta"] == tuple(words.split()) == ORDERS["cotta-5"]
    assert ORDERS["cotta-0"][:3] == ("brightness", "pixelate", "gaussian_noise")
    assert ORDERS["cotta-7"][:2] == ("glass_blur", "zoom_blur")
    assert ORDERS["cotta-8"][-2:] == ("elastic_transform", "impulse_noise")


def test_an_order_arranges_the_corruptions_that_are_given():
    stream = streams.create(
        "fashion-mnist-c", corruptions=("fog", "snow", "frost"), order="rotta", num_examples=4
    )
    assert [d.name for d in stream.domains] == ["snow", "fog", "frost"]
    both = streams.create(
        "fashion-mnist-c", corruptions=("fog", "snow"), severity=(5, 3), order="rotta"
    )
    assert [d.name for d in both.domains] == ["snow_5", "fog_5", "snow_3", "fog_3"]
    assert arrange(["spatter", "fog"]) == ["spatter", "fog"]
    arrays = {name: np.zeros((3, 4, 4, 3), dtype=np.uint8) for name in ("fog", "snow")}
    given = streams.from_arrays(arrays, np.arange(3), order="rotta")
    assert [d.name for d in given.domains] == ["snow", "fog"]
    with pytest.raises(StreamError, match=r"unknown order 'rota' \(did you mean 'rotta'\?\)"):
        streams.create("fashion-mnist-c", order="rota")
    with pytest.raises(StreamError, match="order 'rotta' has no place for 'spatter'"):
        streams.create("fashion-mnist-c", corruptions=("spatter",), order="rotta")


# gradual ----------------------------------------------------------------------------------------


def visits_of(plan: order.Plan) -> list[tuple[str, int]]:
    found = [plan.domains[plan.domain_ids[first]] for first in plan.visit_starts]
    return [(d.corruption, d.severity) for d in found]


@pytest.mark.parametrize(("form", "count"), [("up-down", 135), ("cotta", 131)])
def test_gradual_climbs_and_falls(form, count):
    plan = make("gradual", request(6, domains=15), form=form)
    visits = visits_of(plan)
    assert len(visits) == count
    assert len(plan.domains) == 75
    climb = [1, 2, 3, 4, 5, 4, 3, 2, 1]
    names = ORDERS["default"]
    first = climb if form == "up-down" else [5, 4, 3, 2, 1]
    wanted = [(names[0], s) for s in first] + [(n, s) for n in names[1:] for s in climb]
    assert visits == wanted
    # The full list at each visit, and no batch across a border.
    assert len(plan.positions) == 6 * count
    assert len(plan) == count
    assert all(sorted(plan.step(step)[0]) == list(range(6)) for step in range(count))


def test_gradual_names_every_severity_and_climbs_to_the_one_it_is_given():
    stream = tiny("gradual", severity=3)
    assert [d.name for d in stream.domains][:4] == [
        "gaussian_noise_1",
        "gaussian_noise_2",
        "gaussian_noise_3",
        "brightness_1",
    ]
    assert stream.describe()["visits"] == 2 * 5
    assert tiny("gradual", severity=(3,)).hash == stream.hash
    assert [d.severity for d in tiny("gradual", severity=1).domains] == [1, 1]
    with pytest.raises(StreamError, match="gradual climbs to one"):
        tiny("gradual", severity=(5, 3))
    with pytest.raises(StreamError, match="severity=6"):
        tiny("gradual", severity=6)
    images = np.zeros((3, 4, 4, 3), dtype=np.uint8)
    with pytest.raises(StreamError, match="has no severity"):
        streams.from_arrays(images, np.arange(3), setting="gradual")


# mixed ------------------------------------------------------------------------------------------


def test_mixed_batches_hold_the_domains_in_proportion():
    plan = make("mixed", request(4000, domains=5, batch_size=100))
    shares = np.array([np.bincount(ids, minlength=5) for _, ids in map(plan.step, range(200))])
    # Counts of a domain in a batch of a shuffled union are hypergeometric.
    law = stats.hypergeom(20_000, 4000, 100)
    assert shares.mean(axis=0) == pytest.approx([20] * 5)
    assert shares.var() == pytest.approx(law.var(), rel=0.15)
    assert order.runs(plan.domain_ids).mean() == pytest.approx(1 / 0.8, rel=0.02)


def test_mixed_keeps_the_order_of_the_images_inside_each_domain():
    asked = request(50)
    mixed, continual = make("mixed", asked), make("continual", asked)
    plain = make("mixed", replace(asked, shuffle=False))
    for d in range(3):
        wanted = continual.positions[continual.domain_ids == d]
        assert np.array_equal(mixed.positions[mixed.domain_ids == d], wanted)
        assert plain.positions[plain.domain_ids == d].tolist() == list(range(50))


# correlated -------------------------------------------------------------------------------------


def test_delta_zero_is_a_stable_sort_of_the_shuffled_list():
    asked = request(40, classes=4)
    plan, continual = make("correlated", asked), make("continual", asked)
    for d in range(3):
        shuffled = continual.positions[continual.domain_ids == d]
        wanted = sorted(shuffled.tolist(), key=lambda p: asked.labels[p])
        assert plan.positions[plan.domain_ids == d].tolist() == wanted
    assert plan.reset_steps == ()
    assert make("correlated", asked, reset=1).reset_steps == order.domain_starts(plan)
    mixed = make("mixed-correlated", asked, delta=0)
    assert np.all(np.diff(asked.labels[mixed.positions]) >= 0)
    assert len(set(mixed.domain_ids[:10].tolist())) > 1


@pytest.mark.parametrize("delta", [0.01, 0.1, 1.0])
@pytest.mark.parametrize("seed", range(5))
def test_chunks_hold_their_minimum_and_are_balanced(delta, seed):
    class_sizes = np.full(10, 200)
    counts = order_labels.chunk_counts(class_sizes, 10, delta, 10, order.rng(seed, "chunks"))
    assert np.array_equal(counts.sum(axis=1), class_sizes)
    held = np.cumsum(counts, axis=0)
    assert held[-1].min() >= 10
    # Whatever held the mean already got nothing more, so none exceeds it by more than a class.
    assert not np.any(counts[1:][held[:-1] >= 200])
    assert held[-1].max() < 200 + 200


def test_small_delta_correlates_and_a_large_one_does_not():
    asked = request(2000, classes=10, domains=1)

    def run_length(delta: float) -> float:
        plan = make("correlated", asked, delta=delta)
        return order.runs(asked.labels[plan.positions]).mean()

    lengths = [run_length(delta) for delta in (0.01, 0.1, 1.0, 100.0)]
    assert lengths == sorted(lengths, reverse=True)
    assert lengths[0] > 80
    # Large delta: ten chunks, each with about a tenth of every class in one piece.
    assert lengths[-1] == pytest.approx(20, rel=0.1)


def test_a_delta_that_cannot_be_met_ends_in_one_line():
    labels = np.r_[np.zeros(98, dtype=np.int64), 1, 2]
    with pytest.raises(StreamError, match=r"delta=0.001 gave no order whose 3 chunks hold 10"):
        make("correlated", request(100, labels=labels), delta=0.001)


# practical --------------------------------------------------------------------------------------


def test_log_dirichlet_has_the_law_of_a_dirichlet():
    weights = order_labels.softmax(order_labels.log_dirichlet(order.rng(0, "d"), 0.1, (4000, 10)))
    assert weights.sum(axis=1) == pytest.approx(np.ones(4000))
    assert stats.kstest(weights[:, 3], stats.beta(0.1, 0.9).cdf).pvalue > 1e-3
    tiny_ones = order_labels.log_dirichlet(order.rng(0, "d"), 1e-5, (100, 10))
    assert np.isfinite(order_labels.softmax(tiny_ones)).all()


def test_slots_share_a_class_as_the_theory_says():
    classes, slots, gamma, size = 4000, 10, 0.1, 100_000
    sizes_ = np.full(classes, size)
    counts = order_labels.slot_counts(sizes_, slots, gamma, order.rng(0, "slots"))
    assert np.array_equal(counts.sum(axis=1), sizes_)
    assert counts.min() >= 0
    share = counts / size
    assert share.mean(axis=0) == pytest.approx([0.1] * slots, abs=0.015)
    wanted = (1 / slots) * (1 - 1 / slots) / (slots * gamma + 1)
    assert share.var() == pytest.approx(wanted, rel=0.05)


def test_a_cut_is_the_floor_of_the_cumulated_share():
    weights = np.array([[0.25, 0.26, 0.49], [0.0, 0.0, 1.0]])
    cuts = order_labels.cut(weights, np.array([[10], [7]]))
    assert cuts.tolist() == [[2, 3, 5], [0, 0, 7]]
    assert order_labels.cut(np.array([1.0]), np.array([4])).tolist() == [4]


@pytest.mark.parametrize("gamma", [0.01, 0.1, 1.0])
def test_run_lengths_of_the_practical_order_match_a_dirichlet_of_numpy(gamma):
    asked = request(5000, classes=10, domains=4)
    plan = make("practical", asked, gamma=gamma)
    runs = order.runs(asked.labels[plan.positions]).mean()
    rng = np.random.default_rng(0)
    pieces = []
    for _ in range(40):
        slots = np.zeros((10, 10), dtype=int)
        for k in range(10):
            cuts = (np.cumsum(rng.dirichlet([gamma] * 10))[:-1] * 500).astype(int)
            slots[:, k] = np.diff([0, *cuts, 500])
        in_order = [k for slot in slots for k in rng.permutation(10) if slot[k]]
        pieces.append(1 + np.count_nonzero(np.diff(in_order)))
    assert runs == pytest.approx(5000 / np.mean(pieces), rel=0.15)


def test_practical_batches_cross_borders_and_domains_come_in_turn():
    plan = make("practical", request(30, domains=3, batch_size=8))
    assert np.diff(plan.offsets).tolist() == [8] * 11 + [2]
    assert (np.diff(plan.domain_ids) >= 0).all()
    held = [set(ids.tolist()) for _, ids in map(plan.step, range(len(plan)))]
    assert held[3] == {0, 1}
    assert held[7] == {1, 2}
    assert plan.reset_steps == ()


def test_a_last_batch_of_one_is_left_out_unless_all_are():
    assert len(make("practical", request(11, domains=3, batch_size=8)).positions) == 32
    assert len(make("practical", request(11, domains=3, batch_size=1)).positions) == 33
    assert len(make("practical", request(1, domains=1, batch_size=8)).positions) == 1
    assert len(make("practical", request(11, domains=3, batch_size=10)).positions) == 33


def test_without_shuffling_slots_take_the_images_of_a_class_in_their_order():
    asked = request(60, shuffle=False)
    plan, shuffled = make("practical", asked), make("practical", replace(asked, shuffle=True))
    for d in range(3):
        for k in range(3):
            mine = plan.positions[plan.domain_ids == d]
            mine = mine[asked.labels[mine] == k]
            assert np.all(np.diff(mine) > 0)
    # The labels come in the same order: shuffling chooses among images of a class alone.
    assert np.array_equal(asked.labels[plan.positions], asked.labels[shuffled.positions])


# recurring --------------------------------------------------------------------------------------


def test_rounds_repeat_the_base_order():
    asked = request(10, batch_size=4)
    base, plan = make("continual", asked), make("recurring", asked, visits=4)
    assert len(plan) == 4 * len(base)
    assert np.array_equal(plan.positions, np.tile(base.positions, 4))
    assert np.array_equal(plan.domain_ids, np.tile(base.domain_ids, 4))
    assert plan.visit_starts == tuple(range(0, 120, 10))
    anew = make("recurring", asked, visits=4, redraw=1)
    assert np.array_equal(anew.positions[:30], base.positions)
    assert not np.array_equal(anew.positions[30:60], base.positions)
    assert np.array_equal(anew.domain_ids, plan.domain_ids)


def test_recurring_practical_is_one_run_of_batches_over_all_visits():
    asked = request(11, domains=3, batch_size=8)
    once = make("practical", replace(asked, batch_size=1), gamma=0.5)
    plan = make("recurring", asked, visits=3, base="practical", gamma=0.5)
    assert np.array_equal(plan.positions, np.tile(once.positions, 3))
    assert np.diff(plan.offsets).tolist() == [8] * 12 + [3]
    assert set(plan.step(4)[1].tolist()) == {0, 2}
    assert len(plan.visit_starts) == 9


@pytest.mark.parametrize("options", [{}, {"base": "practical", "redraw": 1}], ids=str)
def test_twenty_visits_are_planned_at_once(options):
    asked = request(10_000, classes=10, domains=15, batch_size=64)
    began = time.perf_counter()
    plan = make("recurring", asked, **options)
    assert time.perf_counter() - began < 3
    assert len(plan.positions) == 20 * 15 * 10_000
    tracemalloc.start()
    make("recurring", asked, **options)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 200e6


# label-shift ------------------------------------------------------------------------------------


@pytest.mark.parametrize("ratio", [1, 20, 500_000])
def test_labels_come_with_the_frequencies_of_the_imbalance_ratio(ratio):
    classes, hold = 10, 4000
    asked = request(500, classes=classes, domains=1)
    plan = make("label-shift", asked, ratio=ratio, hold=hold)
    steps = asked.labels[plan.positions].reshape(classes, hold)
    turn = [Counter(row.tolist()).most_common(1)[0][0] for row in steps]
    main, rest = ratio / (ratio + classes - 1), 1 / (ratio + classes - 1)
    if ratio > 1:
        assert sorted(turn) == list(range(classes))
        assert turn != list(range(classes))
    frequencies = np.array([np.bincount(row, minlength=classes) for row in steps]) / hold
    wanted = np.full((classes, classes), rest)
    if ratio > 1:
        wanted[np.arange(classes), turn] = main
    assert frequencies == pytest.approx(wanted, abs=4.5 * np.sqrt(main * (1 - main) / hold) + 1e-3)
    # The image is uniform among those of its class.
    uses = np.bincount(plan.positions, minlength=500)
    assert stats.chisquare(uses, np.full(500, uses.mean())).pvalue > 1e-4


def test_label_shift_draws_once_for_all_domains_and_resets_before_each():
    asked = request(50, classes=5, domains=3, batch_size=64)
    plan = make("label-shift", asked)
    each = plan.positions.reshape(3, 500)  # 100 draws for each of 5 classes
    assert (each == each[0]).all()
    assert plan.reset_steps == (0, 8, 16)
    assert make("label-shift", asked, reset=0).reset_steps == ()
    labels = asked.labels[each[0]].reshape(5, 100)
    assert (labels == labels[:, :1]).all()
    plain = make("label-shift", replace(asked, shuffle=False))
    assert asked.labels[plain.positions[:500:100]].tolist() == [0, 1, 2, 3, 4]


def test_a_class_without_images_has_no_turn():
    labels = np.array([0, 3, 3, 7])
    plan = make("label-shift", request(4, domains=1, labels=labels), ratio=1, hold=50)
    assert len(plan.positions) == 150
    assert set(labels[plan.positions].tolist()) == {0, 3, 7}
    one = make("label-shift", request(4, domains=1, labels=np.full(4, 2)), ratio=1)
    assert len(one.positions) == 100


# long-tail --------------------------------------------------------------------------------------


def test_the_tail_is_exponential():
    labels = np.repeat(np.arange(10), 5000)
    kept = order_labels.long_tail(np.arange(50_000), labels, 100.0, np.arange(10))
    counts = np.bincount(labels[kept]).tolist()
    # The published sizes of the long-tailed CIFAR-10 with factor 100.
    assert counts == [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50]
    assert kept[:5000].tolist() == list(range(5000))


@pytest.mark.parametrize("tail", ["constant", "dynamic"])
def test_each_domain_has_the_same_tail_over_the_same_or_other_classes(tail):
    asked = request(1000, classes=10, domains=4)
    plan = make("long-tail", asked, imbalance=10, tail=tail)
    table = np.array(
        [
            np.bincount(asked.labels[plan.positions[plan.domain_ids == d]], minlength=10)
            for d in range(4)
        ]
    )
    wanted = [100, 77, 59, 46, 35, 27, 21, 16, 12, 10]
    table[-1, np.argmin(table[-1])] += 403 * 4 - len(plan.positions)  # a last batch of one
    assert [sorted(row, reverse=True) for row in table.tolist()] == [wanted] * 4
    assert (table == wanted).all() == (tail == "constant")
    assert max(seen(plan).values()) == 1


# unitta -----------------------------------------------------------------------------------------


def frequencies_of(states: np.ndarray, size: int) -> np.ndarray:
    counts = np.zeros((size, size))
    np.add.at(counts, (states[:-1], states[1:]), 1)
    return counts / counts.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("class_stay", [0, 0.95])
@pytest.mark.parametrize("domain_stay", [0, 0.85])
@pytest.mark.parametrize(("class_imbalance", "domain_imbalance"), [(1, 1), (10, 5)])
def test_transitions_match_the_chain(class_stay, domain_stay, class_imbalance, domain_imbalance):
    domains = Chain(
        weights=order_markov.tail_weights(5, domain_imbalance),
        keep=order_markov.keep_of(domain_stay, 5),
    )
    classes = Chain(
        weights=order_markov.tail_weights(4, class_imbalance),
        keep=order_markov.keep_of(class_stay, 4),
    )
    stock = np.full((5, 4), 40_000)
    ids, labels = order_markov.walk(
        stock, domains, classes, stop=True, generator=order.rng(0, "walk")
    )
    assert len(ids) > 100_000
    for states, chain in ((ids, domains), (labels, classes)):
        size = len(chain.weights)
        found = frequencies_of(states, size)
        assert found == pytest.approx(chain.transitions, abs=0.015)
        # Correlated draws are worth fewer: the bound is wide where runs are long.
        shares = np.bincount(states, minlength=size) / len(states)
        assert shares == pytest.approx(chain.weights, abs=0.02)
    stays = np.trace(domains.transitions) / 5, np.trace(classes.transitions) / 4
    assert stays == pytest.approx((domain_stay or 1 / 5, class_stay or 1 / 4))
    # The two chains move independently.
    both = frequencies_of(ids * 4 + labels, 20)
    assert both == pytest.approx(np.kron(domains.transitions, classes.transitions), abs=0.04)


def test_a_state_without_images_is_passed_over_as_redrawing_would():
    domains = Chain(weights=order_markov.tail_weights(3, 5), keep=0.6)
    classes = Chain(weights=order_markov.tail_weights(4, 3), keep=0.8)
    is_open = np.ones((3, 4), dtype=bool)
    states = order_markov._OpenStates(is_open, domains, classes)
    for closed in ((0, 1), (0, 3), (2, 1)):
        states.close(*closed)
    row = np.outer(domains.transitions[0], classes.transitions[1]) * states.is_open
    generator = np.random.default_rng(0)
    drawn = [states.draw(0, 1, *generator.random(3)) for _ in range(20_000)]
    found = np.zeros((3, 4))
    np.add.at(found, tuple(np.array(drawn).T), 1)
    assert found / 20_000 == pytest.approx(row / row.sum(), abs=0.012)


def test_a_chain_that_never_leaves_is_made_to():
    stuck = Chain(weights=np.ones(1), keep=1.0)
    moves = Chain(weights=np.full(2, 0.5), keep=1.0)
    ids, labels = order_markov.walk(
        np.array([[3, 2]]), stuck, moves, stop=False, generator=order.rng(0, "w")
    )
    assert ids.tolist() == [0] * 5
    assert np.bincount(labels).tolist() == [3, 2]


def test_shares_of_domains_and_classes_are_exact_and_capped():
    asked = request(1000, classes=10, domains=5)
    plan = make("unitta", asked, class_imbalance=10, domain_imbalance=5, cap=80)
    labels = asked.labels[plan.positions]
    table = np.zeros((5, 10), dtype=int)
    np.add.at(table, (plan.domain_ids, labels), 1)
    assert table[0, 0] == 80
    assert table[0, -1] == 8
    assert table[-1, 0] == 16
    assert (np.diff(table, axis=0) <= 0).all()
    assert (np.diff(table, axis=1) <= 0).all()
    assert max(seen(plan).values()) == 1


def test_domains_one_after_another_and_a_walk_that_stops():
    asked = request(600, classes=3, domains=4)
    turns = make("unitta", asked, domain_stay=1)
    assert order.runs(turns.domain_ids).tolist() == [600] * 4
    stopped = make("unitta", asked, empty="stop")
    assert 0 < len(stopped.positions) < 2400
    whole = make("unitta", asked)
    assert np.array_equal(whole.positions[: len(stopped.positions)], stopped.positions)


# What a stream says, and its picture ------------------------------------------------------------


def test_describe_says_how_a_step_is_made_up():
    asked = {"batch_size": 6, "setting_options": {"gamma": "0.5"}}
    said = tiny("practical", **asked).describe()
    assert said["options"] == {"gamma": 0.5}
    assert said["visits"] == 2
    assert said["domains_per_step"] == 1.0  # 24 is a multiple of 6
    assert sum(said["labels"]) == 48
    sorted_ = tiny("correlated", batch_size=8).describe()
    assert sorted_["classes_per_step"] == 1.0  # 8 images a class
    assert tiny("mixed").describe()["domains_per_step"] > 1.5


@pytest.mark.parametrize("setting", ["label-shift", "mixed", "unitta"])
def test_a_picture_is_saved_and_nothing_half_written(setting, tmp_path):
    path = picture.save_png(tiny(setting), tmp_path / "plan.png")
    assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert [p.name for p in tmp_path.iterdir()] == ["plan.png"]
    with pytest.raises(StreamError, match=r"is no \.png"):
        picture.save_png(tiny(setting), tmp_path / "plan.pdf")
    with pytest.raises(StreamError, match="is no folder"):
        picture.save_png(tiny(setting), tmp_path / "absent" / "plan.png")
    assert [p.name for p in tmp_path.iterdir()] == ["plan.png"]


def test_shares_over_time_sum_to_one():
    plan = make("practical", request(100, classes=5))
    for columns in (7, 38, 800):
        table = picture.shares(plan, plan.domain_ids, 3, columns)
        assert table.shape == (3, min(columns, len(plan)))
        assert table.sum(axis=0) == pytest.approx(np.ones(table.shape[1]))
    assert picture.shares(plan, plan.domain_ids, 3)[0, 0] == 1
