"""CMF: ROID's losses, with a Kalman-type filter between the weights, a hidden model and the source.

Lee, Chang: Continual momentum filtering on parameter space for online test-time adaptation, 2024,
https://openreview.net/forum?id=BllUWdpIOA.
Reference code: mariodoebler/test-time-adaptation @ 8b2ed63 (a re-implementation; the official code
was not consulted).

Returns the logits times the smoothed class prior of the batch, as ``roid`` does.

Deviations:
- All of ``roid``'s.
- The hidden model holds the adapted tensors alone: the others never leave their source values, and
  the hidden model is never evaluated.
- ``reset`` restores the variance of the filter too; the reference keeps it.
- The reference has two variants, "op" and "lp", which give the same numbers; this is one.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tta.adapters.roid import ROID
from tta.config import param
from tta.factory import adapters


@adapters.register()
class CMF(ROID):
    """ROID whose weight ensembling is continual momentum filtering."""

    check_options = ({"optimizer": "sgd", "lr": 1e-2}, {"process_noise": 0.5})

    @dataclass(frozen=True, kw_only=True, slots=True)
    class Config(ROID.Config):
        """Defaults of the reference's configuration, the same for all of its data sets."""

        source_momentum: float = param(
            0.99, "decay of the hidden model towards the source; CMF.ALPHA", ge=0, le=1
        )
        hidden_momentum: float = param(
            0.99, "share of the weights that is not the hidden model's; CMF.GAMMA", ge=0, le=1
        )
        process_noise: float = param(
            0.005, "q for 38,400 adapted numbers (ViT-B/16), scaled with their count; CMF.Q", gt=0
        )
        min_hidden: float = param(0.89, "smallest share that the hidden model keeps", ge=0, le=1)

    config: Config
    hidden: list[Tensor]
    variance: float

    def setup(self) -> None:
        """As ROID; the hidden model starts at the source, its variance at 0."""
        super().setup()
        self.add_state("hidden", [p.detach().clone() for p in self._params])
        self.add_state("variance", 0.0)
        numbers = sum(p.numel() for p in self._params)
        # A variance share: beyond 1 the observation noise 1 - q would be negative.
        self._process_noise = min(self.config.process_noise * numbers / 38_400, 1.0)

    def _ensemble(self) -> None:
        """Predict the hidden model, correct it by the weights, draw the weights to it."""
        config, noise = self.config, self._process_noise
        torch._foreach_lerp_(self.hidden, self.source_weights, 1 - config.source_momentum)
        predicted = config.source_momentum**2 * self.variance + noise
        keep = max((1 - noise) / (predicted + 1 - noise), config.min_hidden)
        if keep >= 0.9999:  # too little to merge
            keep = 1.0
        else:
            torch._foreach_lerp_(self.hidden, self._params, 1 - keep)
        self.variance = keep * predicted
        torch._foreach_lerp_(self._params, self.hidden, 1 - config.hidden_momentum)
