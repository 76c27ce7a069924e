"""ROID: certainty- and diversity-weighted likelihood ratios, weight ensembling, prior correction.

Marsden, Doebler, Yang: Universal test-time adaptation through weight ensembling, diversity
weighting, and prior correction, 2024, arXiv:2306.00650.
Reference code: mariodoebler/test-time-adaptation @ 8b2ed63 (the authors' own).

The returned scores are the logits *times* the smoothed class prior of the batch, as in the
reference: a product, not an added log-prior. ``prior_correction=False`` returns plain logits.

Deviations:
- Equal values (a batch of one, a collapsed model) normalise to 0, so their weights are 1; the
  reference divides 0 by 0 and its weights become NaN.
- The losses are divided by the size of the batch. The reference divides by the configured size,
  which makes the step of a short last batch smaller: ``loss_batch_size`` sets such a constant.
- Without weighting every image is kept; the reference fails there if consistency is on.
- The average of the class probabilities ignores a batch whose probabilities are not finite.
- ``predict`` returns plain logits, as the reference does between the updates of its window.
- Only normalisation layers leave eval mode. InstanceNorm and RMSNorm are adapted too.
- Parameters of the augmentation come from a generator keyed by (seed, step).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from tta import augment, losses, norm_layers, norms
from tta.adapter import Adapter, Needs
from tta.config import param
from tta.factory import adapters
from tta.published import doebler_table

PUBLISHED = (*doebler_table(continual=(16.2, 29.3, 54.5), mixed=(28.0, 35.0, 69.5)),)


@adapters.register()
class ROID(Adapter):
    """Weighted soft likelihood ratio with consistency; weights are drawn back to the source."""

    needs = Needs(norms=frozenset(norms.AFFINE_KINDS))
    check_options: ClassVar[tuple[Mapping[str, Any], ...]] = (
        {"optimizer": "sgd", "lr": 1e-2},
        {"prior_correction": False, "loss_batch_size": 8},
        {"weighting": False, "consistency": False},
    )

    @dataclass(frozen=True, kw_only=True, slots=True)
    class Config(norms.AffineConfig):
        """Defaults of the CIFAR-10-C configuration."""

        optimizer: Literal["sgd", "adam", "adamw"] = param("adam", "update rule; cfgs/cifar10_c")
        weighting: bool = param(
            True, "weight images by certainty and diversity; ROID.USE_WEIGHTING"
        )
        consistency: bool = param(
            True, "symmetric cross-entropy with an augmentation; ROID.USE_CONSISTENCY"
        )
        prior_correction: bool = param(
            True, "scores times the smoothed prior; ROID.USE_PRIOR_CORRECTION"
        )
        temperature: float = param(
            1 / 3, "tau of the weights exp(d c / tau); ROID.TEMPERATURE", gt=0
        )
        clip: float = param(0.99, "largest probability in the likelihood ratio", gt=0, lt=1)
        probs_momentum: float = param(
            0.9, "decay of the average prediction; ROID.MOMENTUM_PROBS", ge=0, le=1
        )
        source_momentum: float = param(
            0.99, "share of the weights that is not the source's; ROID.MOMENTUM_SRC", ge=0, le=1
        )
        loss_batch_size: int | None = param(
            None, "divisor of the losses; the size of the batch if not set", gt=0
        )

    config: Config
    source_weights: list[Tensor]
    class_probs: Tensor

    def setup(self) -> None:
        """Batch statistics, gradients for scale and shift, and the source's values of them."""
        params = norms.adapt_affine(self.model, self.config)
        self._params: list[Tensor] = [*params]
        self.add_optimizer(self.config, params)
        self.add_state("source_weights", [p.detach().clone() for p in self._params])
        self.add_state("class_probs", torch.zeros(0))  # (K,) from the first batch on

    def adapt(self, x: Tensor) -> Tensor:
        """Images ``(B, C, H, W)`` to scores ``(B, K)`` from before the last update."""
        for step in range(self.config.steps):
            logits = self._learn(x, step)
        return prior_corrected(logits) if self.config.prior_correction else logits

    def augment(self, x: Tensor, purpose: str) -> Tensor:
        """One random view of each image, the same parameters for all."""
        return augment.cotta(x, self.generator(purpose), padding="reflect", blur=False, noise=False)

    def _learn(self, x: Tensor, step: int) -> Tensor:
        config = self.config
        logits = self.logits(x)
        weight, kept = self._weights(logits.detach())
        loss = (weight * likelihood_ratio(logits, config.clip)[kept]).sum()
        images = len(x)
        if config.consistency:
            # Statistics that move by themselves are those of the stream: moved once a step.
            with norm_layers.moving(self._own_statistics, on=False):
                view = self.logits(self.augment(x[kept], f"consistency/{step}"))
            loss = loss + (weight * losses.symmetric_cross_entropy(view, logits[kept])).sum()
            images += len(kept)
        loss = loss / (config.loss_batch_size or len(x))
        self.update(loss, images=images)
        with torch.no_grad():
            self._ensemble()
        self.record(
            loss=loss, entropy=losses.entropy(logits).mean(), selected_fraction=len(kept) / len(x)
        )
        return logits.detach()

    def _weights(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Weights of the images that are learnt from, and their row numbers."""
        if not self.config.weighting:
            return logits.new_ones(len(logits)), torch.arange(len(logits), device=logits.device)
        probs = logits.softmax(dim=1)
        if not len(self.class_probs):
            self.class_probs = probs.new_full(probs.shape[1:], 1 / probs.shape[1])
        diversity = _unit_range(1 - F.cosine_similarity(self.class_probs[None], probs, dim=1))
        certainty = _unit_range(-losses.entropy(logits))
        weight = (diversity * certainty / self.config.temperature).exp()
        kept = (~(diversity < diversity.mean())).nonzero()[:, 0]
        average = self.class_probs.lerp(probs.mean(dim=0), 1 - self.config.probs_momentum)
        self.class_probs = torch.where(average.isfinite().all(), average, self.class_probs)
        return weight[kept], kept

    def _ensemble(self) -> None:
        """Draw the adapted weights back to the source."""
        torch._foreach_lerp_(self._params, self.source_weights, 1 - self.config.source_momentum)


def likelihood_ratio(logits: Tensor, clip: float) -> Tensor:
    """Soft likelihood ratio loss ``(B,)`` of logits ``(B, K)``, in nats; negative if sure."""
    probs = logits.softmax(dim=1).clamp(max=clip)
    return -(probs * (probs / (1 - probs) + 1e-5).log()).sum(dim=1)


def prior_corrected(logits: Tensor) -> Tensor:
    """Logits ``(B, K)`` times the smoothed mean prediction of the batch."""
    batch, classes = logits.shape
    prior = logits.softmax(dim=1).mean(dim=0)
    smooth = max(1 / batch, 1 / classes) / prior.max()
    return logits * ((prior + smooth) / (1 + smooth * classes))


def _unit_range(values: Tensor) -> Tensor:
    """Shift and scale to ``[0, 1]``; equal values become 0."""
    low, high = values.aminmax()
    return (values - low) / (high - low).clamp_min(torch.finfo(values.dtype).tiny)
