"""UnMix-TNS: normalise each image by its own mixture of running components; forward only.

Tomar, Vray, Thiran, Bozorgtabar: Un-mixing test-time normalization statistics: combatting label
temporal correlation, 2024, arXiv:2401.08328. Reference code: devavratTomar/unmixtns @ 8e12b9f.

With a gradient method: ``tta.wrap(model, "tent", norm="unmix-tns")``.

Deviations:
- The momentum follows from the images in each forward; the reference fixes it from the configured
  batch size, which ``batch_size`` does.
- Only the steps of an adapter move the components; the reference moves them in every forward, those
  of an evaluation included.
- The initial noise is drawn on the CPU from a generator keyed by (seed, layer); the reference draws
  from torch's global generator of the model's device.
- The mixture is multiplied out about the source mean: equal numbers, no ``(B, K, C)`` tensor.
- Layers without momentum (cumulative averages) take 0.1, and layers without scale and shift work;
  the reference stops at both.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tta import norm_layers
from tta.adapter import Adapter, Needs
from tta.config import AdapterConfig, param
from tta.factory import adapters


@adapters.register()
class UnMixTNS(Adapter):
    """UnMix-TNS layers in place of BatchNorm, and nothing else."""

    needs = Needs(gradients=False, norms=frozenset({"bn"}))
    check_options = ({}, {"components": 1}, {"batch_size": 64})

    @dataclass(frozen=True, kw_only=True, slots=True)
    class Config(AdapterConfig):
        """Defaults of the official CIFAR runs; mixed domains use 128 components."""

        components: int = param(16, "K, components a layer; official run.sh, 128 if mixed", ge=1)
        temperature: float = param(0.07, "of the softmax over cosines; official code", gt=0)
        spread: float = param(0.5, "alpha: share of variance between components", ge=0, le=1)
        batch_size: int | None = param(
            None, "images a batch for the momentum; the actual number if not set", ge=1
        )
        max_batch_size: int = param(
            64,
            "batch size at which the momentum is BatchNorm's; official run.sh, ImageNet 16",
            ge=1,
        )

    config: Config

    def setup(self) -> None:
        """Replace every BatchNorm layer; their components are buffers of the model."""
        options = self.config.to_dict()
        del options["episodic"]
        norm_layers.replace(self.model, "unmix-tns", **options)

    def adapt(self, x: Tensor) -> Tensor:
        """Images ``(B, C, H, W)`` to logits ``(B, K)``, by the components from before ``x``."""
        with torch.no_grad():
            return self.logits(x)
