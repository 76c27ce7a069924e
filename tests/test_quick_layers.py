"""Layers that do with fewer passes: the values and gradients of torch's and timm's, bit for bit."""

from __future__ import annotations

import copy
import pickle

import pytest
import timm
import torch
from timm.layers import Conv2dSame
from torch import nn

import tta
from tta import quick_layers
from tta.quick_layers import quicken

KINDS = [nn.ReLU6, nn.SiLU, nn.Hardswish]


def images(seed: int = 0) -> torch.Tensor:
    x = 5 * torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
    x.view(-1)[:6] = torch.tensor([0.0, 6.0, -0.0, -3.0, 3.0, 6.5])  # where the slopes change
    return x


def twins(kind: type[nn.Module]) -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    own = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), kind(inplace=True), nn.Flatten())
    other = copy.deepcopy(own)
    quicken(other)
    assert type(other[2]) is not type(own[2])
    assert isinstance(other[2], kind)
    return own, other


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_values_and_gradients_are_torchs(kind: type[nn.Module], dtype: torch.dtype) -> None:
    found = []
    for module in (kind(inplace=True), copy.deepcopy(twins(kind)[1][2])):
        leaf = images().to(dtype).requires_grad_()
        out = module(leaf * 1)
        (out * images(1).to(dtype)).sum().backward()
        found.append((out.detach(), leaf.grad))
    for own, other in zip(*found, strict=True):
        assert torch.equal(own, other)


@pytest.mark.parametrize("kind", KINDS)
def test_without_a_graph_it_still_works_in_place(kind: type[nn.Module]) -> None:
    x = images()
    with torch.no_grad():
        assert twins(kind)[1][2](x) is x


def test_nothing_but_the_output_is_kept_for_the_backward() -> None:
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        x = images().requires_grad_() * 1
        kept.clear()
        out = twins(nn.ReLU6)[1][2](x)
    (saved,) = kept
    assert saved.data_ptr() == out.data_ptr() == x.data_ptr()


@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_of_it_is_the_same(kind: type[nn.Module]) -> None:
    """``wrap`` replaces them in its copy, and leaves the caller's model and one in place alone."""
    model = nn.Sequential(twins(kind)[0], nn.Linear(216, 5))
    quick = tta.wrap(model, "tent", lr=0.1)
    plain = tta.wrap(copy.deepcopy(model), "tent", lr=0.1, inplace=True)
    assert type(model[0][2]) is type(plain.model[0][2]) is kind
    assert type(quick.model[0][2]) is not kind
    for seed in range(3):
        assert torch.equal(quick(images(seed).clamp(0, 1)), plain(images(seed).clamp(0, 1)))
    assert set(quick.state_dict()) == set(plain.state_dict())
    assert type(pickle.loads(pickle.dumps(quick.model))[0][2]) is type(quick.model[0][2])


def test_other_classes_and_other_modes_stay() -> None:
    class Own(nn.ReLU6):
        pass

    model = nn.Sequential(Own(inplace=True), nn.ReLU6(), nn.ReLU(inplace=True))
    before = [type(module) for module in model]
    quicken(model)
    assert [type(module) for module in model] == before


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("size", [(8, 8), (9, 7), (7, 10)])
@pytest.mark.parametrize(
    ("kernel", "stride", "dilation"), [(3, 2, 1), (5, 2, 1), (4, 3, 2), (1, 2, 1)]
)
def test_same_convolutions_are_timms(kernel, stride, dilation, size, layout) -> None:
    torch.manual_seed(0)
    own = Conv2dSame(4, 6, kernel, stride, dilation=dilation, groups=2)
    other = copy.deepcopy(own)
    quicken(other)
    assert type(other) is not type(own)
    found = []
    for module in (own, other):
        leaf = torch.randn(2, 4, *size, generator=torch.Generator().manual_seed(1))
        leaf = leaf.contiguous(memory_format=layout).requires_grad_()
        out = module(leaf)
        (out * out.detach().cos()).sum().backward()
        found.append((out.detach(), leaf.grad, module.weight.grad, module.bias.grad))
    for a, b in zip(*found, strict=True):
        assert torch.equal(a, b)
    with torch.no_grad():
        assert torch.equal(other(leaf), found[0][0])


def test_an_efficientnet_is_the_same() -> None:
    model = timm.create_model("tf_efficientnet_lite0", num_classes=7).eval()
    quick, plain = (tta.wrap(copy.deepcopy(model), "tent", inplace=own) for own in (False, True))
    kinds = {type(module) for module in quick.model.modules()}
    assert {quick_layers.ReLU6, quick_layers.Conv2dSame} <= kinds
    assert not any(type(module).__module__.startswith("tta.") for module in plain.model.modules())
    for seed in range(2):
        x = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(seed))
        assert torch.equal(quick(x), plain(x))
    pickle.loads(pickle.dumps(quick.model))
