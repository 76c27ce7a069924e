"""SAR: sharpness-aware entropy minimisation on reliable samples, with a recovery from collapse.

Niu, Wu, Zhang, Wen, Chen, Zhao, Tan: Towards stable test-time adaptation in dynamic wild world,
2023, arXiv:2302.12400. Reference code: mr-eggplant/SAR @ 20f6e24.

An empty selection has a gradient of zero, so the step is one of momentum alone, as in the
reference.

Deviations:
- ``recovery`` says what happens when the moving average of the loss falls below the threshold. In
  the official code the weights alone go back: the low average is put back after the reset, so the
  recovery fires again until the average has risen, and the momentum survives (``"official"``). The
  common re-implementation (mariodoebler/test-time-adaptation @ 8b2ed63) clears the average too
  (``"average"``). ``"full"`` clears the momentum as well, as the paper describes it.
- ``reset`` called from outside clears everything; in both codes the momentum survives it.
- The threshold is an option; a literal 0.2 in the official code.
- Thresholds of the entropy are factors of ``ln K`` for the model's own number of classes ``K``.
- Deep layers are left out by depth (``skip_top="depth"``); ``"names"`` is the reference's literal
  list, which matches ResNet-50 and timm's ViT-B/16 alone.
- Only normalisation layers leave eval mode. InstanceNorm and RMSNorm are adapted too.
- Any update rule can take the perturbed gradient; the reference has SGD alone, the default.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from tta import norms, sharpness
from tta.adapter import Needs
from tta.config import param
from tta.factory import adapters
from tta.objective import EntropyAdapter, Objective
from tta.published import doebler_table, figures

PUBLISHED = (
    *figures(
        "mr-eggplant/SAR",
        "README, label shifts with infinite imbalance ratio",
        {"imagenet-c/label-shift-50k/resnet50-gn": 62.8},
        std=0.6,
        note="stated as accuracy",
    ),
    *figures(
        "mr-eggplant/SAR",
        "README, label shifts with infinite imbalance ratio",
        {"imagenet-c/label-shift-50k/vit-b-16-augreg-imagenet": 42.0},
        std=0.5,
        options={"lr": 0.001},
        note="stated as accuracy; ImageNet mean and std",
    ),
    *figures(
        "mr-eggplant/SAR issue 5",
        "table of ViT-B/16 with mean and std 0.5, label shifts",
        {"imagenet-c/label-shift-50k/vit-b-16-augreg": 34.7},
        options={"lr": 0.001},
        note="stated as accuracy, mean of the table's 15 entries",
    ),
    *doebler_table(continual=(20.4, 32.0, 61.9), mixed=(33.8, 45.5, 79.4)),
)


@adapters.register()
class SAR(EntropyAdapter):
    """Two forwards and backwards a step; returns the logits of the first forward."""

    needs = Needs(norms=frozenset(norms.AFFINE_KINDS))
    check_options = (
        # An untrained model is close to uniform: with this margin all of its samples pass.
        {"entropy_margin": 1.5, "lr": 1e-2},
        # The recovery fires on the first of the suite's batches and not on all of them.
        {"entropy_margin": 1.5, "lr": 1e-2, "recovery_threshold": 1.6, "recovery": "average"},
        {"entropy_margin": 1.5, "lr": 1e-2, "recovery_threshold": 1.6, "recovery": "full"},
    )

    @dataclass(frozen=True, kw_only=True, slots=True)
    class Config(norms.AffineConfig):
        """Defaults of the official configuration for ResNet-50."""

        lr: float = param(2.5e-4, "learning rate; main.py at batch 64, ViT-B 1e-3", gt=0)
        entropy_margin: float = param(0.4, "E_0 as a factor of ln K; main.py", ge=0)
        rho: float = param(0.05, "radius of the perturbation; main.py", ge=0)
        recovery_threshold: float = param(0.2, "mean loss that triggers a recovery; sar.py", ge=0)
        recovery: sharpness.Recovery = param("official", sharpness.RECOVERY)
        skip_top: norms.Skip = param("depth", "deep layers to leave out; see Deviations")

    config: Config

    def setup(self) -> None:
        """Batch statistics in every BatchNorm; gradients for scale and shift below the top."""
        self.add_optimizer(self.config, norms.adapt_affine(self.model, self.config))
        sharpness.prepare_sar(self)

    def adapt(self, x: Tensor) -> Tensor:
        """Images ``(B, C, H, W)`` to logits ``(B, K)`` of the last step's first forward."""
        for _ in range(self.config.steps):
            logits = sharpness.sar_step(
                self,
                x,
                Objective(),
                margin=self.config.entropy_margin,
                rho=self.config.rho,
                threshold=self.config.recovery_threshold,
                recovery=self.config.recovery,
            )
        return logits
