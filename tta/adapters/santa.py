"""SANTA: hold the predictions to those of the source model, pull features to source prototypes.

Chakrabarty, Sreenivas, Biswas: SANTA: Source anchoring network and target alignment for continual
test time adaptation, 2023, https://openreview.net/forum?id=V7guVYzvE4.
Reference code: mariodoebler/test-time-adaptation @ 8b2ed63 (a re-implementation; the official code
was not consulted).

Needs labelled source images once, for the class means: it is not source-free.

Deviations:
- The anchor is the source's scale and shift put into the student's own modules, not a second model.
- Class means are taken over all source images given; the reference stops past 100,000. A class
  without an image is never the nearest; its mean in the reference is NaN.
- The projector's weights, augmentation and all come from generators keyed by (seed, step).
- Only normalisation layers leave eval mode. InstanceNorm and RMSNorm are adapted too.
- A layer that sees one value per channel uses its running statistics; the reference raises.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from tta import augment, contrast, losses, mean_teacher, norm_layers, norms, source
from tta.adapter import Adapter, Needs
from tta.config import param
from tta.factory import adapters
from tta.heads import Tap


@adapters.register()
class SANTA(Adapter):
    """Cross-entropy with the source model and a contrastive loss with source class means."""

    needs = Needs(source_data=True, source_labels=True, norms=frozenset(norms.AFFINE_KINDS))
    check_options = ({"projection_dim": 16, "lr": 1e-2}, {"projection_dim": None})

    @dataclass(frozen=True, kw_only=True, slots=True)
    class Config(norms.AffineConfig):
        """Defaults of the reference's CIFAR-10-C configuration."""

        optimizer: Literal["sgd", "adam", "adamw"] = param("adam", "update rule; cfgs/cifar10_c")
        anchor_weight: float = param(
            1.0, "weight of the cross-entropy with the source model; SANTA.LAMBDA_CE_TRG", ge=0
        )
        contrast_weight: float = param(
            1.0, "weight of the contrastive loss; SANTA.LAMBDA_CONT", ge=0
        )
        temperature: float = param(0.1, "of the contrastive loss; CONTRAST.TEMPERATURE", gt=0)
        projection_dim: int | None = param(
            128, "length of the projections; none: features as they are (DomainNet-126)", ge=1
        )

    config: Config
    anchor: dict[str, Tensor]
    prototypes: Tensor

    def setup(self) -> None:
        """Batch statistics, gradients for scale and shift, a projector, the source's weights."""
        self._tap = Tap(self.model)
        params = norms.adapt_affine(self.model, self.config)
        weight = self._tap.weights(self.model)[0]
        self.projector = contrast.projector(
            self._tap.dim, self.config.projection_dim, self.generator("projector"), weight
        )
        self.add_optimizer(self.config, [*params, *self.projector.parameters()])
        adapted = {k: p for k, p in self.model.named_parameters() if p.requires_grad}
        self.add_state("anchor", {k: p.detach().clone() for k, p in adapted.items()})
        self.add_state("prototypes", weight.new_zeros(self._tap.classes, self._tap.dim))

    def fit(self, batches: Iterable[Any]) -> None:
        """Mean feature of each class over labelled source images, by batch statistics.

        Args:
            batches: Pairs of images ``(B, C, H, W)`` and labels ``(B,)``.
        """
        self.prototypes = source.class_means(self._tap, self.model, batches)

    def adapt(self, x: Tensor) -> Tensor:
        """Images ``(B, C, H, W)`` to logits ``(B, K)`` from before the last update."""
        for step in range(self.config.steps):
            logits = self._learn(x, step)
        return logits

    def augment(self, x: Tensor, purpose: str) -> Tensor:
        """One random view of each image, the same parameters for all."""
        return augment.cotta(x, self.generator(purpose))

    def _learn(self, x: Tensor, step: int) -> Tensor:
        config = self.config
        self.count_forwards(3 * len(x))
        features, logits = self._tap(self.model, x)
        # Statistics that move by themselves are those of the stream: moved once, by its images.
        with norm_layers.moving(self._own_statistics, on=False):
            view_features, view_logits = self._tap(self.model, self.augment(x, f"view/{step}"))
            anchor = mean_teacher.run(self.model, self.anchor, x)
        held = losses.cross_entropy(logits, anchor) + losses.cross_entropy(view_logits, anchor)
        loss = config.anchor_weight * held.mean() / 2
        if config.contrast_weight > 0:
            loss = loss + config.contrast_weight * contrast.prototype_loss(
                self.projector, self.prototypes, features, view_features, config.temperature
            )
        self.update(loss, images=2 * len(x))
        self.record(loss=loss, entropy=losses.entropy(logits).mean(), selected_fraction=1.0)
        return logits
