"""CIFAR ResNets of any depth ``6n + 2`` with parameter-free ("option A") shortcuts.

He, Zhang, Ren, Sun: Deep residual learning for image recognition, 2015, arXiv:1512.03385, 4.2.
Public CIFAR checkpoints (ResNet-20, -32, -44, -56, -110) use these shapes; timm has no equivalent.
"""

from __future__ import annotations

import re

import torch.nn.functional as F
from torch import Tensor, nn

_NAME = re.compile(r"(?:cifar-)?resnet-?(\d+)")


class BasicBlock(nn.Module):
    """Two 3x3 convolutions; the shortcut subsamples by 2 and pads the channels with zeros."""

    inplace = True

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, 1, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self._stride = stride
        self._pad = (out_channels - in_channels) // 2

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, in_channels, H, W)`` to ``(B, out_channels, H / stride, W / stride)``."""
        out = F.relu(self.bn1(self.conv1(x)), inplace=self.inplace)
        out = self.bn2(self.conv2(out))
        shortcut = x
        if self._stride != 1 or self._pad:
            strided = x[:, :, :: self._stride, :: self._stride]
            shortcut = F.pad(strided, (0, 0, 0, 0, self._pad, self._pad))
        # The backward of a normalisation needs what it got, not what it gave.
        out = out.add_(shortcut) if self.inplace else out + shortcut
        return F.relu(out, inplace=self.inplace)


class CifarResNet(nn.Module):
    """ResNet for 32x32 images: stages of 16, 32 and 64 channels, ``(depth - 2) / 6`` blocks each.

    Args:
        depth: Number of weighted layers, ``6n + 2`` (20, 32, 44, 56, 110, ...).
        num_classes: Width of the classifier ``fc``.

    Raises:
        ValueError: If ``depth`` is not of the form ``6n + 2``.
    """

    inplace = True

    def __init__(self, depth: int, num_classes: int = 10) -> None:
        super().__init__()
        if depth < 8 or (depth - 2) % 6:
            raise ValueError(f"a CIFAR ResNet has depth 6n + 2 (20, 32, 44, ...), got {depth}")
        blocks = (depth - 2) // 6
        self.conv1 = nn.Conv2d(3, 16, 3, 1, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = self._stage(16, 16, blocks, stride=1)
        self.layer2 = self._stage(16, 32, blocks, stride=2)
        self.layer3 = self._stage(32, 64, blocks, stride=2)
        self.fc = nn.Linear(64, num_classes)

    @staticmethod
    def _stage(in_channels: int, out_channels: int, blocks: int, stride: int) -> nn.Sequential:
        first = BasicBlock(in_channels, out_channels, stride)
        rest = (BasicBlock(out_channels, out_channels, 1) for _ in range(blocks - 1))
        return nn.Sequential(first, *rest)

    def forward(self, x: Tensor) -> Tensor:
        """Map normalised images ``(B, 3, 32, 32)`` to logits ``(B, K)``."""
        out = F.relu(self.bn1(self.conv1(x)), inplace=self.inplace)
        out = self.layer3(self.layer2(self.layer1(out)))
        logits: Tensor = self.fc(out.mean(dim=(2, 3)))
        return logits


def depth_of(name: str) -> int | None:
    """Depth named by ``cifar-resnet20`` or ``resnet20``; ``None`` if ``name`` is neither."""
    match = _NAME.fullmatch(name)
    return int(match.group(1)) if match else None


def rename_public_keys(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Map the keys of the public checkpoints (``module.`` prefix, ``linear`` head) to ours."""
    return {
        key.removeprefix("module.").replace("linear.", "fc."): value for key, value in state.items()
    }
