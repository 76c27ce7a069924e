"""Delayed labels: the switch turns on evidence, probabilities are calibrated, the past stays."""

from __future__ import annotations

import random
import threading

import pytest
import torch
from torch import Tensor, nn

import tta
from tta.desk import Desk
from tta.errors import AdapterError
from tta.evidence import FEWEST, Bet, Switch, Temperature, fitted
from tta.serving import Server


def logits(*classes: int) -> Tensor:
    """Sure of one class of three, an image each."""
    return torch.eye(3)[list(classes)] * 4


def desk(shadow: bool = True, history: int = 100, window: int = 100, alpha: float = 0.05) -> Desk:
    return Desk(shadow, history, window, alpha)


def test_the_switch_turns_on_evidence_and_back():
    at = desk()
    first = at.give(logits(1), logits(0), 0)
    assert (first.served, first.logits.argmax().item()) == ("source", 0)
    turned = None
    for n in range(20):
        answer = at.give(logits(1), logits(0), n)
        assert at.feedback(answer.index, 1) == 1
        if at.side == "adapted":
            turned = n
            break
    # (1 + stake) ** n, averaged over the stakes, first exceeds 20 at n = 7.
    assert turned is not None
    assert turned + 1 == next(
        n for n in range(99) if sum((1 + s / 10) ** n for s in range(1, 10)) / 9 >= 20
    )
    assert at.give(logits(1), logits(0), 9).served == "adapted"
    assert first.served == "source"  # what was given stays
    for n in range(50):  # a good time delays nothing
        at.feedback(at.give(logits(1), logits(0), n).index, 1)
    back = 0
    while at.side == "adapted":
        at.feedback(at.give(logits(2), logits(0), 0).index, 0)
        back += 1
    assert back == turned + 1


def test_images_that_tell_nothing_move_nothing():
    at = desk()
    for pair, y in (((1, 1), 1), ((1, 1), 0), ((1, 2), 0)):
        at.feedback(at.give(logits(pair[0]), logits(pair[1]), 0).index, y)
    stats = at.stats()
    assert stats["evidence"] == 1
    assert (stats["labels"], stats["adapted_right"], stats["source_right"]) == (3, 1, 1)


def test_an_adapted_model_that_is_no_better_is_rarely_chosen():
    turned = 0
    for seed in range(300):
        draws, switch = random.Random(seed), Switch("source", alpha=0.05)
        for _ in range(300):
            right = draws.random() < 0.5
            switch.see(right, not right)
            if switch.side == "adapted":
                turned += 1
                break
    assert 0 < turned <= 0.05 * 300


def test_a_better_one_is_found_after_a_bad_start():
    switch = Switch("source", alpha=0.05)
    for _ in range(40):
        switch.see(False, True)
    wins = 0
    while switch.side == "source":
        switch.see(True, False)
        wins += 1
    assert wins < 120
    assert Bet().wealth == 1


def test_labels_come_late_in_any_order_and_once():
    at = desk(history=4)
    first = at.give(logits(0, 1, 2), logits(0, 0, 0), 0)
    second = at.give(logits(1, 1), logits(0, 0), 0)
    assert (first.index, second.index) == (0, 3)
    assert at.feedback([4, 3], [1, 1]) == 2
    assert at.feedback([3, 4, 4], [0, 0, 0]) == 0
    # Five images, four places: the first batch is forgotten as a whole.
    assert at.feedback(torch.tensor([0, 1, 2]), torch.tensor([0, 1, 2])) == 0
    assert at.feedback([], []) == 0
    wide = at.give(logits(0, 1, 2, 0, 1, 2), None, 0)
    assert at.feedback(list(range(wide.index, wide.index + 6)), [0, 1, 2, 0, 1, 2]) == 4
    assert at.stats()["labels"] == 6


def test_memory_is_bounded():
    at = desk(history=50, window=60)
    for _ in range(300):
        at.feedback(at.give(logits(0, 1), logits(0, 1), 0).index, 0)
    held = sum(len(part[1]) for part in at._answers._parts)
    assert held <= 50
    assert all(len(t._seen) == 60 for t in at._temperatures.values())


@pytest.mark.parametrize(
    ("index", "y", "words"),
    [
        (9, 0, "no image has index 9: 2 were seen"),
        (-1, 0, "no image has index -1"),
        ([0, 1], [0], "2 indices and 1 labels"),
        (0, 3, "y=3 is no class"),
        (0, -1, "y=-1 is no class"),
        (0, 1.0, "whole numbers"),
    ],
)
def test_wrong_feedback_changes_nothing(index, y, words):
    at = desk()
    at.give(logits(0, 1), logits(0, 1), 0)
    before = at.stats()
    with pytest.raises(AdapterError, match=words):
        at.feedback(index, y)
    if isinstance(index, int):  # a right one before it does not count either
        with pytest.raises(AdapterError, match=words):
            at.feedback([1, index], [1, y])
    assert at.stats() == before
    assert at.feedback([0, 1], [0, 1]) == 2


def test_a_dense_answer_takes_no_label():
    at = desk(shadow=False)
    at.give(torch.rand(2, 3, 4, 4), None, 0)
    with pytest.raises(AdapterError, match="no class of an answer"):
        at.feedback(0, 1)


def test_the_temperature_is_that_of_the_highest_likelihood():
    generator = torch.Generator().manual_seed(0)
    true = torch.randn(400, 5, generator=generator, dtype=torch.float64)
    labels = torch.multinomial((2 * true).softmax(1), 1, generator=generator)[:, 0]
    sure = 6 * true  # three times too sure
    found = fitted(sure, labels)
    tried = torch.logspace(-1, 1, 2001, dtype=torch.float64)
    nll = torch.stack([nn.functional.cross_entropy(sure / t, labels) for t in tried])
    assert found == pytest.approx(float(tried[nll.argmin()]), rel=2e-3)
    assert 2 < found < 4


def test_probabilities_are_calibrated_from_then_on():
    at = desk(shadow=False, history=200)
    first = at.give(logits(0), None, 0)
    for i in range(FEWEST):
        at.feedback(at.give(logits(i % 3), None, 0).index, i % 3 if i % 4 else (i + 1) % 3)
    later = at.give(logits(0), None, 0)
    assert first.temperature == 1
    assert later.temperature > 1
    assert torch.equal(first.probabilities, logits(0).softmax(1))
    assert torch.equal(later.probabilities, (logits(0) / later.temperature).softmax(1))
    assert torch.equal(later.logits, first.logits)


def test_answers_that_are_not_finite_are_wrong_and_calibrate_nothing():
    at, broken = desk(), torch.full((1, 3), float("nan"))
    at.feedback(at.give(broken, logits(0), 0).index, 0)
    assert at.stats()["adapted_right"] == 0
    assert at.stats()["source_right"] == 1
    temperature = Temperature(10)
    temperature.see(broken[0], 0)
    assert not temperature._seen


def test_an_answer_kept_is_not_the_callers_tensor():
    at = desk()
    answer = at.give(logits(1), logits(0), 0)
    answer.logits.zero_()
    answer.adapted.zero_()
    at.feedback(answer.index, 1)
    assert at.stats()["adapted_right"] == 1


class ByBrightness(nn.Module):
    """Class 0 for dark images, 1 for bright ones; the scale of a BatchNorm decides."""

    def __init__(self) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        z = self.bn(x).mean((1, 2, 3))
        return torch.stack([-z, z], 1)


def test_shadow_mode_serves_the_source_until_labels_say_otherwise():
    # Every image is brighter than the source model's statistics: it always answers 1, while batch
    # statistics tell dark from bright.
    source = ByBrightness().eval()
    server = Server(tta.wrap(source, "norm"), source=source)
    generator = torch.Generator().manual_seed(0)
    served = []
    for _ in range(12):
        y = torch.tensor([0, 1, 0, 1])
        x = 0.6 + 0.3 * y.view(-1, 1, 1, 1) + 0.05 * torch.rand(4, 3, 4, 4, generator=generator)
        answer = server.predict(x)
        assert answer.source is not None
        assert torch.equal(answer.source, source(x).detach())
        chosen = answer.adapted if answer.served == "adapted" else answer.source
        assert torch.equal(answer.logits, chosen)
        served.append(answer.served)
        server.feedback(range(answer.index, answer.index + 4), y)
    assert served[0] == "source"
    assert served[-1] == "adapted"
    assert served == sorted(served, reverse=True)
    server.switch("source")
    assert server.predict(x).served == "source"


def test_feedback_from_another_thread():
    at, seen = desk(history=10_000), []

    def label() -> None:
        while len(seen) < 300:
            seen.append(at.feedback(len(seen), 0) if at._answers.given > len(seen) else None)
            if seen[-1] is None:
                seen.pop()

    thread = threading.Thread(target=label)
    thread.start()
    for _ in range(300):
        at.give(logits(0), logits(1), 0)
    thread.join(60)
    assert seen == [1] * 300
    assert at.stats()["labels"] == 300
