"""Memory banks against literal re-derivations and hand-computed cases; the sliding window."""

from __future__ import annotations

import copy
import math
import random
from collections import Counter
from dataclasses import dataclass

import pytest
import torch
from torch import nn

import tta
from tta import checks
from tta.adapters.tent import Tent
from tta.memory import ClassBalanced, Fifo, Reservoir, Timeliness, judge


def numbered(first: int, stop: int) -> torch.Tensor:
    """Images (B, 1) that show their own number."""
    return torch.arange(first, stop, dtype=torch.float64)[:, None]


def held(bank) -> list[int]:
    return sorted(int(value) for value in bank.images()[:, 0])


# First in, first out ------------------------------------------------------------------------------


def test_fifo_keeps_the_last_in_one_buffer() -> None:
    state = Fifo.empty()
    bank = Fifo(state, 4)
    assert bank.add(numbered(0, 3)) == [0, 1, 2]
    buffer = state["images"].data_ptr()
    assert bank.add(numbered(3, 6)) == [3, 0, 1]
    assert bank.images()[:, 0].tolist() == [4, 5, 2, 3]
    assert (len(bank), bank.next) == (4, 2)
    assert state["images"].data_ptr() == buffer


def test_a_bank_copied_with_its_state_goes_on_alone() -> None:
    state = Fifo.empty()
    Fifo(state, 3).add(numbered(0, 2))
    other = copy.deepcopy(state)
    Fifo(other, 3).add(numbered(7, 8))
    assert held(Fifo(state, 3)) == [0, 1]
    assert held(Fifo(other, 3)) == [0, 1, 7]


def test_images_of_another_size_start_anew() -> None:
    state = Fifo.empty()
    Fifo(state, 3).add(torch.zeros(2, 3, 8, 8))
    bank = Fifo(state, 3)
    bank.add(torch.ones(1, 3, 4, 4))
    assert bank.images().shape == (1, 3, 4, 4)


# Reservoir ----------------------------------------------------------------------------------------


def test_reservoir_replaces_by_the_draw() -> None:
    bank = Reservoir(Reservoir.empty(), 2)
    # Third image: slot int(.9 * 3) = 2, not kept. Fourth: int(.3 * 4) = 1. Fifth: int(.1 * 5) = 0.
    bank.add(numbered(0, 5), torch.tensor([0.0, 0.0, 0.9, 0.3, 0.1]))
    assert bank.images()[:, 0].tolist() == [4, 3]


def test_reservoir_is_uniform_over_time() -> None:
    generator = torch.Generator().manual_seed(0)
    kept: Counter[int] = Counter()
    for _ in range(600):
        bank = Reservoir(Reservoir.empty(), 5)
        for first in (0, 8):
            bank.add(numbered(first, first + 8), torch.rand(8, generator=generator))
        kept.update(held(bank))
    share = torch.tensor([kept[i] / 600 for i in range(16)])
    assert (share - 5 / 16).abs().max() < 0.08  # four standard errors of 0.019


# NOTE's balanced reservoir ------------------------------------------------------------------------


def test_balanced_bank_branch_by_branch() -> None:
    state = ClassBalanced.empty()
    bank = ClassBalanced(state, 4)
    unused = [0.99, 0.99, 0.99]
    # Room: kept, whatever the class and the draws.
    bank.add(numbered(0, 4), [0, 0, 1, 1], torch.tensor([unused] * 4))
    # Class 2 is none of the largest (0 and 1): the second of them gives up its first item.
    bank.add(numbered(4, 5), [2], torch.tensor([[0.5, 0.4, 0.99]]))
    assert held(bank) == [0, 1, 3, 4]
    # Class 0 is the largest and has come 3 times: kept with probability 2/3, for its second item.
    bank.add(numbered(5, 6), [0], torch.tensor([[0.99, 0.6, 0.66]]))
    assert held(bank) == [0, 3, 4, 5]
    # It has come 4 times now: 0.51 is above 2/4, dropped.
    bank.add(numbered(6, 7), [0], torch.tensor([[0.0, 0.0, 0.51]]))
    assert held(bank) == [0, 3, 4, 5]
    assert state["seen"] == {0: 4, 1: 2, 2: 1}
    assert {k: len(v) for k, v in state["members"].items()} == {0: 2, 1: 1, 2: 1}


def test_balanced_bank_evens_out_a_sorted_stream() -> None:
    bank = ClassBalanced(ClassBalanced.empty(), 12)
    labels = [label for label in range(4) for _ in range(50)]
    draws = torch.rand(200, 3, generator=torch.Generator().manual_seed(0))
    for first in range(0, 200, 25):
        rows = slice(first, first + 25)
        bank.add(numbered(first, first + 25), labels[rows], draws[rows])
    assert Counter(labels[i] for i in held(bank)) == {0: 3, 1: 3, 2: 3, 3: 3}


# RoTTA's memory -----------------------------------------------------------------------------------


@dataclass
class Item:
    number: int
    uncertainty: float
    age: int = 0


class Literal:
    """The memory as it is written down, one item after the other, with its branches counted."""

    def __init__(self, capacity: int, classes: int, lambda_t: float, lambda_u: float) -> None:
        self.capacity, self.classes = capacity, classes
        self.lambda_t, self.lambda_u = lambda_t, lambda_u
        self.items: list[list[Item]] = [[] for _ in range(classes)]
        self.branches: Counter[str] = Counter()

    def score(self, item: Item) -> float:
        timeliness = self.lambda_t / (1 + math.exp(-item.age / self.capacity))
        return timeliness + self.lambda_u * item.uncertainty / math.log(self.classes)

    def add(self, number: int, label: int, uncertainty: float) -> None:
        new = Item(number, uncertainty)
        sizes = [len(items) for items in self.items]
        if sizes[label] < self.capacity / self.classes:
            if sum(sizes) < self.capacity:
                self.branches["room"] += 1
                self.items[label].append(new)
            else:
                largest = [k for k in range(self.classes) if sizes[k] == max(sizes)]
                self.replace(largest, new, label, "largest")
        else:
            self.replace([label], new, label, "own")
        for items in self.items:
            for item in items:
                item.age += 1

    def replace(self, classes: list[int], new: Item, label: int, branch: str) -> None:
        worst = None
        for k in classes:
            for item in self.items[k]:
                if worst is None or self.score(item) >= self.score(worst[1]):
                    worst = (k, item)
        assert worst is not None
        taken = self.score(worst[1]) > self.score(new)
        self.branches[f"{branch}, {'taken' if taken else 'dropped'}"] += 1
        if taken:
            self.items[worst[0]].remove(worst[1])
            self.items[label].append(new)


@pytest.mark.parametrize(
    ("capacity", "classes", "lambda_t", "lambda_u", "ties"),
    [(8, 4, 1, 1, False), (8, 3, 1, 1, False), (6, 10, 1, 1, False), (8, 4, 0, 1, True)],
)
def test_timeliness_bank_equals_the_written_rule(
    capacity: int, classes: int, lambda_t: float, lambda_u: float, ties: bool
) -> None:
    draw = random.Random(0)
    literal = Literal(capacity, classes, lambda_t, lambda_u)
    state = Timeliness.empty()
    number = 0
    for _ in range(40):
        size = draw.randint(1, 9)
        favourite = draw.randrange(classes)
        labels = [
            favourite if draw.random() < 0.6 else draw.randrange(classes) for _ in range(size)
        ]
        grid = 3 if ties else 1000
        uncertainties = [draw.randrange(grid) / grid * math.log(classes) for _ in range(size)]
        bank = Timeliness(state, capacity, classes, lambda_t, lambda_u)
        bank.add(numbered(number, number + size), labels, uncertainties)
        for label, uncertainty in zip(labels, uncertainties, strict=True):
            literal.add(number, label, uncertainty)
            number += 1
        images, ages = bank.batch()
        expected = [item for items in literal.items for item in items]
        assert images[:, 0].tolist() == [item.number for item in expected]
        assert ages == [item.age for item in expected]
        assert len(bank) == len(expected) <= capacity
    ways = {"room", "own, taken", "own, dropped"}
    if capacity % classes:  # else a full memory has every class at its quota
        ways |= {"largest, taken", "largest, dropped"}
    assert set(literal.branches) == ways


def test_timeliness_scores_by_hand() -> None:
    state = Timeliness.empty()
    bank = Timeliness(state, 4, 2)
    bank.add(numbered(0, 2), [0, 0], [0.1, 0.3])
    # Ages 2 and 1: scores .6224593 + .1442695 and .5621765 + .4328085, the newcomer .5 + .0721348.
    scores = bank._scores(torch.tensor([2, 1]).numpy(), torch.tensor([0.1, 0.3]).double().numpy())
    assert scores.tolist() == pytest.approx([0.7667288, 0.9949850], abs=1e-7)
    bank.add(numbered(2, 3), [0], [0.05])
    images, ages = bank.batch()
    assert (images[:, 0].tolist(), ages) == ([0, 2], [3, 1])
    # Less certain than both: dropped, and all are a step older.
    bank.add(numbered(3, 4), [0], [0.69])
    images, ages = bank.batch()
    assert (images[:, 0].tolist(), ages) == ([0, 2], [4, 2])


def test_judge() -> None:
    logits = torch.tensor([[0.7, 0.2, 0.1], [0.05, 0.9, 0.05]], dtype=torch.float64).log()
    labels, uncertainties = judge(logits)
    assert labels == [0, 1]
    assert uncertainties == pytest.approx([0.8018156, 0.3943946], abs=1e-5)
    with pytest.raises(tta.AdapterError, match=r"one answer an image"):
        judge(torch.zeros(2, 3, 4, 4))


# The sliding window -------------------------------------------------------------------------------


def network(norm: str) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        middle = nn.BatchNorm2d(6) if norm == "bn" else nn.GroupNorm(2, 6)
        net = nn.Sequential(nn.Conv2d(3, 6, 3), middle, nn.ReLU(), nn.Flatten(), nn.Linear(96, 4))
        middle.weight.data.uniform_(0.5, 1.5)
    return net.double()


def stream(images: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(images, 3, 6, 6, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("norm", ["bn", "gn"])
def test_window_is_one_update_for_each_round_of_images(norm: str) -> None:
    """Against the rule by hand: fill the ring, adapt to all of it, overwrite the oldest slot."""
    x = stream(10)
    adapter = tta.wrap(network(norm), "tent", lr=0.1, window=4)
    batched = tta.wrap(network(norm), "tent", lr=0.1)
    ring = x[:0]
    for i in range(10):
        logits = adapter(x[i : i + 1])
        slot = i % 4
        ring = torch.cat([ring, x[i : i + 1]]) if i < 4 else ring.clone()
        ring[slot] = x[i]
        if slot == 3:
            expected = batched(ring)[slot]
            assert adapter.report["backwards"] == 4
        else:
            expected = batched.predict(ring if norm == "bn" else x[i : i + 1])
            expected = expected[slot if norm == "bn" else 0]
            assert adapter.report["backwards"] == 0
            assert adapter.report["forwards"] == (len(ring) if norm == "bn" else 1)
        torch.testing.assert_close(logits[0], expected, rtol=0, atol=1e-12)


def test_window_splits_a_batch_where_the_ring_is_full_and_lets_large_ones_pass() -> None:
    x = stream(12)
    one, three = (tta.wrap(network("gn"), "tent", lr=0.1, window=4) for _ in range(2))
    singles = torch.cat([one(x[i : i + 1]) for i in range(6)])
    pairs = torch.cat([three(x[:3]), three(x[3:6])])
    torch.testing.assert_close(pairs, singles, rtol=0, atol=1e-12)
    plain = tta.wrap(network("gn"), "tent", lr=0.1)
    fresh = tta.wrap(network("gn"), "tent", lr=0.1, window=4)
    assert torch.equal(fresh(x), plain(x))
    assert len(Fifo(fresh.ring, 4)) == 0


class Windowed(Tent):
    """Tent that the conformance suite builds with a window."""

    name = "windowed"

    def __init__(self, model: nn.Module, config: tta.AdapterConfig | None = None) -> None:
        super().__init__(model, config, window=3)


def test_a_windowed_adapter_passes_the_conformance_suite() -> None:
    batches = list(stream(20).split(5))
    # Batches of five pass by a window of three, so the suite also gets batches of two.
    for size in (5, 2):
        for check in checks.yield_checks(Windowed):
            if check.name == "resumes_in_a_new_process":
                continue  # the other process cannot import a test module
            if size == 2 and check.name in ("bad_rows_do_not_poison", "ragged_last_batch"):
                continue  # these ask for more images than that
            check(network("bn"), [x[:size] for x in batches])


def test_a_window_must_fit_the_rest() -> None:
    for options in ({"window": 0}, {"window": 4, "episodic": True}):
        with pytest.raises(tta.AdapterError, match="window"):
            tta.wrap(network("bn"), "tent", **options)
    adapter = tta.wrap(network("bn"), "tent", window=4)
    with pytest.raises(tta.AdapterError, match="window"):
        adapter.load_state_dict(tta.wrap(network("bn"), "tent", window=5).state_dict())
