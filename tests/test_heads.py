"""Where the classifier is found, and that the tap reads what enters it and leaves no trace."""

from __future__ import annotations

import copy
import pickle

import pytest
import timm
import torch
from torch import nn

import tta
from tta.architectures import CifarResNet
from tta.backbones import Normalized, load
from tta.heads import Tap, find_head
from tta.masking import Masked


@pytest.fixture(autouse=True)
def _seed():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def timm_net(name: str) -> nn.Module:
    size = {"img_size": 32} if name == "test_vit" else {}
    return timm.create_model(name, num_classes=10, **size)


def torchvision_like() -> nn.Module:
    """Features, pooling, and a classifier of several layers, as VGG and EfficientNet have it."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(1),
        nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Dropout(), nn.Linear(12, 10)),
    )


def conv_head() -> nn.Module:
    """SqueezeNet's form: a 1x1 convolution after the pooling."""
    pooled = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1))
    return nn.Sequential(pooled, nn.Conv2d(8, 10, 1), nn.Flatten(1))


MODELS = {
    "test_vit": (lambda: timm_net("test_vit"), "head"),
    "test_efficientnet": (lambda: timm_net("test_efficientnet"), "classifier"),
    "test_byobnet": (lambda: timm_net("test_byobnet"), "head.fc"),
    "torchvision_like": (torchvision_like, "5.3"),
    "conv_head": (conv_head, "1"),
    "cifar_resnet": (lambda: CifarResNet(8), "fc"),
    "embedded": (lambda: load("fashion-resnet").model, "model.head.fc"),
    "sequential": (lambda: nn.Sequential(timm_net("test_vit"), nn.Dropout(0.5)), "0.head"),
    "normalized": (lambda: Normalized(CifarResNet(8), (0.5,) * 3, (0.2,) * 3), "model.fc"),
    "linear_probe": (lambda: nn.Sequential(timm_net("test_byobnet"), nn.Linear(10, 4)), "1"),
    "weight_norm": (
        lambda: nn.Sequential(
            nn.Flatten(1), nn.utils.parametrizations.weight_norm(nn.Linear(3072, 5))
        ),
        "1",
    ),
}


@pytest.mark.parametrize("key", MODELS)
def test_features_enter_the_head_and_the_head_gives_the_logits(key: str) -> None:
    build, name = MODELS[key]
    net = build().eval()
    tap = Tap(net)
    assert tap.name == name
    assert tap.head(net) is find_head(net)[1]
    x = torch.rand(3, 3, 32, 32)
    plain = net(x)
    features, logits = tap(net, x)
    assert torch.equal(logits, plain)
    assert features.shape == (3, tap.dim)
    assert logits.shape == (3, tap.classes)
    torch.testing.assert_close(tap.classify(net, features), logits)
    assert not tap.head(net)._forward_pre_hooks


def test_the_graph_is_kept() -> None:
    net = CifarResNet(8).eval()
    features, logits = Tap(net)(net, torch.rand(2, 3, 32, 32))
    (features.sum() + logits.sum()).backward()
    assert net.conv1.weight.grad is not None
    assert net.fc.weight.grad is not None


def test_a_tap_serves_deep_copies_and_holds_no_model() -> None:
    net = nn.Sequential(CifarResNet(8).eval(), nn.Dropout())
    tap = copy.deepcopy(pickle.loads(pickle.dumps(Tap(net))))
    assert vars(tap) == {"name": "0.fc", "dim": 64, "classes": 10}
    teacher = copy.deepcopy(net).eval()
    with torch.no_grad():
        teacher[0].fc.weight.zero_()
    x = torch.rand(2, 3, 32, 32)
    features, logits = tap(teacher, x)
    torch.testing.assert_close(logits, teacher[0].fc.bias.expand(2, -1))
    torch.testing.assert_close(features, tap(net.eval(), x)[0])


def test_masks_select_the_classes_of_the_head() -> None:
    inner = Masked(CifarResNet(8), [7, 2, 5], 10)
    net = Masked(nn.Sequential(inner, nn.Dropout()), [2, 0], 3).eval()
    tap = Tap(net)
    features, logits = tap(net, torch.rand(2, 3, 32, 32))
    assert tap.classes == 2
    torch.testing.assert_close(tap.classify(net, features), logits)
    weight, bias = tap.weights(net)
    assert torch.equal(weight, inner.model.fc.weight[[5, 7]])
    assert bias is not None
    assert torch.equal(bias, inner.model.fc.bias[[5, 7]])


def test_the_hook_goes_when_the_forward_fails() -> None:
    net = CifarResNet(8)
    with pytest.raises(RuntimeError):
        Tap(net)(net, torch.rand(2, 5, 32, 32))
    assert not net.fc._forward_pre_hooks


@pytest.mark.parametrize(
    ("net", "said"),
    [
        (nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)), "BatchNorm2d there"),
        (nn.Conv2d(3, 8, 3), "Conv2d there"),
        (nn.Flatten(1), "nothing with weights"),
        (timm.create_model("test_efficientnet", num_classes=0), "BatchNormAct2d there"),
    ],
)
def test_a_net_without_a_linear_head_is_refused(net: nn.Module, said: str) -> None:
    with pytest.raises(tta.AdapterError, match=rf"nn\.Linear or a 1x1 nn\.Conv2d .*{said}"):
        Tap(net)


def test_two_classifiers_are_refused() -> None:
    net = CifarResNet(8)
    net.get_classifier = lambda: (net.fc, net.fc)
    with pytest.raises(tta.AdapterError, match="one linear classifier, CifarResNet averages 2"):
        Tap(net)


def test_a_dense_head_and_an_unused_head_are_refused_with_what_was_seen() -> None:
    dense = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 10, 1))
    with pytest.raises(tta.AdapterError, match=r"sees \(2, 8, 6, 6\) for 2 images"):
        Tap(dense)(dense, torch.rand(2, 3, 8, 8))
    net = CifarResNet(8)
    net.forward = lambda x: x.mean((2, 3))
    with pytest.raises(tta.AdapterError, match="applied 0 times"):
        Tap(net)(net, torch.rand(2, 3, 8, 8))
