"""EATA: entropy of reliable, non-redundant samples, with a Fisher-weighted pull to the source.

Niu, Wu, Zhang, Chen, Zheng, Zhao, Tan: Efficient test-time model adaptation without forgetting,
2022, arXiv:2204.02610. Reference code: mr-eggplant/EATA @ f739b36.

The Fisher information is that of the images given to ``fit_source`` (2,000 in the code): the
squared gradient of a batch, averaged over the batches, so batch size and order belong to the run.
``fisher_weight=0`` is ETA and needs no source images.

Deviations:
- The Fisher information is that of clean images, as in both codes (official: of the validation set;
  mariodoebler/test-time-adaptation @ 8b2ed63: of the training set). ``fisher_from="test"`` follows
  the paper's text, which takes test samples: each of the first batches adds to it, at the source
  weights, before it is learnt from.
- Thresholds are factors of ``ln K`` for the model's own number of classes ``K``.
- ``reset`` clears the mean prediction, as the common re-implementation does; the official code
  keeps it: ``reset_mean=False``. Fisher information and source weights stay in both.
- The common re-implementation steps with Nesterov momentum or Adam; the defaults are the official.
- Only normalisation layers leave eval mode, so dropout and stochastic depth stay off. GroupNorm,
  LayerNorm, InstanceNorm and RMSNorm are adapted too (the reference: BatchNorm2d alone).
- Source images whose gradient is not finite are an error.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor

from tta import norms, reliable
from tta.adapter import Needs
from tta.factory import adapters
from tta.objective import EntropyAdapter, Objective
from tta.published import doebler_table, figures

PUBLISHED = (
    *figures(
        "mr-eggplant/EATA",
        "README, ImageNet-C at severity 5, reset for each corruption",
        {"imagenet-c/reset-50k/resnet50": 52.2},
        note="mean of the table's 15 entries",
    ),
    *figures(
        "mr-eggplant/EATA",
        "README, lifelong",
        {"imagenet-c/lifelong-50k/resnet50": 52.0},
        note="mean of the table's 15 entries",
    ),
    *figures(
        "mr-eggplant/SAR",
        "README, label shifts with infinite imbalance ratio",
        {"imagenet-c/label-shift-50k/resnet50-gn": 68.4},
        note="stated as accuracy",
    ),
    *figures(
        "mr-eggplant/SAR",
        "README, label shifts with infinite imbalance ratio",
        {"imagenet-c/label-shift-50k/vit-b-16-augreg-imagenet": 50.1},
        options={"lr": 0.001},
        note="stated as accuracy; ImageNet mean and std",
    ),
    *doebler_table(continual=(17.9, 32.2, 58.0), mixed=(28.6, 36.9, 72.3)),
)


@adapters.register()
class Eata(EntropyAdapter):
    """ETA's loss plus ``beta * sum F (theta - theta_0) ** 2``."""

    needs = Needs(source_data=True, norms=frozenset(norms.AFFINE_KINDS))
    check_options = (
        # An untrained model is close to uniform: with these limits all of its samples pass.
        {"entropy_margin": 1.5, "redundancy_margin": 1.5, "lr": 1e-2},
        {
            "entropy_margin": 1.5,
            "redundancy_margin": 1.5,
            "lr": 1e-2,
            "fisher_from": "test",
            "fisher_images": 8,
        },
        {"entropy_margin": 1.5, "lr": 1e-2, "fisher_weight": 0.0},
    )

    @dataclass(frozen=True, kw_only=True, slots=True)
    class Config(reliable.EataConfig):
        """Defaults of the official ImageNet-C configuration."""

    config: Config

    def setup(self) -> None:
        """As for ETA, and the Fisher information with the weights that it belongs to."""
        self.add_optimizer(self.config, norms.adapt_affine(self.model, self.config))
        reliable.prepare_eata(self, self.config)

    def fit(self, batches: Iterable[Tensor]) -> None:
        """Fisher information of source images ``(B, C, H, W)`` under their pseudo-labels."""
        if self.config.fisher_weight > 0:
            reliable.fit_fisher(self, batches)

    def adapt(self, x: Tensor) -> Tensor:
        """Images ``(B, C, H, W)`` to logits ``(B, K)`` from before the last update."""
        for _ in range(self.config.steps):
            logits = reliable.eata_step(self, x, self.config, Objective())
        return logits
