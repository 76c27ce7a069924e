"""COME: Tent, EATA or SAR with the entropy of an opinion, which keeps the model from certainty.

Zhang, Bian, Kong, Zhao, Zhang: COME: Test-time adaption by conservatively minimizing entropy, 2025,
arXiv:2410.10894. Reference code: BlueWhaleLab/COME @ 409a19b.

``host`` names the method that is built on: its selection, weights, update and recovery see the
opinion's entropy instead of the softmax's; the redundancy test of EATA goes on with the softmax.

Deviations:
- The number of classes is the model's; ``opinion_classes=1000`` is the literal of the official
  code. It is also the ``K`` of the thresholds, which are factors of ``ln K``.
- The opinion is a softmax over the scores and ``ln K``, so that large scores do not overflow.
- ``skip_top`` is ``"none"`` for every host; the reference leaves deep layers out with SAR
  (``skip_top="names"``).
- What ``eata`` and ``sar`` deviate in holds for the hosts.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from tta import hosts, losses, norms
from tta.adapter import Needs
from tta.config import param
from tta.factory import adapters
from tta.objective import EntropyAdapter, Objective
from tta.published import figures

PUBLISHED = (
    *figures(
        "BlueWhaleLab/COME",
        "README, table of ViT-B/16, batch 64, normal setting",
        {"imagenet-c/reset-50k/vit-b-16-augreg2-imagenet": 38.8},
        options={"host": "tent", "lr": 0.001},
        note="stated as accuracy",
    ),
    *figures(
        "BlueWhaleLab/COME",
        "README, table of ViT-B/16, batch 64, normal setting",
        {"imagenet-c/reset-50k/vit-b-16-augreg2-imagenet": 35.5},
        options={"host": "eata", "lr": 0.001},
        note="stated as accuracy",
    ),
    *figures(
        "BlueWhaleLab/COME",
        "README, table of ViT-B/16, batch 64, normal setting",
        {"imagenet-c/reset-50k/vit-b-16-augreg2-imagenet": 35.8},
        options={"host": "sar", "lr": 0.001},
        note="stated as accuracy",
    ),
)


@adapters.register()
class COME(EntropyAdapter):
    """The steps of the host over the opinion's entropy."""

    needs = Needs(norms=frozenset(norms.AFFINE_KINDS))
    check_options = (
        {"lr": 1e-2},
        # An untrained model is close to uniform: with these limits all of its samples pass.
        {"host": "eata", "lr": 1e-2, "entropy_margin": 1.5, "redundancy_margin": 1.5},
        {"host": "sar", "lr": 1e-2, "entropy_margin": 1.5, "opinion_classes": 1000},
    )

    @dataclass(frozen=True, kw_only=True, slots=True)
    class Config(hosts.HostConfig):
        """Defaults of the official configuration for ResNet-50."""

        opinion_classes: int | None = param(
            None,
            "weight K of the uncertainty; the model's classes if not set, 1000 officially",
            ge=1,
        )

    config: Config

    def setup(self) -> None:
        """What the host sets up."""
        hosts.prepare(self, self.config)

    def fit(self, batches: Iterable[Tensor]) -> None:
        """The Fisher information of source images, for the host ``eata``."""
        hosts.fit(self, batches, self.config)

    def adapt(self, x: Tensor) -> Tensor:
        """Images ``(B, C, H, W)`` to logits ``(B, K)`` from before the last update."""
        classes = self.config.opinion_classes
        opinion = partial(losses.opinion_entropy, classes=classes)
        return hosts.step(self, x, self.config, Objective(uncertainty=opinion, classes=classes))
