"""AdaNPC-BN: AdaNPC whose test features pass an affine map trained by the entropy of the vote.

Zhang, Wang, Jin, Yuan, Zhang, Wang, Jin, Tan: AdaNPC: Exploring non-parametric classifier for
test-time adaptation, 2023, arXiv:2304.12566. Reference code: yfzhang114/AdaNPC @ 29fe27a.

Deviations:
- Those of ``adanpc``.
- The reference adds a BatchNorm1d, but runs it in eval mode on its fresh statistics (mean 0,
  variance 1): an affine map over ``sqrt(1 + 1e-5)``. So it is here.
- ``reset`` resets that map too; in the reference only a change of hyper-parameters does.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tta import losses, optim
from tta.adapter import Needs
from tta.adapters.adanpc import AdaNPC
from tta.config import param
from tta.factory import adapters


@adapters.register()
class AdaNPCBN(AdaNPC):
    """Nearest features after a learnt scale and shift of each dimension."""

    needs = Needs(source_data=True, source_labels=True)
    check_options = ({}, {"steps": 3, "neighbours": 2})

    @dataclass(frozen=True, kw_only=True, slots=True)
    class Config(AdaNPC.Config):
        """Defaults of the official code, where it has one; else the first of its grid."""

        neighbours: int = param(5, "k; official grid 1, 5; the vote of 1 has no gradient", ge=1)
        lr: float = param(5e-5, "of Adam: pre-training's 5e-5 times the grid 0.1, 1, 10", gt=0)
        weight_decay: float = param(0.0, "of Adam; that of pre-training", ge=0)
        steps: int = param(1, "gamma, updates a batch; official grid 1, 3", ge=1)

    config: Config

    def setup(self) -> None:
        """The memory, and the affine map with its optimiser."""
        super().setup()
        config = self.config
        weight, _ = self._tap.weights(self.model)
        self.affine = nn.BatchNorm1d(self._tap.dim).to(weight).eval()
        rule = optim.GradientConfig(
            optimizer="adam", lr=config.lr, weight_decay=config.weight_decay
        )
        self.add_optimizer(rule, list(self.affine.parameters()))

    def adapt(self, x: Tensor) -> Tensor:
        """Images ``(B, C, H, W)`` to scores ``(B, K)`` from before the last update.

        Each of the ``steps`` stores the batch again, as the reference does.
        """
        self.count_forwards(len(x))
        with torch.no_grad():
            raw, _ = self._tap(self.model, x)
        for _ in range(self.config.steps):
            features = self.affine(raw)
            votes = self.vote(features)
            # The vote is read as logits: a second softmax, as in the reference.
            loss = losses.entropy(votes).mean()
            self.update(loss, images=len(x))
            self.take_in(features.detach(), votes.detach())  # those of before the update
        self.record(loss=loss, entropy=loss)
        return self.scores(votes)

    def _look_up(self, x: Tensor) -> Tensor:
        return self.scores(self.vote(self.affine(self._tap(self.model, x)[0])))
