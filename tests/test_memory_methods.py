"""RoTTA, NOTE, PeTTA and UnMix-TNS against their formulas written out and by hand."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import tta
from tta.memory import ClassBalanced

F64 = torch.float64


def network(classes: int = 3) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Conv2d(3, 4, 3),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Linear(16, classes),
        ).double()
        net[1].running_mean.normal_(0, 0.3)
        net[1].running_var.uniform_(0.5, 1.5)
        net[1].weight.data.uniform_(0.5, 1.5)
        net[1].bias.data.normal_()
        # Spread the answers over the classes.
        net[5].weight.data *= 8
        net[5].bias.data -= net.eval()(images(64, seed=9)).mean(0)
    return net


def images(count: int, seed: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, 3, 6, 6, generator=generator, dtype=F64)


class Robust:
    """A network whose BatchNorm is written out with the statistics that RobustBN keeps."""

    def __init__(self, net: nn.Module, alpha: float = 0.05) -> None:
        self.net, self.alpha = copy.deepcopy(net), alpha
        bn = self.net[1]
        self.weight = bn.weight.detach().clone().requires_grad_()
        self.bias = bn.bias.detach().clone().requires_grad_()
        self.mean, self.var = bn.running_mean.clone(), bn.running_var.clone()

    def __call__(self, x: torch.Tensor, train: bool = True) -> torch.Tensor:
        h = self.net[0](x)
        mean, var = self.mean, self.var
        if train:
            mean = (1 - self.alpha) * mean + self.alpha * h.mean((0, 2, 3))
            var = (1 - self.alpha) * var + self.alpha * h.var((0, 2, 3), correction=0)
            self.mean, self.var = mean.detach(), var.detach()
        h = (h - mean[:, None, None]) / (var[:, None, None] + 1e-5).sqrt()
        h = h * self.weight[:, None, None] + self.bias[:, None, None]
        return self.net[2:](h)


def ce(target: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    return -(target.softmax(1) * logits.log_softmax(1)).sum(1)


# RoTTA --------------------------------------------------------------------------------------------


def test_rotta_update_falls_inside_a_batch() -> None:
    """Six images, an update after the fourth: by hand, with ages 4 to 1 and a plain step of SGD."""
    adapter = tta.wrap(
        network(),
        "rotta",
        capacity=12,
        update_every=4,
        nu=0.25,
        optimizer="sgd",
        momentum=0,
        lr=0.1,
    )
    adapter.augment = lambda x, purpose: x.flip(-1)
    x = images(6)
    logits = adapter(x)
    student, teacher = Robust(network()), Robust(network())
    expected = teacher(x, train=False)
    torch.testing.assert_close(logits, expected.detach(), rtol=0, atol=1e-12)
    assert adapter.report["forwards"] == 6 + 4 + 4
    assert adapter.report["backwards"] == 4

    stored = x[:4]
    age = torch.tensor([4.0, 3.0, 2.0, 1.0], dtype=F64) / 12
    weight = (-age).exp() / (1 + (-age).exp())
    target = teacher(stored).detach()
    loss = (weight * ce(target, student(stored.flip(-1)))).mean()
    assert adapter.report["loss"] == pytest.approx(loss.item(), abs=1e-12)
    gradients = torch.autograd.grad(loss, [student.weight, student.bias])
    for name, old, gradient in zip(
        ("weight", "bias"), (student.weight, student.bias), gradients, strict=True
    ):
        new = old.detach() - 0.1 * gradient
        ours, taught = getattr(adapter.model[1], name), getattr(adapter.teacher[1], name)
        torch.testing.assert_close(ours.detach(), new, rtol=0, atol=1e-12)
        torch.testing.assert_close(taught, 0.75 * old.detach() + 0.25 * new, rtol=0, atol=1e-12)
    torch.testing.assert_close(adapter.teacher[1].running_mean, teacher.mean, rtol=0, atol=1e-12)
    torch.testing.assert_close(adapter.model[1].running_var, student.var, rtol=0, atol=1e-12)


def test_rotta_predicts_with_the_teacher() -> None:
    adapter = tta.wrap(network(), "rotta", capacity=4, update_every=4, lr=0.1, nu=0.5)
    adapter(images(4))
    x = images(3, seed=2)
    expected = adapter.predict(x)
    assert not torch.equal(expected, adapter.model(x))
    assert torch.equal(adapter(x), expected)


def test_rotta_without_batchnorm_adapts_what_is_there() -> None:
    net = nn.Sequential(nn.Flatten(), nn.LayerNorm(108), nn.Linear(108, 3)).double()
    adapter = tta.wrap(net, "rotta", capacity=4, update_every=4)
    before = adapter.model[1].weight.clone()
    adapter(images(4))
    assert not torch.equal(adapter.model[1].weight, before)
    with pytest.raises(tta.AdapterError, match="nothing to adapt"):
        tta.wrap(net, "rotta", norm_kinds=("bn",))


def test_dense_answers_are_refused_with_a_reason() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 3, 1)).double()
    with pytest.raises(tta.AdapterError, match="one answer an image"):
        tta.wrap(net, "rotta")(images(2))


# NOTE ---------------------------------------------------------------------------------------------


def test_note_predicts_single_images_and_learns_from_the_memory() -> None:
    """The batch size does not matter: batches of 7 and of 1 give the same numbers."""
    options = {"capacity": 24, "update_every": 5, "lr": 0.05}
    x = images(21)
    batched, single = (tta.wrap(network(), "note", **options) for _ in range(2))
    together = torch.cat([batched(part) for part in x.split(7)])
    alone = torch.cat([single(part) for part in x.split(1)])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-12)
    source = tta.wrap(network(), "note")
    assert not torch.allclose(together[-7:], source(x[-7:]), atol=1e-3)
    assert (batched.images_seen, single.num_steps) == (21, 21)


def test_note_update_by_hand() -> None:
    """Entropy over images and classes, statistics of the memory batch, Adam's first step."""
    options = {"capacity": 4, "update_every": 4, "lr": 0.01, "iabn_k": 1e9}
    adapter = tta.wrap(network(), "note", **options)
    x = images(4)
    adapter(x)
    net = network()
    weight = net[1].weight.detach().clone().requires_grad_()
    h = net[0](x)
    mean, var = h.mean((0, 2, 3)), h.var((0, 2, 3))
    y = (h - mean[:, None, None]) / (var[:, None, None] + 1e-5).sqrt()
    y = y * weight[:, None, None] + net[1].bias[:, None, None]
    p = net[2:](y).softmax(1)
    loss = -(p * (p + 1e-6).log()).sum() / 12
    assert adapter.report["loss"] == pytest.approx(loss.item(), abs=1e-12)
    (gradient,) = torch.autograd.grad(loss, weight)
    expected = weight.detach() - 0.01 * gradient / (gradient.abs() + 1e-8)
    layer = adapter.model[1]
    torch.testing.assert_close(layer.weight.detach(), expected, rtol=0, atol=1e-9)
    moved = 0.99 * net[1].running_mean + 0.01 * mean
    torch.testing.assert_close(layer.running_mean, moved.detach(), rtol=0, atol=1e-12)
    assert not layer.training


def test_note_keeps_a_balanced_memory_with_its_own_draws() -> None:
    adapter = tta.wrap(network(), "note", capacity=3, update_every=100)
    generators = []
    adapter.draws = lambda: generators.append(torch.Generator().manual_seed(5)) or generators[-1]
    logits = torch.cat([adapter(part) for part in images(12).split(4)])
    expected = ClassBalanced(ClassBalanced.empty(), 3)
    labels = logits.argmax(1).tolist()
    for i, part in enumerate(images(12).split(4)):
        draws = torch.rand(4, 3, generator=torch.Generator().manual_seed(5), dtype=F64)
        expected.add(part, labels[4 * i : 4 * i + 4], draws)
    assert len(generators) == 3
    assert torch.equal(adapter.kept["images"], expected.state["images"])
    assert adapter.kept["members"] == expected.state["members"]


def test_note_star_answers_by_the_statistics_of_its_memory() -> None:
    star = {"memory": "fifo", "batch_statistics": True, "iabn_k": 1e9}
    adapter = tta.wrap(network(), "note", capacity=4, update_every=8, **star)
    net = network()
    x = images(10)
    ring = x[:0]
    for part in (x[:3], x[3:4], x[4:6]):
        got = adapter(part)
        ring = torch.cat([ring, part])[-4:]
        h = net[0](ring)
        mean, var = h.mean((0, 2, 3), keepdim=True), h.var((0, 2, 3), keepdim=True)
        y = (h - mean) / (var + 1e-5).sqrt() * net[1].weight[:, None, None]
        expected = net[2:](y + net[1].bias[:, None, None])[-len(part) :]
        torch.testing.assert_close(got, expected.detach(), rtol=0, atol=1e-12)
    assert adapter.report["forwards"] == 4
    adapter(x[6:10])  # more than its update leaves room for: two parts
    assert adapter.report["backwards"] == 4
    assert adapter.images_seen == 10


@pytest.mark.parametrize("method", ["note", "petta", "unmix-tns"])
def test_models_without_batchnorm_are_refused(method: str) -> None:
    net = nn.Sequential(nn.Flatten(), nn.LayerNorm(108), nn.Linear(108, 3))
    with pytest.raises(tta.AdapterError, match=r"BatchNorm layers, the model has 1 ln"):
        tta.wrap(net, method)


# PeTTA --------------------------------------------------------------------------------------------


def fitted(**options) -> tta.Adapter:
    adapter = tta.wrap(network(), "petta", **options)
    adapter.augment = lambda x, purpose: x.flip(-1)
    adapter.fit_source([images(40, seed=5), images(25, seed=6)])
    return adapter


def test_petta_source_statistics() -> None:
    adapter = fitted()
    x = torch.cat([images(40, seed=5), images(25, seed=6)])
    net = network()
    features, labels = net[:-1](x).detach(), net(x).argmax(1)
    assert len(labels.unique()) > 1
    for k in range(3):
        mine = features[labels == k]
        if len(mine):
            torch.testing.assert_close(adapter.source_means[k], mine.mean(0), rtol=0, atol=1e-12)
            variance = mine.var(0, correction=0)
            torch.testing.assert_close(adapter.source_vars[k], variance, rtol=0, atol=1e-12)
        else:
            assert adapter.source_means[k].isnan().all()
    adapter(images(4))
    kept = adapter.source_means.clone()
    adapter.reset()
    assert torch.equal(adapter.source_means.nan_to_num(), kept.nan_to_num())
    assert torch.equal(adapter.means.nan_to_num(), kept.nan_to_num())


def test_petta_drift_by_hand() -> None:
    """Two of three classes in the batch, one of them without source statistics."""
    adapter = tta.wrap(
        nn.Sequential(nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(2, 3)).double(), "petta"
    )
    nan = float("nan")
    adapter.source_means = torch.tensor([[1.0, 2.0], [0.0, 0.0], [nan, nan]], dtype=F64)
    adapter.source_vars = torch.tensor([[0.5, 2.0], [1.0, 1.0], [nan, nan]], dtype=F64)
    adapter.means = torch.tensor([[1.5, 1.0], [3.0, 3.0], [nan, nan]], dtype=F64)
    features = torch.tensor([[2.0, 2.0], [4.0, 0.0], [9.0, 9.0]], dtype=F64)
    logits = torch.tensor([[5.0, 0, 0], [5.0, 0, 0], [0, 0, 5.0]], dtype=F64)
    # ((.5)^2 / .5 + 1 / 2) / 2 = .5 for class 0 alone: 1 - exp(-.5).
    assert adapter.sense(features, logits) == pytest.approx(1 - math.exp(-0.5), abs=1e-6)
    assert adapter.means[0].tolist() == pytest.approx([0.95 * 1.5 + 0.05 * 3, 1.0], abs=1e-12)
    assert adapter.means[1].tolist() == [3.0, 3.0]
    # Only a class without statistics: no drift that could be told.
    assert adapter.sense(features[2:], logits[2:]) == 0.0


@pytest.mark.parametrize("classification", ["sce", "ce"])
def test_petta_step_by_hand(classification: str) -> None:
    """Two steps: losses, pull, the teacher's pace; the second from weights that have moved."""
    adapter = fitted(
        capacity=12, classification=classification, optimizer="sgd", momentum=0, lr=0.1, pace=0.5
    )
    student, teacher, initial = (Robust(network()) for _ in range(3))
    means = adapter.means.clone()
    start = [student.weight.detach().clone(), student.bias.detach().clone()]
    seen = images(0)
    for step in range(2):
        x = images(4, seed=10 + step)
        logits = adapter(x)
        z = teacher(x, train=False).detach()
        torch.testing.assert_close(logits, z, rtol=0, atol=1e-11)

        h = teacher.net[0](x)
        h = (h - teacher.mean[:, None, None]) / (teacher.var[:, None, None] + 1e-5).sqrt()
        h = h * teacher.weight[:, None, None] + teacher.bias[:, None, None]
        features, labels = teacher.net[2:-1](h).detach(), z.argmax(1)
        terms = []
        for k in labels.unique():
            squared = (means[k] - adapter.source_means[k]).square()
            terms.append(squared / (adapter.source_vars[k] + 1e-6))
            means[k] = 0.95 * means[k] + 0.05 * features[labels == k].mean(0)
        known = [term for term in terms if term.isfinite().all()]
        drift = 1 - math.exp(-torch.cat(known).mean().item()) if known else 0.0
        assert adapter.report["drift"] == pytest.approx(drift, abs=1e-9)
        assert (drift > 1e-4) == (step == 1)

        images_kept, _ = _bank(adapter, 12).batch()
        seen = torch.cat([seen, x])
        assert len(images_kept) == adapter.report["memory"] <= len(seen)
        t, o = teacher(images_kept).detach(), student(images_kept)
        i, a = initial(images_kept).detach(), student(images_kept.flip(-1))
        symmetric = 0.25 * (ce(t, o) + ce(o, t) + ce(t, a) + ce(a, t)).mean()
        loss = symmetric if classification == "sce" else ce(t, a).mean()
        now = [student.weight, student.bias]
        pull = -sum(F.cosine_similarity(p, q, dim=0) for p, q in zip(now, start, strict=True)) / 2
        loss = loss + 10 * drift * pull + ce(i, a).mean()
        assert adapter.report["loss"] == pytest.approx(loss.item(), abs=1e-9)
        assert adapter.report["forwards"] == 4 + 4 * len(images_kept)

        gradients = torch.autograd.grad(loss, now)
        share = 0.5 * (1 - drift)
        with torch.no_grad():
            for p, q, gradient in zip(now, (teacher.weight, teacher.bias), gradients, strict=True):
                p -= 0.1 * gradient
                q.copy_((1 - share) * q + share * p)
        layer = adapter.teacher[1]
        torch.testing.assert_close(layer.weight, teacher.weight.detach(), rtol=0, atol=1e-9)
        torch.testing.assert_close(layer.running_mean, teacher.mean, rtol=0, atol=1e-9)
        torch.testing.assert_close(adapter.model[1].weight, student.weight, rtol=0, atol=1e-9)
        torch.testing.assert_close(adapter.model[1].running_var, student.var, rtol=0, atol=1e-9)
        torch.testing.assert_close(adapter.initial[1].running_var, initial.var, rtol=0, atol=1e-9)


def _bank(adapter: tta.Adapter, capacity: int):
    from tta.memory import Timeliness

    return Timeliness(adapter.memory, capacity, 3)


# UnMix-TNS ----------------------------------------------------------------------------------------


def test_unmix_answers_by_the_components_from_before() -> None:
    adapter = tta.wrap(network(), "unmix-tns", components=4)
    x = images(5)
    expected = adapter.predict(x)
    assert torch.equal(adapter(x), expected)
    assert not torch.equal(adapter.predict(x), expected)
    assert adapter.report["backwards"] == 0


def test_unmix_momentum_follows_the_batch_unless_told() -> None:
    moved = {}
    for size, told in ((2, None), (8, None), (2, 8), (8, 8)):
        adapter = tta.wrap(network(), "unmix-tns", components=1, batch_size=told, max_batch_size=8)
        start = adapter.model[1].component_means.clone()
        adapter(images(1).expand(size, -1, -1, -1))
        moved[size, told] = (adapter.model[1].component_means - start).abs().sum().item()
    rate = 1 - 0.9**0.25
    assert moved[2, None] / moved[8, None] == pytest.approx(rate / 0.1, abs=1e-9)
    assert moved[2, 8] == pytest.approx(moved[8, 8], abs=1e-12)
    assert moved[8, None] == pytest.approx(moved[8, 8], abs=1e-12)
