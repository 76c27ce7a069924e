"""Norm: replace or mix the statistics of BatchNorm layers with those of the test batch.

Schneider et al., Improving robustness against common corruptions by covariate shift adaptation,
2020, arXiv:2006.16971; Nado et al., Evaluating prediction-time batch normalization for robustness
under covariate shift, 2020, arXiv:2006.10963.
Reference code: mariodoebler/test-time-adaptation @ 8b2ed63 (BNTest, AlphaBatchNorm, EMABatchNorm).

Deviations:
- ``ema`` puts only BatchNorm layers in train mode for its first pass; the reference puts the whole
  model there, so its dropout layers are live while statistics are collected.
- A layer that sees one value per channel (one sample, 1x1 map) uses the running statistics; the
  reference raises or returns NaN.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from tta import norms
from tta.adapter import Adapter, Needs
from tta.config import AdapterConfig, param
from tta.errors import AdapterError
from tta.factory import adapters
from tta.published import doebler_table, figures

PUBLISHED = (
    *figures(
        "DequanWang/tent",
        "README, CIFAR-10-C at severity 5",
        {"cifar10-c/reset/wrn-28-10": 20.4, "cifar10-c/reset/wrn-40-2-augmix": 14.5},
    ),
    *figures(
        "mr-eggplant/EATA",
        "README, ImageNet-C at severity 5, reset for each corruption",
        {"imagenet-c/reset-50k/resnet50": 66.5},
        note="mean of the table's 15 entries; the row is commented out",
    ),
    *doebler_table(continual=(20.4, 35.4, 68.6), mixed=(33.8, 45.8, 82.5)),
)


_PRIOR = {"statistics": "alpha", "prior": 16.0}


@adapters.register()
class Norm(Adapter):
    """Prediction-time batch normalisation in its three common forms."""

    needs = Needs(gradients=False, norms=frozenset({"bn"}))
    predicts = "after"
    check_options = ({}, {"statistics": "alpha"}, {"statistics": "ema"}, _PRIOR)

    @dataclass(frozen=True, kw_only=True, slots=True)
    class Config(AdapterConfig):
        """Which statistics normalise the test batch."""

        statistics: Literal["test", "alpha", "ema"] = param(
            "test", "test: the batch alone; alpha: mixed with the source; ema: running average"
        )
        alpha: float = param(0.1, "weight of the batch in 'alpha'", ge=0, le=1)
        prior: float | None = param(
            None,
            "if set, alpha = n / (prior + n) for n images; section 3 of Schneider et al.",
            ge=0,
        )
        momentum: float | None = param(
            None, "weight of the batch in 'ema'; the layers' own if not set", gt=0, le=1
        )

    config: Config

    def setup(self) -> None:
        """Put the BatchNorm layers in the chosen mode."""
        config = self.config
        self._layers = [layer.module for layer in norms.find(self.model) if layer.kind == "bn"]
        if not self._layers:
            raise AdapterError(
                f"norm needs BatchNorm layers, the model has {norms.inventory(self.model)}: "
                "it would predict exactly like 'source'"
            )
        if config.statistics == "test":
            norms.use_batch_statistics(self.model)
        elif config.statistics == "alpha":
            alpha = config.alpha if config.prior is None else None
            norms.blend_statistics(self.model, alpha, config.prior or 0.0)
        elif config.momentum is not None:
            for layer in self._layers:
                layer.momentum = config.momentum  # type: ignore[assignment]

    def adapt(self, x: Tensor) -> Tensor:
        """Images ``(B, C, H, W)`` to logits ``(B, K)``; two forwards for ``ema``, else one."""
        with torch.no_grad():
            if self.config.statistics == "ema":
                self._update_running_statistics(x)
            return self.logits(x)

    def _update_running_statistics(self, x: Tensor) -> None:
        hooks = [
            layer.register_forward_pre_hook(norms.batch_mode_by_size) for layer in self._layers
        ]
        try:
            self.logits(x)
        finally:
            for hook in hooks:
                hook.remove()
            for layer in self._layers:
                layer.eval()
