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

PUBLISHED = {
    "cifar10-c/reset/wrn-28-10": {"error_pct": 18.6, "where": "DequanWang/tent README, severity 5"},
    "cifar10-c/continual/wrn-28-10": {
        "error_pct": 20.0,
        "where": "mariodoebler/test-time-adaptation benchmark.md, severity 5",
    },
    "imagenet-c/reset-50k/resnet50": {
        "error_pct": 57.4,
        "where": "mr-eggplant/EATA README, severity 5, mean of 15",
    },
}


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
