"""OSTTA: minimise entropy where adaptation did not lower the confidence in the source's answer.

Lee, Das, Choo, Choi: Towards open-set test-time adaptation utilizing the wisdom of crowds in
entropy minimization, 2023, arXiv:2308.06879. Reference code: gaozhengqing/UniEnt @ af7faa8 (a
re-implementation by others; no official code is known).

``host`` names the entropy method whose samples are filtered: Tent as in the paper's main results,
EATA or SAR. For methods of your own the filter is ``tta.crowd.not_less_confident``.

Deviations:
- An empty selection skips the step, marginal term and all; the reference steps with NaN. SAR as the
  host goes on with the marginal term and its momentum.
- The source model shares all weights but the adapted ones with the adapting model: same outputs, no
  copy of the model. ``anchor="running"`` keeps a copy that normalises with the source statistics;
  the reference uses batch statistics.
- The marginal term survives a mean probability of zero; the reference gets NaN.
- Only normalisation layers leave eval mode. All kinds of normalisation layers are adapted (the
  reference: BatchNorm2d, and LayerNorm on ImageNet).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from tta import crowd, ema, hosts, losses, norms, optim
from tta.adapter import Needs
from tta.config import param
from tta.factory import adapters
from tta.objective import EntropyAdapter, Objective


@adapters.register()
class OSTTA(EntropyAdapter):
    """The steps of the host on filtered samples, and the entropy of the mean prediction held up."""

    needs = Needs(norms=frozenset(norms.AFFINE_KINDS))
    check_options = (
        {"lr": 1e-2},
        {"lr": 1e-2, "anchor": "running", "marginal_weight": 0.0},
        # An untrained model is close to uniform: with these limits all of its samples pass.
        {"host": "eata", "lr": 1e-2, "entropy_margin": 1.5, "redundancy_margin": 1.5},
        {"host": "sar", "lr": 1e-2, "entropy_margin": 1.5},
    )

    @dataclass(frozen=True, kw_only=True, slots=True)
    class Config(hosts.HostConfig):
        """Defaults of the reference's CIFAR configuration."""

        optimizer: Literal["sgd", "adam", "adamw"] = param("adam", "update rule; UniEnt, CIFAR")
        lr: float = param(1e-3, "learning rate; UniEnt", gt=0)
        marginal_weight: float = param(
            0.5, "alpha, weight of the mean prediction's entropy; UniEnt, from .1 .2 .5 1", ge=0
        )
        anchor: Literal["batch", "running"] = param(
            "batch", "statistics of the source model: of the batch, or its own"
        )

    config: Config
    source_params: list[Tensor]

    def setup(self) -> None:
        """What the host sets up, and the source model."""
        if self.config.anchor == "running":
            self.source_model = ema.frozen_copy(self.model)  # before the modes change
        hosts.prepare(self, self.config)
        if self.config.anchor == "batch":
            params = optim.params_of(self.optimizer)
            self.add_state("source_params", [p.detach().clone() for p in params])

    def fit(self, batches: Iterable[Tensor]) -> None:
        """The Fisher information of source images, for the host ``eata``."""
        hosts.fit(self, batches, self.config)

    def adapt(self, x: Tensor) -> Tensor:
        """Images ``(B, C, H, W)`` to logits ``(B, K)`` from before the last update."""
        source_logits = self.source_logits(x)
        weight = self.config.marginal_weight
        objective = Objective(
            keep=partial(crowd.not_less_confident, source_logits=source_logits),
            terms=(lambda logits: -weight * losses.marginal_entropy(logits),) if weight else (),
        )
        return hosts.step(self, x, self.config, objective)

    @torch.no_grad()
    def source_logits(self, x: Tensor) -> Tensor:
        """Logits ``(B, K)`` of the source model for ``x`` ``(B, C, H, W)``."""
        if self.config.anchor == "running":
            self.count_forwards(len(x))
            out: Tensor = self.source_model(x)
            return out
        # On the very path of the adapting model: equal weights give equal bits, and ties count.
        with self.weights_at(self.source_params):
            return self.logits(x)
