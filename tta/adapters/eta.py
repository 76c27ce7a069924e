"""ETA: minimise entropy on reliable and non-redundant samples, the confident ones weighted up.

Niu, Wu, Zhang, Chen, Zheng, Zhao, Tan: Efficient test-time model adaptation without forgetting,
2022, arXiv:2204.02610 (EATA without its pull to the source weights).
Reference code: mr-eggplant/EATA @ f739b36.

Deviations:
- Thresholds are factors of ``ln K`` for the model's own number of classes ``K``.
- ``reset`` clears the mean prediction, as the common re-implementation
  (mariodoebler/test-time-adaptation @ 8b2ed63) does; the official code keeps it:
  ``reset_mean=False``.
- The common re-implementation steps with Nesterov momentum or Adam (``nesterov``, ``optimizer``);
  the defaults are the official ones.
- Only normalisation layers leave eval mode, so dropout and stochastic depth stay off. GroupNorm,
  LayerNorm, InstanceNorm and RMSNorm are adapted too (the reference: BatchNorm2d alone).
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from tta import norms, reliable
from tta.adapter import Needs
from tta.factory import adapters
from tta.objective import EntropyAdapter, Objective
from tta.published import figures

_RESERVOIR = "ReservoirTTA paper, arXiv:2505.14511"
_VISIT = "table of the recurring stream without label correlation, visit 1"
PUBLISHED = (
    *figures(
        "mr-eggplant/EATA",
        "README, ImageNet-C at severity 5, reset for each corruption",
        {"imagenet-c/reset-50k/resnet50": 51.9},
        note="mean of the table's 15 entries",
    ),
    *figures(
        _RESERVOIR,
        _VISIT,
        {
            "cifar10-c/continual/wrn-28-10": 17.8,
            "cifar100-c/continual/resnext-29": 32.0,
            "imagenet-c/continual-5k/resnet50": 60.0,
        },
    ),
)


@adapters.register()
class Eta(EntropyAdapter):
    """Weighted entropy of the selected samples; an empty selection changes nothing."""

    needs = Needs(norms=frozenset(norms.AFFINE_KINDS))
    check_options = (
        # An untrained model is close to uniform: with these limits all of its samples pass.
        {"entropy_margin": 1.5, "redundancy_margin": 1.5, "lr": 1e-2},
        # The second batch is redundant.
        {"entropy_margin": 1.5, "lr": 1e-2},
    )

    @dataclass(frozen=True, kw_only=True, slots=True)
    class Config(reliable.EtaConfig):
        """Defaults of the official ImageNet-C configuration."""

    config: Config

    def setup(self) -> None:
        """Batch statistics in every BatchNorm; gradients for scale and shift; no mean yet."""
        self.add_optimizer(self.config, norms.adapt_affine(self.model, self.config))
        reliable.prepare_eta(self)

    def adapt(self, x: Tensor) -> Tensor:
        """Images ``(B, C, H, W)`` to logits ``(B, K)`` from before the last update."""
        for _ in range(self.config.steps):
            logits = reliable.eta_step(self, x, self.config, Objective())
        return logits
