"""RMT: symmetric cross-entropy with a mean teacher, source prototypes, source replay and a warm-up.

Doebler, Marsden, Yang: Robust mean teacher for continual and gradual test-time adaptation, 2023,
arXiv:2211.13081.
Reference code: mariodoebler/test-time-adaptation @ 8b2ed63 (the authors' own).

Needs labelled source images: once for the class means, and from then on for the replay and the
warm-up. ``source_weight=0, warm_up_images=0`` is the source-free form: no image is kept.

Deviations:
- Of the source images given, ``replay_images`` are kept, a uniform sample, as 8-bit state; replay
  and warm-up draw from them, without repetition in a batch, by (seed, step). The reference iterates
  over the whole training set, which is larger than its warm-up; here each image is seen
  ``warm_up_passes`` times on average at most, so that few images give a short warm-up.
- Class means are taken over all source images given; the reference stops past 100,000. A class
  without an image is never the nearest; its mean in the reference is NaN.
- The teacher averages the tensors that are trained; the others never differ from the student's.
- The features are the input of the classifier for every model. The reference takes timm's models
  apart in a way that leaves their student without a classifier.
- ``parameters="all"`` also trains what is not called weight or bias (class tokens, position
  embeddings, fused attention projections).
- ``reset`` goes back to the state after the warm-up with the moments that it left, always.
- ``predict`` answers with student and teacher, as a step does.
- Only BatchNorm layers leave eval mode, so dropout and stochastic depth stay off.
- A layer that sees one value per channel uses its running statistics; the reference raises.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from tta import (
    augment,
    contrast,
    ema,
    losses,
    mean_teacher,
    memory,
    norm_layers,
    norms,
    optim,
    source,
)
from tta.adapter import Adapter, Needs
from tta.config import param
from tta.errors import AdapterError
from tta.factory import adapters
from tta.heads import Tap
from tta.optim import GradientConfig
from tta.published import doebler_table

PUBLISHED = (*doebler_table(continual=(17.0, 30.2, 59.9), mixed=(31.0, 38.6, 75.4)),)


@adapters.register()
class RMT(Adapter):
    """Student and mean teacher, held together by source images and source class means."""

    needs = Needs(source_data=True, source_labels=True)
    check_options = (
        {"warm_up_images": 16, "warm_up_batch": 8, "replay_images": 12, "projection_dim": 16},
        {"source_weight": 0.0, "warm_up_images": 0, "projection_dim": None, "parameters": "all"},
    )

    @dataclass(frozen=True, kw_only=True, slots=True)
    class Config(GradientConfig):
        """Defaults of the reference's CIFAR-10-C configuration."""

        optimizer: Literal["sgd", "adam", "adamw"] = param("adam", "update rule; cfgs/cifar10_c")
        teacher_decay: float = param(
            0.999, "kept share of the teacher; M_TEACHER.MOMENTUM", ge=0, le=1
        )
        teacher_weight: float = param(
            1.0, "weight of the cross-entropy with the teacher; RMT.LAMBDA_CE_TRG", ge=0
        )
        contrast_weight: float = param(1.0, "weight of the contrastive loss; RMT.LAMBDA_CONT", ge=0)
        source_weight: float = param(
            1.0, "weight of the source images' cross-entropy; 0: none; RMT.LAMBDA_CE_SRC", ge=0
        )
        temperature: float = param(0.1, "of the contrastive loss; CONTRAST.TEMPERATURE", gt=0)
        projection_dim: int | None = param(
            128, "length of the projections; none: features as they are (DomainNet-126)", ge=1
        )
        warm_up_images: int = param(
            50_000, "source images of the warm-up, repeats included; RMT.NUM_SAMPLES_WARM_UP", ge=0
        )
        warm_up_passes: int = param(
            10, "most times that a kept image is seen there, on average", ge=1
        )
        warm_up_batch: int = param(200, "images a step of the warm-up; 200 CIFAR, 64 others", ge=1)
        replay_images: int = param(
            5_000, "source images that are kept, one byte a pixel and channel", ge=1
        )
        replay_batch: int | None = param(
            None, "source images a step; as many as test images if not set", ge=1
        )
        parameters: Literal["named", "all"] = param(
            "named", "named: parameters called weight or bias, as in the reference; or all"
        )

    config: Config
    teacher: dict[str, Tensor] | None
    prototypes: Tensor
    replay: Tensor
    replay_labels: Tensor
    optimizer: torch.optim.Optimizer

    def setup(self) -> None:
        """Weights, biases and a projector are trained; batch statistics in every BatchNorm."""
        self._tap = Tap(self.model)
        self._params = mean_teacher.trainable(self.model, self.config.parameters)
        norms.use_batch_statistics(self.model)
        weight = self._tap.weights(self.model)[0]
        self.projector = contrast.projector(
            self._tap.dim, self.config.projection_dim, self.generator("projector"), weight
        )
        self.add_optimizer(self.config, [*self._params.values(), *self.projector.parameters()])
        self.add_state("teacher", None)  # the student's weights until the first average
        self.add_state("prototypes", weight.new_zeros(self._tap.classes, self._tap.dim))
        self.add_state("replay", torch.zeros(0, dtype=torch.uint8))
        self.add_state("replay_labels", torch.zeros(0, dtype=torch.int64))

    def fit(self, batches: Iterable[Any]) -> None:
        """Class means and images to keep, from one pass; then the warm-up on what was kept.

        Args:
            batches: Pairs of images ``(B, C, H, W)`` and labels ``(B,)``.
        """
        config = self.config
        if config.source_weight > 0 or config.warm_up_images > 0:
            images = memory.Reservoir(memory.Reservoir.empty(), config.replay_images)
            labels = memory.Reservoir(memory.Reservoir.empty(), config.replay_images)
            batches = self._keeping(batches, images, labels)
            self.prototypes = source.class_means(self._tap, self.model, batches)
            if images.state["seen"] != labels.state["seen"]:  # the bank of images began anew
                raise AdapterError("rmt keeps source images: they must all have one size")
            self.replay, self.replay_labels = images.images().clone(), labels.images().clone()
        else:
            self.prototypes = source.class_means(self._tap, self.model, batches)
        self._warm_up()

    def infer(self, x: Tensor) -> Tensor:
        """Sum of the student's and the teacher's logits ``(B, K)`` for images ``(B, C, H, W)``."""
        return super().infer(x) + mean_teacher.run(self.model, self.teacher or {}, x)

    def adapt(self, x: Tensor) -> Tensor:
        """Images ``(B, C, H, W)`` to logits ``(B, K)``, student and teacher, before the update."""
        for step in range(self.config.steps):
            logits = self._learn(x, step)
        return logits

    def augment(self, x: Tensor, purpose: str) -> Tensor:
        """One random view of each image, the same parameters for all."""
        return augment.cotta(x, self.generator(purpose))

    def _learn(self, x: Tensor, step: int) -> Tensor:
        config = self.config
        answers: list[Tensor] = []
        parts: list[Tensor] = []
        known = min(config.replay_batch or len(x), len(self.replay)) * (config.source_weight > 0)

        def terms() -> Iterator[Tensor]:
            if known:
                parts.append(config.source_weight * self._replay_loss(x, step))
                yield parts[-1]
            loss, logits, target = self._stream_loss(x, step)
            answers.extend((logits.detach(), target))
            parts.append(loss)
            yield loss

        self.update(terms(), images=2 * len(x) + known)
        self._average()
        logits, target = answers
        loss = torch.stack([part.detach() for part in parts]).sum()
        self.record(loss=loss, entropy=losses.entropy(logits).mean(), selected_fraction=1.0)
        return logits + target

    def _replay_loss(self, x: Tensor, step: int) -> Tensor:
        """Cross-entropy of kept source images, whose statistics are not those of the stream."""
        known, labels = self._draw(self.config.replay_batch or len(x), f"replay/{step}", x)
        with norm_layers.moving(self._own_statistics, on=False):
            return F.cross_entropy(self.logits(known), labels)

    def _stream_loss(self, x: Tensor, step: int) -> tuple[Tensor, Tensor, Tensor]:
        """Loss of the batch, and the logits ``(B, K)`` of student and teacher for it."""
        config = self.config
        self.count_forwards(2 * len(x))
        features, logits = self._tap(self.model, x)
        # Statistics that move by themselves are those of the stream: moved once, by its images.
        with norm_layers.moving(self._own_statistics, on=False):
            view_features, view_logits = self._tap(self.model, self.augment(x, f"view/{step}"))
            target = self._target(x)
        distance = losses.symmetric_cross_entropy(logits, target)
        distance = distance + losses.symmetric_cross_entropy(view_logits, target)
        loss = config.teacher_weight * distance.mean() / 2
        if config.contrast_weight > 0:
            loss = loss + config.contrast_weight * contrast.prototype_loss(
                self.projector, self.prototypes, features, view_features, config.temperature
            )
        return loss, logits, target

    def _target(self, x: Tensor) -> Tensor:
        """Logits ``(B, K)`` of the teacher, which is born here: before the student moves."""
        if self.teacher is None:
            self.teacher = {name: p.detach().clone() for name, p in self._params.items()}
        self.count_forwards(len(x))
        return mean_teacher.run(self.model, self.teacher, x)

    def _average(self) -> None:
        assert self.teacher is not None
        student = list(self._params.values())
        ema.update(list(self.teacher.values()), student, self.config.teacher_decay)

    def _draw(self, images: int, purpose: str, like: Tensor) -> tuple[Tensor, Tensor]:
        """Source images ``(n, C, H, W)`` in the dtype of ``like``, and their labels ``(n,)``."""
        rows = torch.randperm(len(self.replay), generator=self.generator(purpose))[:images]
        rows = rows.to(self.replay.device)
        return self.replay[rows].to(like) / 255, self.replay_labels[rows]

    def _keeping(
        self, batches: Iterable[Any], images: memory.Reservoir, labels: memory.Reservoir
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches as they are; on their way both banks keep the same rows."""
        generator = self.generator("keep")
        for x, y in batches:
            draws = torch.rand(len(x), generator=generator, dtype=torch.float64)
            images.add((x.clamp(0, 1) * 255).round().to(torch.uint8), draws)
            labels.add(y.to(x.device).long(), draws)
            yield x, y

    def _warm_up(self) -> None:
        """Student and teacher on source images, without their labels; the rate rises to ``lr``."""
        config, groups, like = self.config, self.optimizer.param_groups, self.prototypes
        images = min(config.warm_up_images, config.warm_up_passes * len(self.replay))
        rounds = images // max(1, min(config.warm_up_batch, len(self.replay)))
        for k in range(rounds):
            for group in groups:
                group["lr"] = config.lr * (k + 1) / rounds
            x, _ = self._draw(config.warm_up_batch, f"warm-up/{k}", like)
            logits = self.logits(x)
            loss = losses.symmetric_cross_entropy(logits, self._target(x)).mean()
            optim.step_if_finite(self.optimizer, loss)
            self._average()
        for group in groups:
            group["lr"] = config.lr
