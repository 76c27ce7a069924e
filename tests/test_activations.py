"""Activations that do without a clone: the values and gradients of torch's own, bit for bit."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

import tta
from tta.activations import spare_clones

KINDS = [nn.ReLU6, nn.SiLU, nn.Hardswish]


def images(seed: int = 0) -> torch.Tensor:
    x = 5 * torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
    x.view(-1)[:6] = torch.tensor([0.0, 6.0, -0.0, -3.0, 3.0, 6.5])  # where the slopes change
    return x


def twins(kind: type[nn.Module]) -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    own = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), kind(inplace=True), nn.Flatten())
    other = copy.deepcopy(own)
    spare_clones(other)
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
    spare_clones(model)
    assert [type(module) for module in model] == before
