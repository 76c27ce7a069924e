"""Normalisation layers are found by what they are."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import nn

import tta
from tta import norms
from tta.architectures import CifarResNet


class RmsNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4))
        self.eps = 1e-6
        self.normalized_shape = (4,)


class Unrelated(nn.Module):
    """The name says norm, the behaviour does not."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4, 4))


class NormFreeBlock(Unrelated):
    pass


def test_kinds() -> None:
    from timm.layers import BatchNormAct2d, FrozenBatchNormAct2d, GroupNormAct, LayerNorm2d
    from torchvision.ops import FrozenBatchNorm2d

    expected = {
        nn.BatchNorm1d(4): "bn",
        nn.BatchNorm2d(4): "bn",
        nn.BatchNorm3d(4): "bn",
        nn.SyncBatchNorm(4): "bn",
        BatchNormAct2d(4): "bn",
        nn.GroupNorm(2, 4): "gn",
        GroupNormAct(4, num_groups=2): "gn",
        nn.LayerNorm(4): "ln",
        LayerNorm2d(4): "ln",
        nn.InstanceNorm2d(4, affine=True): "in",
        RmsNorm(): "rms",
        FrozenBatchNormAct2d(4): "frozen",
        FrozenBatchNorm2d(4): "frozen",
        NormFreeBlock(): None,
        nn.Linear(4, 4): None,
        nn.PReLU(4): None,
    }
    assert {type(m).__name__: norms.kind_of(m) for m in expected} == {
        type(m).__name__: kind for m, kind in expected.items()
    }


@pytest.mark.parametrize(
    ("name", "count", "kind"),
    [
        ("resnet50", 53, "bn"),
        ("efficientnet_b0", 49, "bn"),
        ("resnet50_gn", 53, "gn"),
        ("vit_tiny_patch16_224", 25, "ln"),
        ("convnext_atto", 17, "ln"),
        ("levit_128s", 52, "bn"),
    ],
)
def test_timm_models(name: str, count: int, kind: str) -> None:
    found = norms.find(timm.create_model(name))
    assert [layer.kind for layer in found] == [kind] * count


def skipped(model: nn.Module, skip: norms.Skip) -> set[str]:
    return norms.top_layers(model, skip)


def test_depth_finds_the_top_of_every_architecture() -> None:
    """The literal names of the reference match ResNet-50 and ViT-B/16 alone."""
    resnet = timm.create_model("resnet50_gn")
    assert skipped(resnet, "depth") == skipped(resnet, "names")
    assert len(skipped(resnet, "names")) == 10
    vit = timm.create_model("vit_tiny_patch16_224")
    assert skipped(vit, "depth") == skipped(vit, "names")
    assert len(skipped(vit, "names")) == 7
    for name in (
        "convnext_atto",
        "swin_tiny_patch4_window7_224",
        "efficientnet_b0",
        "levit_128s",
    ):
        model = timm.create_model(name)
        total = len(norms.find(model))
        assert 0 < len(skipped(model, "depth")) <= total / 2, name
        last = norms.find(model)[-1].name
        assert last in skipped(model, "depth"), name


def test_depth_without_timm_and_inside_a_wrapper() -> None:
    net = CifarResNet(20)
    top = skipped(net, "depth")
    names = [layer.name for layer in norms.find(net)]
    assert top == set(names[-len(top) :])
    assert len(top) == 4  # a quarter of the 18 that follow the first
    assert skipped(net, "names") == set()
    wrapped = nn.Sequential(timm.create_model("resnet50_gn"))
    bare = skipped(wrapped[0], "depth")
    assert skipped(wrapped, "depth") == {f"0.{name}" for name in bare}


def test_nothing_to_adapt_is_an_error_that_says_what_was_seen() -> None:
    free = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(3))
    free(torch.rand(1, 3, 8, 8))
    for method in ("tent", "deyo", "norm"):
        with pytest.raises(tta.AdapterError, match="no normalisation layers"):
            tta.wrap(free, method)
    plain = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, affine=False), nn.Flatten())
    with pytest.raises(tta.AdapterError, match="1 bn"):
        tta.wrap(plain, "tent")
    with pytest.raises(tta.AdapterError, match="25 ln"):
        tta.wrap(timm.create_model("vit_tiny_patch16_224"), "norm")


def test_one_value_per_channel_uses_the_source_statistics() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 5))
    x = torch.rand(1, 3, 3, 3)  # a 1x1 map
    for method in ("norm", "tent"):
        assert torch.equal(tta.wrap(net, method)(x), net.eval()(x))
