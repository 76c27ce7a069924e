"""Tent: adapt scale and shift of normalisation layers by minimising the entropy of predictions.

Wang, Shelhamer, Liu, Olshausen, Darrell: Tent: Fully test-time adaptation by entropy minimization,
2021, arXiv:2006.10726. Reference code: DequanWang/tent @ e9e926a.

Deviations:
- Only normalisation layers leave eval mode, so dropout and stochastic depth stay off; the reference
  puts the whole model in train mode.
- GroupNorm, LayerNorm, InstanceNorm and RMSNorm are adapted too (the reference: BatchNorm2d alone);
  ``norm_kinds=("bn",)`` restores its choice. ``skip_top="names"`` is the Tent baseline of the SAR
  and DeYO code.
- A layer that sees one value per channel uses its running statistics; the reference raises.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from tta import losses, norms
from tta.adapter import Adapter, Needs
from tta.config import param
from tta.factory import adapters
from tta.published import doebler_table, figures

PUBLISHED = (
    *figures(
        "DequanWang/tent",
        "README, CIFAR-10-C at severity 5",
        {"cifar10-c/reset/wrn-28-10": 18.6, "cifar10-c/reset/wrn-40-2-augmix": 12.1},
    ),
    *figures(
        "mr-eggplant/EATA",
        "README, ImageNet-C at severity 5, reset for each corruption",
        {"imagenet-c/reset-50k/resnet50": 57.4},
        note="mean of the table's 15 entries",
    ),
    *figures(
        "mr-eggplant/SAR",
        "README, label shifts with infinite imbalance ratio",
        {
            "imagenet-c/label-shift-50k/resnet50": 97.9,
            "imagenet-c/label-shift-50k/resnet50-gn": 78.0,
        },
        note="stated as accuracy",
    ),
    *figures(
        "mr-eggplant/SAR",
        "README, label shifts with infinite imbalance ratio",
        {"imagenet-c/label-shift-50k/vit-b-16-augreg-imagenet": 52.7},
        options={"lr": 0.001},
        note="stated as accuracy; ImageNet mean and std",
    ),
    *figures(
        "mr-eggplant/SAR issue 5",
        "table of ViT-B/16 with mean and std 0.5, label shifts",
        {"imagenet-c/label-shift-50k/vit-b-16-augreg": 37.9},
        options={"lr": 0.001},
        note="stated as accuracy, mean of the table's 15 entries",
    ),
    *doebler_table(continual=(20.0, 62.2, 62.6), mixed=(44.1, 82.5, 86.4)),
)


@adapters.register()
class Tent(Adapter):
    """Entropy minimisation, one step a batch; returns the logits from before the last step."""

    needs = Needs(norms=frozenset(norms.AFFINE_KINDS))

    @dataclass(frozen=True, kw_only=True, slots=True)
    class Config(norms.AffineConfig):
        """Defaults of the official CIFAR-10-C configuration."""

        optimizer: Literal["sgd", "adam", "adamw"] = param("adam", "update rule; official cfgs")

    config: Config

    def setup(self) -> None:
        """Batch statistics in every BatchNorm; gradients for scale and shift alone."""
        self.add_optimizer(self.config, norms.adapt_affine(self.model, self.config))

    def adapt(self, x: Tensor) -> Tensor:
        """Images ``(B, C, H, W)`` to logits ``(B, K)`` from before the last update; eq. 1."""
        for _ in range(self.config.steps):
            logits = self.logits(x)
            loss = losses.entropy(logits).mean()
            self.update(loss, images=len(x))
        self.record(loss=loss, entropy=loss, selected_fraction=1.0)
        return logits
