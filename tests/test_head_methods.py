"""Hand-computed values of the methods that work on the classifier's input."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import tta
from tta import laplacian, neighbours
from tta.adapters.zerosiam import symmetric_divergence
from tta.heads import Tap
from tta.losses import entropy
from tta.masking import Masked
from tta.source import class_means


@pytest.fixture(autouse=True)
def _seed():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def linear_net(weight: list[list[float]], bias: list[float] | None = None) -> nn.Module:
    """Images ``(B, 1, 1, D)`` are their own features; the head has the given rows."""
    head = nn.Linear(len(weight[0]), len(weight), bias=bias is not None).double()
    with torch.no_grad():
        head.weight.copy_(torch.tensor(weight))
        if bias is not None:
            head.bias.copy_(torch.tensor(bias))
    return nn.Sequential(nn.Flatten(1), head)


def images(features: list[list[float]]) -> torch.Tensor:
    return torch.tensor(features, dtype=torch.float64)[:, None, None]


def small_bn() -> nn.Module:
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(1), nn.Linear(64, 5)
    )
    return net.double()


# LAME ---------------------------------------------------------------------------------------------


def test_lame_affinities_by_hand() -> None:
    features = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]], dtype=torch.float64)
    # Distances: 0-1 sqrt 2, 0-2 sqrt .8, 1-2 sqrt .4; itself counts as the first neighbour.
    scale = (math.sqrt(0.8) + math.sqrt(0.4) + math.sqrt(0.4)) / 3
    near = [math.exp(-d / (2 * scale**2)) for d in (2.0, 0.8, 0.4)]
    expected = [[1, near[0], near[1]], [near[0], 1, near[2]], [near[1], near[2], 1]]
    got = laplacian.affinity(features, "rbf", 2)
    torch.testing.assert_close(got, torch.tensor(expected, dtype=torch.float64))
    got = laplacian.affinity(features, "knn", 1)
    assert got.tolist() == [[0, 0, 1], [0, 0, 1], [0, 1, 0]]
    got = laplacian.affinity(features, "linear", 1)
    assert got[0].tolist() == pytest.approx([1, 0, 0.6])


def test_lame_sweeps_by_hand() -> None:
    """Three sweeps of two images that follow each other, two classes."""
    p = torch.tensor([[0.9, 0.1], [0.4, 0.6]], dtype=torch.float64)
    weights = torch.tensor([[0.0, 1.0], [1.0, 0.0]], dtype=torch.float64)
    # Of two classes only the difference of scores matters: logit(Y_0) = logit(p_0) + 2 Y_1 - 1.
    logits = [math.log(9), math.log(2 / 3)]
    y = [0.9, 0.4]
    for _ in range(3):
        y = [1 / (1 + math.exp(-(logits[i] + 2 * y[1 - i] - 1))) for i in (0, 1)]
    got = laplacian.solve(-p.log(), weights, sweeps=3)
    assert got[:, 0].tolist() == pytest.approx(y, abs=1e-12)
    converged = laplacian.solve(-p.log(), weights, sweeps=1000, tolerance=0.0)
    again = (weights @ converged + p.log()).softmax(1)
    torch.testing.assert_close(again, converged)


@pytest.mark.parametrize("affinity", ["rbf", "knn", "linear"])
def test_lame_leaves_one_image_as_it_is_and_survives_twins(affinity: str) -> None:
    net = linear_net([[1.0, 0.0], [0.0, 1.0], [0.5, 0.2]])
    adapter = tta.wrap(net, "lame", affinity=affinity)
    one = images([[0.3, 0.9]])
    torch.testing.assert_close(adapter(one), net(one).log_softmax(1).detach())
    twins = adapter(images([[0.3, 0.9]] * 4))
    assert bool(twins.isfinite().all())
    assert torch.equal(twins, twins[:1].expand(4, -1))


def test_lame_logits_give_its_probabilities_back() -> None:
    net = small_bn()
    x = torch.rand(6, 3, 6, 6).double()
    plain = tta.wrap(net, "lame", output="probabilities")(x)
    torch.testing.assert_close(plain.sum(1), torch.ones(6).double())
    torch.testing.assert_close(tta.wrap(net, "lame")(x).softmax(1), plain)


# T3A ----------------------------------------------------------------------------------------------

ROWS = [[2.0, 0.0], [0.0, 2.0]]


def test_t3a_by_hand() -> None:
    """Two supports a class: the row of the head and the most confident feature."""
    adapter = tta.wrap(linear_net(ROWS), "t3a", supports=2)
    x = [[3.0, 0.0], [1.0, 0.8], [0.0, 1.0]]
    # Class 0 has its row (logits 4, 0), image 0 (6, 0) and image 1 (2, 1.6): the last one drops.
    first = [1.0, 0.0]
    second = [0.0, 1.0]
    expected = [[a * first[0], b * second[1]] for a, b in x]
    torch.testing.assert_close(adapter(images(x)), torch.tensor(expected).double())
    # (4, 3) has logits 8, 6 (gap 2): less confident than both supports (gaps 6 and 4).
    assert adapter(images([[4.0, 3.0]]))[0].tolist() == pytest.approx([4.0, 3.0])
    # (2.5, -1) has gap 7: it replaces the row; class 0 becomes (1, 0) + (2.5, -1) / |.|.
    got = adapter(images([[2.5, -1.0]]))
    length = math.hypot(2.5, 1.0)
    vector = torch.tensor([1 + 2.5 / length, -1 / length], dtype=torch.float64)
    vector = vector / vector.norm()
    assert got[0].tolist() == pytest.approx([2.5 * vector[0].item() - vector[1].item(), -1.0])


def test_t3a_keeps_all_where_the_reference_drops_one() -> None:
    adapter = tta.wrap(linear_net(ROWS), "t3a", supports=-1)
    adapter(images([[1.0, 0.9], [3.0, 0.0]]))
    vector = torch.tensor([2 + 1 / math.hypot(1, 0.9), 0.9 / math.hypot(1, 0.9)]).double()
    got = adapter.predict(images([[1.0, 0.0]]))
    assert got[0].tolist() == pytest.approx([float((vector / vector.norm())[0]), 0.0])
    assert adapter.supports.numel() == 0


def test_t3a_large_k_equals_all_and_batches_do_not_matter_for_the_memory() -> None:
    net = small_bn()
    batches = [torch.rand(5, 3, 6, 6).double() for _ in range(3)]
    every, many = tta.wrap(net, "t3a", supports=-1), tta.wrap(net, "t3a", supports=40)
    few, whole = tta.wrap(net, "t3a", supports=2), tta.wrap(net, "t3a", supports=2)
    for x in batches:
        torch.testing.assert_close(every(x), many(x))
        few(x)
    whole(torch.cat(batches))
    torch.testing.assert_close(few.sums, whole.sums)


def test_t3a_masks_rows_and_refuses_no_supports() -> None:
    net = Masked(linear_net([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]), [2, 0], 3)
    adapter = tta.wrap(net, "t3a", supports=1)
    assert adapter(images([[0.1, 0.7]])).shape == (1, 2)
    with pytest.raises(tta.AdapterError, match="supports=0 leaves no class vector"):
        tta.wrap(net, "t3a", supports=0)


def test_a_feature_that_is_not_finite_is_not_taken_in() -> None:
    net = small_bn()
    bad = torch.full((2, 3, 6, 6), 1e308, dtype=torch.float64)  # finite pixels, infinite features
    x = torch.rand(4, 3, 6, 6).double()
    for method in ("t3a", "adanpc"):
        adapter, clean = tta.wrap(net, method), tta.wrap(net, method)
        for each in (adapter, clean):
            if each.needs.source_data:
                each.fit_source([(x, torch.arange(4))])
        adapter(bad)
        assert torch.equal(adapter(x), clean(x))


# AdaNPC -------------------------------------------------------------------------------------------


def npc_memory() -> dict:
    rows = [[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [-1.0, 1.0], [1.0, 0.2]]
    memory = neighbours.empty(3)
    neighbours.set_source(
        memory, torch.tensor(rows, dtype=torch.float64), torch.tensor([0, 1, 2, 1, 0])
    )
    return memory


def test_adanpc_vote_by_hand() -> None:
    """Cosines .8944272 .4472136 .9486833 -.3162278 .9647638: rows 4, 2 and 0 vote."""
    feature = torch.tensor([[2.0, 1.0]], dtype=torch.float64)
    votes = neighbours.vote(npc_memory(), feature, 3, 3, 0.1)
    assert votes[0].tolist() == pytest.approx([0.6371276, 0.00001, 0.3628924], abs=1e-7)
    adapter = tta.wrap(linear_net([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]), "adanpc", neighbours=3)
    adapter.memory, adapter.source_fitted = npc_memory(), True
    got = adapter(images([[2.0, 1.0]]))
    torch.testing.assert_close(got, votes.log())
    assert adapter.memory["seen"] == 1


@pytest.mark.parametrize(
    ("confidence", "threshold", "stored"),
    [("code", 0.436, 1), ("code", 0.437, 0), ("paper", 0.637, 1), ("paper", 0.638, 0)],
)
def test_adanpc_confidence_is_a_second_softmax(confidence, threshold, stored) -> None:
    net = linear_net([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    adapter = tta.wrap(net, "adanpc", neighbours=3, confidence=confidence, threshold=threshold)
    adapter.memory, adapter.source_fitted = npc_memory(), True
    adapter(images([[2.0, 1.0]]))
    assert adapter.memory["seen"] == stored
    assert adapter.report["selected_fraction"] == stored


def test_adanpc_memory_overwrites_the_oldest_test_row_and_keeps_the_source() -> None:
    memory = npc_memory()
    vectors = torch.eye(2, dtype=torch.float64)[[0, 1, 0, 1, 1]]
    neighbours.append(memory, vectors[:2], torch.tensor([10, 11]))
    neighbours.append(memory, vectors[2:4], torch.tensor([12, 13]))
    assert memory["labels"].tolist() == [13, 11, 12]
    neighbours.append(memory, vectors, torch.tensor([20, 21, 22, 23, 24]))
    assert sorted(memory["labels"].tolist()) == [22, 23, 24]
    assert memory["test"].shape == (3, 2)
    assert memory["source"].shape == (5, 2)


def test_adanpc_source_memory_is_the_features_with_their_labels() -> None:
    net = small_bn()
    x, y = torch.rand(6, 3, 6, 6).double(), torch.tensor([4, 0, 1, 1, 2, 3])
    adapter = tta.wrap(net, "adanpc", neighbours=1, threshold=1.0)
    adapter.fit_source([(x[:4], y[:4]), (x[4:], y[4:])])
    assert adapter(x).argmax(1).tolist() == y.tolist()
    with pytest.raises(tta.AdapterError, match=r"6 integers in \[0, 5\), got values from 0 to 9"):
        adapter.fit_source([(x, y + torch.tensor([5, 0, 0, 0, 0, 0]))])


def test_adanpc_bn_learns_from_the_vote() -> None:
    """One step by hand: the map before the update votes, the update follows the double softmax."""
    net = small_bn().eval()
    source, y = torch.rand(6, 3, 6, 6).double(), torch.tensor([4, 0, 1, 1, 2, 3])
    x = torch.rand(4, 3, 6, 6).double()
    adapter = tta.wrap(net, "adanpc-bn", neighbours=3, lr=1e-2, output="scores", threshold=0.0)
    adapter.fit_source([(source, y)])
    features = Tap(net)(net, x)[0].detach()
    scale = torch.ones(64, dtype=torch.float64, requires_grad=True)
    memory = dict(adapter.memory)
    votes = neighbours.vote(memory, features * scale / math.sqrt(1 + 1e-5), 5, 3, 0.1)
    torch.testing.assert_close(adapter(x), votes.detach())
    entropy(votes).mean().backward()
    # Adam's first step is lr times the sign of the gradient.
    moved = adapter.affine.weight.detach() - 1
    large = scale.grad.abs() > 1e-4
    assert int(large.sum()) > 10
    torch.testing.assert_close(moved[large], -1e-2 * scale.grad[large].sign(), rtol=1e-3, atol=0)
    assert adapter.memory["seen"] == 4


def test_class_means_by_hand() -> None:
    net = linear_net([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    batches = [
        (images([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([2, 0])),
        (images([[5.0, 0.0]]), torch.tensor([2])),
    ]
    means = class_means(Tap(net), net, batches)
    assert means.tolist() == [[3.0, 4.0], [0.0, 0.0], [3.0, 1.0]]
    with pytest.raises(tta.AdapterError, match=r"integers in \[0, 3\), got float32"):
        class_means(Tap(net), net, [(images([[1.0, 2.0]]), torch.rand(1))])
    with pytest.raises(tta.AdapterError, match="got no batch"):
        class_means(Tap(net), net, [])


# ZeroSiam -----------------------------------------------------------------------------------------


def test_zerosiam_starts_as_tent_and_moves_the_predictor() -> None:
    net, x = small_bn(), torch.rand(6, 3, 6, 6).double()
    tent = tta.wrap(net, "tent", optimizer="sgd", lr=0.05, momentum=0.9)
    siam = tta.wrap(net, "zerosiam", lr=0.01, backbone_factor=5.0, predictor_factor=2.0)
    torch.testing.assert_close(siam(x), tent(x))
    assert siam.report["divergence"] == pytest.approx(0, abs=1e-15)
    for key in ("weight", "bias"):
        ours, theirs = getattr(siam.model[1], key), getattr(tent.model[1], key)
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
    features, _ = Tap(net)(tta.wrap(net, "norm").model, x)
    weight = torch.eye(64, dtype=torch.float64, requires_grad=True)
    head = net[4]
    entropy(features.detach() @ weight.T @ head.weight.T + head.bias).mean().backward()
    expected = torch.eye(64).double() - 0.02 * weight.grad
    torch.testing.assert_close(siam.predictor.weight.detach(), expected.detach())


def test_zerosiam_second_step_by_hand() -> None:
    """Loss, gradient through the learning branch alone, and both momenta."""
    net, x = small_bn(), torch.rand(6, 3, 6, 6).double()
    siam = tta.wrap(net, "zerosiam", lr=0.5, backbone_factor=1.0, predictor_factor=0.5)
    start = siam.model[1].weight.detach().clone()
    siam(x)
    first = siam.model[1].weight.detach().clone()
    model, predictor = siam.model, siam.predictor
    h = model[:4](x)
    c = model[4](h).detach()
    o = model[4](predictor(h))
    p, q = c.softmax(1), o.softmax(1)
    kl = (p * (p / q).log()).sum(1) + (q * (q / p).log()).sum(1)
    loss = -(q * q.log()).sum(1).mean() + kl.mean()
    (gradient,) = torch.autograd.grad(loss, [model[1].weight])
    assert torch.equal(siam(x), c)
    assert siam.report["loss"] == pytest.approx(loss.item(), rel=1e-12)
    assert siam.report["divergence"] == pytest.approx(kl.mean().item(), rel=1e-8)
    assert siam.report["divergence"] > 1e-6
    # v = 0.9 (start - first) / lr + gradient
    expected = first - 0.5 * (0.9 * (start - first) / 0.5 + gradient)
    torch.testing.assert_close(siam.model[1].weight.detach(), expected, rtol=0, atol=1e-12)


def test_symmetric_divergence_by_hand() -> None:
    """(.5, .5) and (.8, .2): .3 ln 4 = .4158883."""
    left = torch.tensor([[0.5, 0.5]], dtype=torch.float64).log()
    right = torch.tensor([[0.8, 0.2]], dtype=torch.float64).log()
    assert float(symmetric_divergence(left, right)) == pytest.approx(0.3 * math.log(4), abs=1e-12)
    assert torch.equal(symmetric_divergence(left, right), symmetric_divergence(right, left))
