"""Small networks that learn from scratch, by name, with weights that a seed determines.

``mlp-100`` (two hidden layers of 100 units, the usual one of permuted MNIST: Lopez-Paz and Ranzato:
Gradient Episodic Memory for Continual Learning, 2017, arXiv:1706.08840), ``small-cnn``, and
``slim-resnet18-20``: a ResNet-18 (He et al., 2015, arXiv:1512.03385) with a 3x3 stem and without
max-pooling, whose first stage has 20 filters (64: the usual width). They take images in [0, 1].
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tta.errors import AdapterError

NAMES = {
    "mlp-100": "two hidden layers; any width: mlp-N",
    "small-cnn": "three convolutions of 32, 64, 128 filters with BatchNorm",
    "slim-resnet18-20": "ResNet-18 with 20 filters in its first stage; any width: slim-resnet18-N",
}
_FORM = re.compile(r"(mlp|slim-resnet18)(?:-(\d+))?|(small-cnn)")
_WIDTHS = {"mlp": 100, "slim-resnet18": 20}


def is_model(name: str) -> bool:
    """Whether ``build`` knows the name."""
    return _FORM.fullmatch(name) is not None


def build(
    name: str, num_classes: int, image_shape: tuple[int, int, int], *, seed: int = 0
) -> nn.Module:
    """A fresh network.

    Args:
        name: ``mlp-N``, ``small-cnn`` or ``slim-resnet18-N``; without ``-N`` the usual width.
        num_classes: Width ``K`` of the head.
        image_shape: ``(C, H, W)``.
        seed: Seed of the weights; the global generator is left as it was.

    Raises:
        AdapterError: For another name, or a width of zero.
    """
    found = _FORM.fullmatch(name)
    if found is None:
        raise AdapterError(f"no network is called {name!r}; there are {', '.join(NAMES)}")
    kind = found[1] or found[3]
    width = int(found[2] or _WIDTHS.get(kind, 1))
    if width < 1:
        raise AdapterError(f"{name} has no units: give a width of at least 1")
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return _BUILDERS[kind](width, num_classes, image_shape)


class Mlp(nn.Module):
    """Two hidden layers of the same width with ReLU.

    Args:
        width: Units of a hidden layer.
        num_classes: Width of the head.
        image_shape: ``(C, H, W)``.
    """

    def __init__(self, width: int, num_classes: int, image_shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Flatten(),
            nn.Linear(math.prod(image_shape), width),
            nn.ReLU(),
            nn.Linear(width, width),
            nn.ReLU(),
        )
        self.classifier = nn.Linear(width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``(B, K)``."""
        logits: Tensor = self.classifier(self.layers(x))
        return logits


class SmallCnn(nn.Module):
    """Three 3x3 convolutions with BatchNorm, each halving the image, and a mean over places.

    Args:
        num_classes: Width of the head.
        channels: Channels of the images.
    """

    def __init__(self, num_classes: int, channels: int) -> None:
        super().__init__()
        sizes = (channels, 32, 64, 128)
        self.layers = nn.Sequential(
            *(
                layer
                for before, after in pairwise(sizes)
                for layer in (
                    nn.Conv2d(before, after, 3, stride=2, padding=1, bias=False),
                    nn.BatchNorm2d(after),
                    nn.ReLU(),
                )
            )
        )
        self.classifier = nn.Linear(sizes[-1], num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``(B, K)``."""
        logits: Tensor = self.classifier(self.layers(x).mean((2, 3)))
        return logits


class Block(nn.Module):
    """Two 3x3 convolutions beside a shortcut.

    Args:
        before: Channels in.
        after: Channels out.
        stride: Stride of the first convolution.
    """

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(after)
        same = stride == 1 and before == after
        self.shortcut: nn.Module = (
            nn.Identity()
            if same
            else nn.Sequential(
                nn.Conv2d(before, after, 1, stride=stride, bias=False), nn.BatchNorm2d(after)
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        """Features ``(B, after, H / stride, W / stride)``."""
        made = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(made + self.shortcut(x))


class SlimResNet18(nn.Module):
    """ResNet-18 for small images.

    Args:
        width: Filters of the first stage; the others have 2, 4 and 8 times as many.
        num_classes: Width of the head.
        channels: Channels of the images.
    """

    def __init__(self, width: int, num_classes: int, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        blocks: list[nn.Module] = []
        before = width
        for stage in range(4):
            after = width * 2**stage
            blocks += [Block(before, after, 1 if stage == 0 else 2), Block(after, after, 1)]
            before = after
        self.blocks = nn.Sequential(*blocks)
        self.classifier = nn.Linear(before, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``(B, K)``."""
        features = self.blocks(F.relu(self.bn1(self.conv1(x)))).mean((2, 3))
        logits: Tensor = self.classifier(features)
        return logits


_BUILDERS: dict[str, Callable[[int, int, tuple[int, int, int]], nn.Module]] = {
    "mlp": Mlp,
    "small-cnn": lambda _, classes, shape: SmallCnn(classes, shape[0]),
    "slim-resnet18": lambda width, classes, shape: SlimResNet18(width, classes, shape[0]),
}
