"""Layers in the place of BatchNorm: their formulas, the replacement, and the company they keep."""

from __future__ import annotations

import copy
import math

import pytest
import timm
import torch
from torch import nn

import tta
from tta import checks, norm_layers, norms
from tta.adapters.tent import Tent

F64 = torch.float64


def layer(kind: str, channels: int = 2, **options) -> norm_layers.StandIn:
    net = nn.Sequential(nn.BatchNorm2d(channels, dtype=F64))
    norm_layers.replace(net, kind, **options)
    return net[0]


def network() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(96, 4)
        ).double()
        net[1].running_mean.normal_(0, 0.3)
        net[1].running_var.uniform_(0.5, 1.5)
        net[1].weight.data.uniform_(0.5, 1.5)
        net[1].bias.data.normal_()
    return net


def images(count: int, seed: int = 1) -> torch.Tensor:
    return torch.rand(count, 3, 6, 6, generator=torch.Generator().manual_seed(seed), dtype=F64)


# UnMix-TNS ----------------------------------------------------------------------------------------


def test_unmix_step_by_hand() -> None:
    unmix = layer("unmix-tns", components=2)
    unmix.component_means.copy_(torch.tensor([[1.0, 0.0], [0.0, 2.0]]))
    unmix.component_vars.copy_(torch.tensor([[0.5, 0.5], [1.0, 2.0]]))
    unmix.batch_size = unmix.max_batch_size  # momentum 0.1
    x = torch.tensor([[[[1.0, 3.0]], [[0.0, 2.0]]]], dtype=F64)

    def expect(got: torch.Tensor, wanted: list[float]) -> None:
        assert got.flatten().tolist() == pytest.approx(wanted, abs=5e-8)

    a, s = torch.tensor([[2.0, 1.0]], dtype=F64), torch.tensor([[1.0, 1.0]], dtype=F64)
    share = unmix.shares(a)
    expect(share, [0.9983225, 0.0016775])
    mean, var = unmix.mixture(share, a, s)
    expect(mean, [1.0008388, 1.4983225])
    expect(var, [1.9945544, 1.7487419])
    with norm_layers.moving([unmix]):
        y = unmix(x)
    expect(y, [-0.0005939, 1.4155454, -1.1330295, 0.3793679])
    expect(unmix.component_means, [1.0998322, 0.0998322, 0.0003355, 1.9998322])
    expect(unmix.component_vars, [0.5499161, 0.5499161, 1.0, 1.9998322])


def test_unmix_equals_its_definition_with_the_full_tensors() -> None:
    """Output, gradient and new components against the definition with (B, K, C) tensors."""
    unmix = layer("unmix-tns", channels=5, components=3, seed=4)
    unmix.running_mean.normal_(generator=torch.Generator().manual_seed(2))
    x = torch.randn(4, 5, 3, 3, generator=torch.Generator().manual_seed(3), dtype=F64) + 1
    mu, v = unmix.component_means.clone(), unmix.component_vars.clone()
    ours, theirs = (x.clone().requires_grad_() for _ in range(2))
    with norm_layers.moving([unmix]):
        y = unmix(ours)

    a, s = theirs.mean((2, 3)), theirs.var((2, 3), correction=0)
    cosine = nn.functional.cosine_similarity(a.detach()[:, None], mu[None], dim=2)
    p = (cosine / 0.07).softmax(1)[:, :, None]
    mixed_mean = (1 - p) * mu + p * a[:, None]
    mixed_var = (1 - p) * v + p * s[:, None]
    mean = mixed_mean.mean(1)
    var = mixed_var.mean(1) + mixed_mean.square().mean(1) - mean.square()
    expected = (theirs - mean[:, :, None, None]) / (var[:, :, None, None] + 1e-5).sqrt()
    torch.testing.assert_close(y, expected, rtol=0, atol=1e-12)
    weight = torch.randn(y.shape, generator=torch.Generator().manual_seed(5), dtype=F64)
    (y * weight).sum().backward()
    (expected * weight).sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=0, atol=1e-12)

    momentum = 1 - 0.9 ** (4 / 64)
    new_mu = mu + momentum * (p * (a.detach()[:, None] - mu)).mean(0)
    new_v = v + momentum * (p * (s.detach()[:, None] - v)).mean(0)
    torch.testing.assert_close(unmix.component_means, new_mu, rtol=0, atol=1e-13)
    torch.testing.assert_close(unmix.component_vars, new_v, rtol=0, atol=1e-13)


def test_unmix_starts_from_the_source_and_its_own_generator() -> None:
    net = network()
    before = torch.get_rng_state()
    nets = {seed: copy.deepcopy(net) for seed in (0, 1)}
    for seed, model in nets.items():
        assert norm_layers.replace(model, "unmix-tns", components=4, seed=seed) == 1
    again = copy.deepcopy(net)
    norm_layers.replace(again, "unmix-tns", components=4)
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(again[1].component_means, nets[0][1].component_means)
    assert not torch.equal(nets[1][1].component_means, nets[0][1].component_means)
    torch.testing.assert_close(again[1].component_vars, (0.5 * net[1].running_var).expand(4, -1))
    many = copy.deepcopy(net)
    norm_layers.replace(many, "unmix-tns", components=20000)
    noise = (many[1].component_means - net[1].running_mean) / net[1].running_var.sqrt()
    assert noise.var(0).tolist() == pytest.approx([0.5] * 6, rel=0.05)  # alpha K / (K - 1)
    single = copy.deepcopy(net)
    norm_layers.replace(single, "unmix-tns", components=1)
    assert torch.equal(single[1].component_means[0], net[1].running_mean)
    assert torch.equal(single[1].component_vars[0], net[1].running_var)


def test_unmix_of_vectors_is_the_running_statistics() -> None:
    net = nn.Sequential(nn.BatchNorm1d(3)).double().eval()
    net[0].running_mean.normal_(generator=torch.Generator().manual_seed(0))
    x = torch.rand(4, 3, generator=torch.Generator().manual_seed(1), dtype=F64)
    expected = net(x)
    norm_layers.replace(net, "unmix-tns")
    assert torch.equal(net(x), expected)


# RobustBN and IABN --------------------------------------------------------------------------------


def test_robust_step_by_hand() -> None:
    robust = layer("robust", alpha=0.25)
    robust.running_mean.copy_(torch.tensor([1.0, 0.0]))
    robust.running_var.copy_(torch.tensor([4.0, 1.0]))
    x = torch.tensor([[[[1.0, 3.0]], [[0.0, 2.0]]], [[[5.0, 3.0]], [[2.0, 4.0]]]], dtype=F64)
    still = robust(x)
    assert still[0, 0, 0].tolist() == pytest.approx([0.0, 2 / math.sqrt(4 + 1e-5)], abs=1e-12)
    assert robust.running_mean.tolist() == [1.0, 0.0]
    with norm_layers.moving([robust]):
        y = robust(x)
    # Batch means 3 and 2, biased variances 2 and 2.
    assert robust.running_mean.tolist() == [1.5, 0.5]
    assert robust.running_var.tolist() == [3.5, 1.25]
    assert y[0, 0, 0, 0].item() == pytest.approx(-0.5 / math.sqrt(3.5 + 1e-5), abs=1e-12)
    assert y[1, 1, 0, 1].item() == pytest.approx(3.5 / math.sqrt(1.25 + 1e-5), abs=1e-12)


def test_robust_gradient_flows_through_the_batch_share() -> None:
    robust = layer("robust", alpha=0.05)
    robust.moving = True

    def total(x: torch.Tensor) -> torch.Tensor:
        robust.running_mean.zero_()
        robust.running_var.fill_(1)
        return robust(x).square().sum((0, 2, 3)) @ torch.tensor([1.0, 2.0], dtype=F64)

    x = torch.rand(2, 2, 2, 2, generator=torch.Generator().manual_seed(0), dtype=F64)
    assert torch.autograd.gradcheck(total, x.requires_grad_(), eps=1e-6, atol=1e-6)


def test_iabn_corrects_only_what_stands_out() -> None:
    """Four positions, k = 1: bands sqrt((v + eps) / 4) and (v + eps) sqrt(2 / 3)."""
    iabn = layer("iabn", k=1.0)
    iabn.running_var.copy_(torch.tensor([4.0, 4.0]))
    spread = 4 + 1e-5
    inside = torch.tensor([-2.0, -0.5, 0.5, 2.0], dtype=F64)  # mean 0, variance 8.5 / 3
    outside = torch.tensor([3.0, 3.0, 3.0, 3.0], dtype=F64)  # mean 3, variance 0
    x = torch.stack([inside, outside]).view(1, 2, 2, 2)
    y = iabn(x).flatten(2)[0]
    assert y[0].tolist() == pytest.approx((inside / math.sqrt(spread)).tolist(), abs=1e-12)
    mean = 3 - math.sqrt(spread / 4)
    var = 4 - (4 - spread * math.sqrt(2 / 3))
    expected = (3 - mean) / math.sqrt(var + 1e-5)
    assert y[1].tolist() == pytest.approx([expected] * 4, abs=1e-12)


def test_iabn_references() -> None:
    """Running statistics, the batch's (unbiased), and in training the batch's with a memory."""
    x = images(4)[:, :2]
    flat = x.transpose(0, 1).flatten(1)
    mean, var = flat.mean(1), flat.var(1)
    wide = {"k": 1e9}  # never corrected: what is left is the reference
    plain = layer("iabn", **wide)
    assert torch.equal(plain.reference(x.var((2, 3)), x.mean((2, 3)), 4)[0], plain.running_mean)
    batch = layer("iabn", batch_statistics=True, **wide)
    learning = layer("iabn", **wide)
    learning.training = True
    with norm_layers.moving([batch, learning]):
        for module in (batch, learning):
            expected = (x - mean[:, None, None]) / (var[:, None, None] + 1e-5).sqrt()
            torch.testing.assert_close(module(x), expected, rtol=0, atol=1e-12)
    assert torch.equal(batch.running_mean, plain.running_mean)
    torch.testing.assert_close(learning.running_mean, 0.01 * mean, rtol=0, atol=1e-14)
    torch.testing.assert_close(learning.running_var, 0.99 + 0.01 * var, rtol=0, atol=1e-14)


# The replacement ----------------------------------------------------------------------------------


@pytest.mark.parametrize("backbone", ["test_efficientnet", "test_byobnet"])
def test_timm_layers_keep_their_activation_and_order(backbone: str) -> None:
    """A RobustBN that stands still is the BatchNorm in eval mode: the same logits, bit for bit."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = timm.create_model(backbone, num_classes=5).eval().double()
    x = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0), dtype=F64)
    expected = net(x)
    names = [layer.name for layer in norms.find(net)]
    keys = list(net.state_dict())
    count = norm_layers.replace(net, "robust")
    assert torch.equal(net(x), expected)
    layers = norms.find(net)
    assert [layer.name for layer in layers] == names
    assert sum(layer.kind == "bn-like" for layer in layers) == count > 5
    assert list(net.state_dict()) == keys


def test_a_layer_in_two_places_is_replaced_once() -> None:
    shared = nn.BatchNorm2d(3)
    net = nn.Sequential(nn.Conv2d(3, 3, 1), shared, nn.ReLU(), nn.Sequential(shared))
    assert norm_layers.replace(net, "robust") == 1
    assert net[1] is net[3][0]
    assert net[1].weight is shared.weight


class Strange(nn.BatchNorm2d):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(x)


@pytest.mark.parametrize(
    ("net", "kind", "options", "message"),
    [
        (nn.Sequential(nn.LayerNorm(3)), "robust", {}, "the model has 1 ln"),
        (nn.Sequential(nn.Flatten()), "robust", {}, "no normalisation layers"),
        (nn.Sequential(nn.BatchNorm2d(3)), "unmix_tns", {}, "did you mean 'unmix-tns'"),
        (nn.Sequential(nn.BatchNorm2d(3)), "iabn", {"kk": 1}, "did you mean 'k'"),
        (nn.Sequential(nn.BatchNorm2d(3)), "unmix-tns", {"components": 0}, "out of range"),
        (nn.Sequential(nn.BatchNorm2d(3)), "unmix-tns", {"components": 2.5}, "whole number"),
        (nn.Sequential(nn.BatchNorm2d(3)), "iabn", {"batch_statistics": "false"}, "true or false"),
        (nn.Sequential(nn.BatchNorm2d(3)), "robust", {"alpha": "0.1"}, "out of range"),
        (nn.Sequential(Strange(3)), "robust", {}, "forward of its own"),
        (
            nn.Sequential(nn.BatchNorm2d(3, track_running_stats=False)),
            "robust",
            {},
            "no running statistics",
        ),
    ],
)
def test_refusals(net: nn.Module, kind: str, options: dict, message: str) -> None:
    kinds = [type(module) for module in net.modules()]
    with pytest.raises(tta.AdapterError, match=message):
        norm_layers.replace(net, kind, **options)
    assert [type(module) for module in net.modules()] == kinds


def test_half_precision_and_autocast_compute_in_float32() -> None:
    for kind in norm_layers.KINDS:
        full = network().float()
        norm_layers.replace(full, kind)
        half = copy.deepcopy(full[1]).bfloat16()
        x = torch.randn(4, 6, 5, 5, generator=torch.Generator().manual_seed(0)) + 2
        with norm_layers.moving([half]):
            y = half(x.bfloat16())
        assert y.dtype == torch.bfloat16
        assert y.isfinite().all()
        expected = full[1](x)
        with torch.autocast("cpu", torch.bfloat16):
            torch.testing.assert_close(full[1](x), expected, rtol=0, atol=0)


# With other methods -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", sorted(norm_layers.KINDS))
def test_replaced_layers_are_adapted_and_never_set_to_batch_statistics(kind: str) -> None:
    net = network()
    norm_layers.replace(net, kind)
    assert norms.inventory(net) == "1 bn-like"
    assert norms.use_batch_statistics(net) == 0
    assert norms.blend_statistics(net, 0.5) == 0
    params = norms.enable_affine(net, kinds=("bn",))
    assert all(p is q for p, q in zip(params, net[1].parameters(), strict=True))
    with pytest.raises(tta.AdapterError, match="1 bn-like"):
        norms.enable_affine(net, kinds=("gn",))


def test_wrap_replaces_a_copy_and_moves_components_in_steps_alone() -> None:
    net = network()
    adapter = tta.wrap(
        net, "tent", lr=0.1, norm="unmix-tns", norm_options={"components": 4, "max_batch_size": 8}
    )
    assert isinstance(net[1], nn.BatchNorm2d)
    unmix = adapter.model[1]
    assert (unmix.components, unmix.max_batch_size) == (4, 8)
    start = unmix.component_means.clone()
    weight = unmix.weight.clone()
    adapter.predict(images(5))
    adapter(torch.full_like(images(2), float("nan")))
    assert torch.equal(unmix.component_means, start)
    adapter(images(5))
    assert not torch.equal(unmix.component_means, start)
    assert not torch.equal(unmix.weight, weight)
    adapter.reset()
    assert torch.equal(unmix.component_means, start)
    assert torch.equal(unmix.weight, weight)


def test_a_teacher_has_components_of_its_own() -> None:
    adapter = tta.wrap(network(), "rotta", norm="unmix-tns", update_every=4, capacity=4, nu=0.0)
    teacher, student = adapter.teacher[1], adapter.model[1]
    assert teacher.kind == student.kind == "unmix-tns"
    adapter(images(3))  # the teacher predicts, the student has nothing to learn yet
    assert torch.equal(
        student.component_means,
        tta.wrap(network(), "source", norm="unmix-tns").model[1].component_means,
    )
    assert not torch.equal(teacher.component_means, student.component_means)
    assert teacher.running_mean.data_ptr() != student.running_mean.data_ptr()
    assert adapter.teacher[0].weight is adapter.model[0].weight


def test_a_state_of_other_layers_is_refused() -> None:
    saved = tta.wrap(network(), "tent", norm="iabn").state_dict()
    for norm, options in ((None, {}), ("iabn", {"k": 3.0}), ("robust", {})):
        adapter = tta.wrap(network(), "tent", norm=norm, norm_options=options)
        with pytest.raises(tta.AdapterError, match="norm="):
            adapter.load_state_dict(saved)
    with pytest.raises(tta.AdapterError, match="without norm"):
        tta.wrap(network(), "tent", norm_options={"k": 3.0})


class _Replaced(Tent):
    """Tent that the conformance suite builds on replaced layers."""

    kind = ""

    def __init__(self, model: nn.Module, config: tta.AdapterConfig | None = None) -> None:
        norm_layers.replace(model, self.kind)
        super().__init__(model, config)


@pytest.mark.parametrize("kind", sorted(norm_layers.KINDS))
def test_tent_on_replaced_layers_passes_the_conformance_suite(kind: str) -> None:
    cls = type("On", (_Replaced,), {"kind": kind, "name": "on"})
    batches = list(images(20).split(5))
    for check in checks.yield_checks(cls):
        if check.name != "resumes_in_a_new_process":  # it cannot import a test module
            check(network(), batches)
