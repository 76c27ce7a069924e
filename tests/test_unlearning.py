"""Unlearners and the figures of forgetting, by hand and on a toy stream."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from continual import unlearning
from continual.descent import UnlearnConfig, descend, in_batches
from continual.factory import create_plugins
from continual.forgetting import (
    GAPS,
    RelapseWatch,
    accuracy_pct,
    average_gap,
    forget_report,
    membership_inference,
    relapse,
    retrained,
    weight_distance,
)
from continual.learner import Learner, LearnerConfig
from continual.life import Life
from continual.worst_case import capped_simplex, worst_case_forget_set
from streams.learning_types import Experience, ForgetRequest, LearningStream, Samples, Task
from tta.errors import AdapterError

UNLEARNERS = ("fine-tune", "random-label", "salun", "ssd", "l1-sparse")


@dataclass
class Arrays:
    """Labelled images that are in memory."""

    x: torch.Tensor
    y: torch.Tensor

    def __len__(self):
        return len(self.y)

    def batch(self, at):
        return self.x[at], self.y[at]


def arrays(count, seed=0, classes=3):
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(count) % classes
    return Arrays(torch.randn(count, 1, 4, 4, generator=generator), y)


def net(seed=0, classes=3):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, classes)
    )


def copies(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def moved(model, before):
    return {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}


CONFIG = UnlearnConfig(lr=0.05, epochs=3, batch_size=4)


# Descents ---------------------------------------------------------------------------------------


def test_batches_never_end_with_a_single_row():
    assert [len(b) for b in in_batches(np.arange(9), 4)] == [4, 5]
    assert [len(b) for b in in_batches(np.arange(10), 4)] == [4, 4, 2]
    assert [len(b) for b in in_batches(np.arange(1), 4)] == [1]
    assert in_batches(np.arange(0), 4) == []


def test_fine_tune_is_sgd_and_leaves_no_trace():
    model, kept = net(), arrays(12)
    model.eval()
    model[0].bias.requires_grad_(False)
    bias = model[0].bias.clone()
    state = torch.get_rng_state()
    images = unlearning.fine_tune(model, kept, replace(CONFIG, epochs=2), "a")
    assert images == 24
    assert torch.equal(model[0].bias, bias)
    assert not model.training
    assert all(p.grad is None for p in model.parameters())
    assert torch.equal(torch.get_rng_state(), state)
    # One full batch: weights minus rate times (gradient + decay).
    linear = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    start = copies(linear)
    loss = F.cross_entropy(linear(kept.x), kept.y)
    (gradient,) = torch.autograd.grad(loss, [linear[1].weight])
    config = UnlearnConfig(lr=0.1, momentum=0.0, weight_decay=0.01, epochs=1, batch_size=50)
    unlearning.fine_tune(linear, kept, config)
    expected = start["1.weight"] - 0.1 * (gradient + 0.01 * start["1.weight"])
    assert torch.allclose(linear[1].weight, expected, atol=1e-6)
    with pytest.raises(AdapterError, match="nothing retained"):
        unlearning.fine_tune(model, arrays(0), CONFIG)


def test_the_order_depends_on_seed_and_purpose_alone():
    ends = {}
    for seed, purpose in ((0, "a"), (0, "a"), (0, "b"), (1, "a")):
        model = net()
        torch.randn(seed + 7)
        unlearning.fine_tune(model, arrays(12), replace(CONFIG, seed=seed), purpose)
        ends.setdefault((seed, purpose), []).append(model[4].weight.detach())
    first = ends[0, "a"]
    assert torch.equal(*first)
    assert not torch.equal(first[0], ends[0, "b"][0])
    assert not torch.equal(first[0], ends[1, "a"][0])


def test_a_single_image_and_frozen_statistics():
    model = net()
    before = copies(model)
    # BatchNorm1d of one row would raise; a lone image uses the running statistics.
    lone = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(16), nn.Linear(16, 3))
    unlearning.random_label(lone, arrays(1), arrays(0), CONFIG, classes=3)
    unlearning.fine_tune(model, arrays(8), replace(CONFIG, freeze_norm=True))
    assert torch.equal(model[1].running_mean, before["1.running_mean"])
    assert "1.weight" in moved(model, before)


def test_l1_alpha_and_the_penalty():
    assert [unlearning.l1_alpha(2.0, e, 4) for e in range(4)] == [2.0, 1.5, 1.0, 0.5]
    assert [unlearning.l1_alpha(2.0, e, 4, 2) for e in range(4)] == [2.0, 1.0, 0.0, 0.0]
    assert unlearning.l1_alpha(2.0, 0, 4, 4) == 0.0
    # One step from the same start: the penalty moves each weight by rate * alpha towards 0.
    config = UnlearnConfig(lr=0.1, momentum=0.0, weight_decay=0.0, epochs=1, batch_size=50)
    plain, sparse, spared = net(), net(), net()
    start = copies(plain)
    unlearning.fine_tune(plain, arrays(8), config)
    unlearning.l1_sparse(sparse, arrays(8), config, alpha=0.02)
    unlearning.l1_sparse(spared, arrays(8), config, alpha=0.02, norms=False)
    for name, p in plain.named_parameters():
        expected = p - 0.1 * 0.02 * start[name].sign()
        assert torch.allclose(sparse.get_parameter(name), expected, atol=1e-6)
        other = p if name.startswith("1.") else expected
        assert torch.allclose(spared.get_parameter(name), other, atol=1e-6)


@pytest.mark.parametrize("mixed", [False, True])
def test_random_labels_are_drawn_anew_each_epoch(mixed, monkeypatch):
    gone, kept = arrays(6, seed=1), arrays(6, seed=2)
    seen = []

    def spy(model, config, batches, purpose, *, mask=None, after_backward=None):
        seen.extend(list(batches(epoch)) for epoch in range(config.epochs))
        return 0

    monkeypatch.setattr(unlearning, "descend", spy)
    config = replace(CONFIG, epochs=40, batch_size=3)
    unlearning.random_label(net(), gone, kept, config, classes=3, mixed=mixed)
    drawn = np.zeros(3)
    orders = []
    for epoch in seen:
        x, y = (torch.cat(both) for both in zip(*epoch, strict=True))
        is_gone = (x[:, None] == gone.x[None]).flatten(2).all(2)
        is_kept = (x[:, None] == kept.x[None]).flatten(2).all(2)
        rows = is_gone.any(1)
        assert int(rows.sum()) == 6
        assert torch.equal(y[~rows], kept.y[is_kept[~rows].int().argmax(1)])
        drawn += np.bincount(y[rows].numpy(), minlength=3)
        orders.append(rows.tolist())
    # Uniform over all classes, the true one among them.
    assert drawn / drawn.sum() == pytest.approx([1 / 3] * 3, abs=0.08)
    forgotten_first = [True] * 6 + [False] * 6
    assert all(order == forgotten_first for order in orders) != mixed


# SalUn ------------------------------------------------------------------------------------------


def test_mask_is_the_largest_gradients_over_all_weights_together():
    model, gone = net(), arrays(7)
    model.eval()
    loss = F.cross_entropy(model(gone.x), gone.y, reduction="sum")
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    sizes = torch.cat([g.flatten() for g in gradients]).abs()
    before = copies(model)
    mask = unlearning.saliency_mask(model, gone, 0.3)
    chosen = torch.cat([m.flatten() for m in mask.values()])
    assert int(chosen.sum()) == int(0.3 * len(sizes))
    assert sizes[chosen].min() >= sizes[~chosen].max()
    assert list(mask) == [name for name, _ in model.named_parameters()]
    after = copies(model)
    assert all(torch.equal(before[n], after[n]) for n in before)
    # The batch size changes nothing but rounding.
    small = unlearning.saliency_mask(model, gone, 0.3, batch_size=3)
    assert all(torch.equal(mask[n], small[n]) for n in mask)
    assert not any(m.any() for m in unlearning.saliency_mask(model, gone, 0.0).values())
    assert all(m.all() for m in unlearning.saliency_mask(model, gone, 1.0).values())


def test_salun_holds_masked_weights_bit_for_bit():
    model, gone, kept = net(), arrays(6, seed=1), arrays(9, seed=2)
    before = copies(model)
    mask = unlearning.saliency_mask(model, gone, 0.4, 4)
    config = UnlearnConfig(lr=0.1, momentum=0.9, weight_decay=0.1, epochs=3, batch_size=4)
    images = unlearning.salun(model, gone, kept, config, classes=3, fraction=0.4)
    assert images == 6 + 3 * (6 + 9)
    for name, p in model.named_parameters():
        assert torch.equal(p[~mask[name]], before[name][~mask[name]])
        assert not mask[name].any() or not torch.equal(p[mask[name]], before[name][mask[name]])
    # A masked gradient alone would not have held them: weight decay moves them.
    assert moved(model, before)


def test_momentum_of_masked_weights_is_zero():
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    mask = {"1.weight": torch.zeros(3, 16, dtype=torch.bool), "1.bias": torch.ones(3).bool()}
    mask["1.weight"][:, 0] = True
    kept, buffers = arrays(8), []

    class Sgd(torch.optim.SGD):
        def zero_grad(self, set_to_none=True):
            buffers.append([s["momentum_buffer"].clone() for s in self.state.values()])
            super().zero_grad(set_to_none)

    original, torch.optim.SGD = torch.optim.SGD, Sgd
    try:
        descend(model, CONFIG, lambda epoch: iter([(kept.x, kept.y)]), "", mask=mask)
    finally:
        torch.optim.SGD = original
    weight, bias = buffers[-1]
    assert not weight[:, 1:].any()
    assert weight[:, 0].all()
    assert bias.all()


# SSD --------------------------------------------------------------------------------------------


def test_dampening_factors():
    full, gone = torch.tensor([1.0, 1, 1, 0, 0]), torch.tensor([0.5, 20, 5, 1, 0])
    assert unlearning.dampening(full, gone, 10, 1).tolist() == pytest.approx([1, 0.05, 1, 0, 1])
    # Never a growth, whatever lambda.
    assert unlearning.dampening(full, gone, 10, 50).tolist() == pytest.approx([1, 1, 1, 0, 1])


def test_importance_is_the_mean_of_squared_batch_gradients():
    model, data = net(), arrays(6)
    model.train()
    before = copies(model)
    made = unlearning.importance(model, data, 3)
    assert model.training
    assert all(torch.equal(before[n], v) for n, v in copies(model).items())
    model.eval()
    weight = model[4].weight
    halves = [
        torch.autograd.grad(F.cross_entropy(model(data.x[at]), data.y[at]), [weight])[0]
        for at in (slice(0, 3), slice(3, 6))
    ]
    expected = (halves[0] ** 2 + halves[1] ** 2) / 2
    assert torch.allclose(made["4.weight"], expected, atol=1e-7)
    (length,) = torch.autograd.grad(model(data.x).square().sum(1).mean(), [weight])
    free = unlearning.importance(model, data, 6, label_free=True)
    assert torch.allclose(free["4.weight"], length.abs(), atol=1e-6)


def test_ssd_dampens_in_place():
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 1, bias=False))
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([[2.0, 2, 2, 2]]))
    full = {"1.weight": torch.tensor([[1.0, 1, 1, 0]])}
    gone = {"1.weight": torch.tensor([[0.5, 20, 5, 1]])}
    assert unlearning.ssd(model, full, gone) == 0.5
    assert model[1].weight.tolist() == [pytest.approx([2, 0.1, 2, 0])]


# In a stream ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Blobs:
    """Grey images, each class a bright pixel of its own, in noise."""

    labels: np.ndarray
    seed: int
    digest: str = "blobs"

    def images(self, positions, domain):
        draw = np.random.default_rng(self.seed).integers(0, 110, (len(self.labels), 1, 3, 3))
        draw.reshape(len(self.labels), -1)[np.arange(len(self.labels)), self.labels] += 120
        return torch.from_numpy(draw[positions].astype(np.uint8))


def side(count, seed):
    labels = np.arange(count) % 6
    source = Blobs(labels, seed)
    return Samples(source=source, positions=np.arange(count), labels=labels, tasks=labels // 2)


def stream():
    train, test = side(120, 0), side(60, 1)
    tasks = tuple(
        Task(
            name=f"t{t}",
            train=train.take(np.flatnonzero(train.tasks == t)),
            test=test.take(np.flatnonzero(test.tasks == t)),
            classes=(2 * t, 2 * t + 1),
        )
        for t in range(3)
    )
    first = tasks[0].train
    gone = first.take(np.flatnonzero(first.labels == 0))
    items = [Experience(name=t.name, train=t.train, task=n) for n, t in enumerate(tasks)]
    items.insert(1, ForgetRequest(name="class-0", kind="class", samples=gone, label=0))
    return LearningStream(
        name="blobs",
        setting="test",
        tasks=tasks,
        items=tuple(items),
        num_classes=6,
        seed=0,
        image_shape=(1, 3, 3),
    )


class Quiet:
    """Follows a life's relapse and says nothing."""

    def __init__(self, life):
        self.life, self.relapses = life, RelapseWatch(life.stream)
        self.servers = []
        self.kept_pct = None

    def learned(self, *_):
        pass

    def forgot(self, request, server, seconds):
        self.servers.append(server)
        kept = self.life.stream.tasks[0].test
        kept = kept.take(np.flatnonzero(kept.labels == 1))
        self.kept_pct = accuracy_pct(self.life.learner.model, kept)

    def evaluated(self, evaluation):
        if evaluation.kind != "step":
            self.relapses.look(self.life.learner.model, evaluation.item)

    def settled(self, life):
        pass


def learner_of(names="", options=None):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(9, 24), nn.ReLU(), nn.Linear(24, 6))
    plugins = create_plugins(names, options) if names else []
    return Learner(model, 6, LearnerConfig(lr=0.2, batch_size=8, epochs=8), plugins)


LOCAL = {
    "fine-tune": {"lr": 0.2, "epochs": 12, "batch_size": 8},
    "random-label": {"lr": 0.1, "epochs": 12, "batch_size": 8},
    "salun": {"lr": 0.1, "epochs": 12, "batch_size": 8},
    # The class is half of what was seen: measured against the other half.
    "ssd": {"alpha": 1.0, "full": "retained"},
    "l1-sparse": {"lr": 0.2, "epochs": 12, "batch_size": 8, "alpha": 1e-3},
}


@pytest.mark.parametrize("name", UNLEARNERS)
def test_each_unlearner_serves_the_request(name):
    life = Life(stream(), learner_of(name, {name: LOCAL[name]}))
    watch = Quiet(life)
    life.run(watch)
    assert watch.servers == [name]
    (found,) = watch.relapses.report()
    assert (found["name"], found["item"]) == ("class-0", 1)
    assert found["before_pct"] > 80
    assert found["after_pct"] < found["before_pct"] - 40
    assert len(found["curve_pct"]) == 2
    assert watch.kept_pct > 80


def test_without_an_unlearner_nothing_is_forgotten():
    life = Life(stream(), learner_of())
    watch = Quiet(life)
    life.run(watch)
    (found,) = watch.relapses.report()
    assert watch.servers == [None]
    assert found["after_pct"] == found["before_pct"]


def test_online_importance_needs_no_earlier_sample():
    options = {"ssd": {"full": "online", "alpha": 0.1}}
    learner = learner_of("ssd", options)
    first, request = stream().items[:2]
    with pytest.raises(AdapterError, match="seen no training step"):
        learner.plugins[0].forget(learner, request, first.train)
    squares = []

    class Spy(type(learner.plugins[0])):
        name = "ssd"

        def after_backward(self, host):
            super().after_backward(host)
            squares.append(host.model[1].bias.grad.clone() ** 2)

    learner.plugins[0].__class__ = Spy
    learner.learn(first)
    state = learner.plugins[0].state_dict()
    assert state["weight"] == len(squares) == 40
    assert torch.allclose(state["squares"]["1.bias"], torch.stack(squares).sum(0), rtol=1e-4)
    before = copies(learner.model)
    assert learner.forget(request) == "ssd"
    assert moved(learner.model, before)
    with pytest.raises(AdapterError, match="cannot be compared"):
        create_plugins("ssd", {"ssd": {"full": "online", "label_free": True}})


# Figures ----------------------------------------------------------------------------------------


def test_membership_inference_by_threshold():
    members, others = torch.tensor([0.9, 0.8, 0.7, 0.2]), torch.tensor([0.1, 0.3, 0.4, 0.75])
    # From .7 on: three members right and three others right; nothing does better.
    asked = torch.tensor([0.7, 0.69, 0.9, 0.1, 0.72])
    assert membership_inference(members, others, asked) == pytest.approx(60.0)
    with pytest.raises(AdapterError, match="needs members"):
        membership_inference(members, others[:0], asked)


def test_membership_inference_by_support_vectors():
    draw = torch.Generator().manual_seed(0)
    members = 0.9 + 0.1 * torch.rand(60, generator=draw)
    others = 0.5 * torch.rand(90, generator=draw)
    asked = torch.tensor([0.95, 0.97, 0.1, 0.2])
    assert membership_inference(members, others, asked, attack="svc") == pytest.approx(50.0)
    assert membership_inference(members, others, asked, most=30) == pytest.approx(50.0)


class Table(nn.Module):
    """Logits by the first pixel: a row of a table."""

    def __init__(self, rows):
        super().__init__()
        self.rows = nn.Parameter(torch.tensor(rows))

    def forward(self, x):
        return self.rows[x[:, 0, 0, 0].long()]


def rows(*pairs):
    """Samples given as (row of the table, label)."""
    x, y = zip(*pairs, strict=True)
    return Arrays(torch.tensor(x).float().view(-1, 1, 1, 1), torch.tensor(y))


def test_forget_report_by_hand():
    # Row 0 says 0 surely, row 1 says 1 surely, row 2 hardly says 0.
    model = Table([[4.0, 0.0], [0.0, 4.0], [0.1, 0.0]])
    reference = Table([[4.0, 0.0], [0.0, 4.0], [0.0, 0.1]])
    gone, kept = rows((2, 0), (2, 0), (0, 0), (0, 1)), rows((0, 0), (1, 1))
    test = rows((2, 0), (2, 1), (0, 0), (1, 0))
    report = forget_report(model, gone, kept, test, reference=reference, seconds=1.5)
    assert report["accuracy_forgotten_pct"] == 75.0
    assert report["accuracy_retained_pct"] == 100.0
    assert report["accuracy_test_pct"] == 50.0
    # Members have .982; of the test two rows are drawn. Only row 0 with label 0 is as sure.
    assert report["mia_success_pct"] == 25.0
    assert report["seconds"] == 1.5
    assert report["reference_accuracy_forgotten_pct"] == 25.0
    # The reference answers row 2 by 1: one of the test's two rows 2 is right, as before.
    assert report["reference_accuracy_test_pct"] == 50.0
    assert report["average_gap_pct"] == pytest.approx((50 + 0 + 0 + 0) / 4)
    assert report["weight_distance"] == pytest.approx(0.1 * 2**0.5)
    assert report["disagreement_test_pct"] == 50.0
    assert report["disagreement_forgotten_pct"] == 50.0
    alone = forget_report(model, gone, rows((0, 0)), test)
    assert "average_gap_pct" not in alone
    empty = Arrays(torch.zeros(0, 1, 1, 1), torch.zeros(0, dtype=torch.int64))
    none = forget_report(model, empty, kept, test, reference=reference)
    assert none["accuracy_forgotten_pct"] is none["mia_success_pct"] is None
    assert none["average_gap_pct"] is none["disagreement_forgotten_pct"] is None


def test_gap_and_distance():
    mine = dict.fromkeys(GAPS, 50.0)
    other = dict(zip(mine, (40.0, 50.0, 52.0, 50.0), strict=True))
    assert average_gap(mine, other) == 3.0
    assert weight_distance(net(), net()) == 0.0
    with pytest.raises(AdapterError, match="other parameters"):
        weight_distance(net(), net(classes=5))


def test_retrained_never_met_the_forgotten():
    asked = stream().items[1].samples
    met = []

    class Watching(Learner):
        def learn(self, experience, watch=None):
            met.extend(experience.train.keys.tolist())
            super().learn(experience, watch)

    def build():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(9, 6))
        return Watching(model, 6, LearnerConfig(lr=0.2, batch_size=8))

    model = retrained(build, stream().experiences, asked)
    assert len(met) == 120 - len(asked)
    assert not set(met) & set(asked.keys.tolist())
    assert accuracy_pct(model, asked) == 0.0
    # An experience of which nothing is left is passed over.
    assert len(met) == 100
    retrained(build, stream().experiences[:1], stream().experiences[0].train)
    assert len(met) == 100


def test_relapse():
    found = relapse([90.0, 20.0, 60.0, 40.0])
    assert found == {
        "before_pct": 90.0,
        "after_pct": 20.0,
        "curve_pct": [60.0, 40.0],
        "relapse_pct": 20.0,
        "worst_relapse_pct": 40.0,
    }
    assert relapse([90.0, 20.0])["relapse_pct"] is None
    assert relapse([])["after_pct"] is None


def test_relapse_watch_resumes():
    model = learner_of().model
    one, two = RelapseWatch(stream()), RelapseWatch(stream())
    assert one.look(model, -1) == {}  # the request is item 1: followed from item 0 on
    assert list(one.look(model, 0)) == ["class-0"]
    two.load_state_dict(copy.deepcopy(one.state_dict()))
    for watch in (one, two):
        watch.look(model, 1)
    assert one.report() == two.report()


# Worst case -------------------------------------------------------------------------------------


def test_capped_simplex():
    made = capped_simplex(torch.tensor([0.9, 0.8, 0.3, 0.1, -0.2]), 2)
    assert made.tolist() == pytest.approx([0.875, 0.775, 0.275, 0.075, 0.0], abs=1e-6)
    assert capped_simplex(torch.tensor([5.0, 0.0, 0.0]), 2).tolist() == pytest.approx([1, 0.5, 0.5])
    assert capped_simplex(torch.tensor([3.0, -1.0]), 2).tolist() == pytest.approx([1, 1])
    with pytest.raises(AdapterError, match="cannot sum"):
        capped_simplex(torch.zeros(2), 3)


def test_worst_case_are_the_samples_that_the_others_keep_alive():
    # Ten samples of each of two patterns; pattern 0 twice has the label of its class, and three
    # outliers have a label that nothing else supports.
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(23, 1, 1, 8, generator=draw) * 0.1
    x[:10, ..., 0] += 3
    x[10:20, ..., 1] += 3
    x[20:, ..., 2:5] += 3 * torch.eye(3).view(3, 1, 1, 3)
    y = torch.tensor([0] * 10 + [1] * 10 + [0, 1, 0])
    data = Arrays(x, y)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(8, 2))
    unlearning.fine_tune(model, data, UnlearnConfig(lr=0.05, epochs=20, batch_size=23))
    before = copies(model)
    options = {"lr": 0.05, "steps": 5, "weight_lr": 0.5}
    worst = worst_case_forget_set(model, data, 3, **options)
    easiest = worst_case_forget_set(model, data, 3, easiest=True, **options)
    assert all(torch.equal(before[n], v) for n, v in copies(model).items())
    assert int(worst.max()) < 20
    assert easiest.tolist() == [20, 21, 22]
