"""PeTTA: a mean teacher that senses its drift from the source and holds the model back by it.

Hoang, Vo, Do: Persistent test-time adaptation in recurring testing scenarios, 2024,
arXiv:2311.18193. Reference code: hthieu166/petta @ 5b4de7f.

Deviations:
- Source statistics are accumulated in float64 with biased variances. Classes that the source model
  never predicts on the source images have none, and take no part in the drift.
- The reference averages all parameters of the teacher; only those that the student learns can
  differ, so only they are averaged, and the frozen ones are shared by the three models.
- With ``classification="ce"`` the student's plain view enters no loss and runs without gradients;
  it still moves the student's statistics.
- Draws of the augmentation come from a generator keyed by (seed, step).
- Layers replaced before (``norm="unmix-tns"``) stay, without RobustBN.
- The reference takes its source statistics from the clean test split; here from what ``fit_source``
  is given.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from tta import augment, ema, losses, norm_layers, norms, optim
from tta.adapter import Adapter, Needs
from tta.config import param
from tta.errors import AdapterError
from tta.factory import adapters
from tta.heads import Tap
from tta.memory import Timeliness, judge
from tta.published import figures

PUBLISHED = (
    *figures(
        "hthieu166/petta",
        "README, mean of 20 visits, practical order",
        {
            "cifar10-c/recurring-20-visits/wrn-28-10": 22.8,
            "cifar100-c/recurring-20-visits/resnext-29": 35.1,
            "imagenet-c/recurring-20-visits/resnet50": 60.5,
        },
    ),
)


@adapters.register()
class PeTTA(Adapter):
    """RoTTA's layers and memory; the drift sets the pull to the source and the teacher's pace."""

    needs = Needs(source_data=True, norms=frozenset({"bn"}))
    check_options = ({"capacity": 8}, {"capacity": 8, "classification": "ce"})

    @dataclass(frozen=True, kw_only=True, slots=True)
    class Config(optim.GradientConfig):
        """Defaults of the official CIFAR configurations."""

        optimizer: Literal["sgd", "adam", "adamw"] = param("adam", "update rule; official cfgs")
        capacity: int = param(64, "images in the memory; official cfgs", ge=1)
        classification: Literal["sce", "ce"] = param(
            "sce", "sce: symmetric, both views (CIFAR); ce: the view alone (ImageNet, DomainNet)"
        )
        pull: float = param(
            10.0, "lambda_0, weight of the pull at full drift; official, DomainNet 1", ge=0
        )
        pace: float = param(1e-3, "alpha_0, student's share in the teacher, no drift", ge=0, le=1)
        anchor_weight: float = param(1.0, "weight of the anchor loss; official cfgs", ge=0)
        memory_decay: float = param(
            0.95, "share of the old value in the classes' running means", ge=0, le=1
        )
        statistics_alpha: float = param(
            0.05, "share of the batch in the statistics of RobustBN", ge=0, le=1
        )

    config: Config
    memory: dict[str, Any]
    source_means: Tensor
    source_vars: Tensor
    means: Tensor
    teacher: nn.Module
    initial: nn.Module

    def setup(self) -> None:
        """RobustBN for BatchNorm; student, teacher and initial model share what is frozen."""
        kinds = {layer.kind for layer in norms.find(self.model)}
        if not kinds & {"bn", "bn-like"}:
            raise AdapterError(
                f"petta needs BatchNorm layers, the model has {norms.inventory(self.model)}"
            )
        if "bn" in kinds:
            norm_layers.replace(self.model, "robust", alpha=self.config.statistics_alpha)
        self._tap = Tap(self.model)
        params = norms.enable_affine(self.model, kinds=("bn",))
        names = [name for name, p in self.model.named_parameters() if p.requires_grad]
        self.add_module_state("teacher", norms.twin(self.model))
        self.add_module_state("initial", norms.twin(self.model))
        self._learnt, self._taught, self._anchors = (
            [tensors[name] for name in names]
            for tensors in (
                dict[str, Tensor](module.named_parameters())
                for module in (self.model, self.teacher, self.initial)
            )
        )
        self._robust = [layer for layer in norm_layers.find(self) if layer.kind == "robust"]
        self.add_optimizer(self.config, params)
        self.add_state("memory", Timeliness.empty())
        shape = (self._tap.classes, self._tap.dim)
        for name in ("source_means", "source_vars", "means"):
            self.add_state(name, params[0].new_full(shape, float("nan")).detach())

    def fit(self, batches: Iterable[Tensor]) -> None:
        """Mean and variance of the features of each predicted class; NaN where there is none."""
        count = total = squares = torch.zeros((), dtype=torch.float64)
        with torch.no_grad():
            for x in batches:
                features, logits = self._tap(self.model, x)
                self.count_forwards(len(x))
                chosen = F.one_hot(logits.argmax(1), logits.shape[1]).double().cpu()
                h = features.double().cpu()
                count = count + chosen.sum(0)[:, None]
                total = total + chosen.T @ h
                squares = squares + chosen.T @ h.square()
        mean = total / count  # NaN for an empty class
        self.source_means = mean.to(self.means)
        self.source_vars = (squares / count - mean.square()).clamp_min(0).to(self.means)
        self.means = self.source_means.clone()

    def infer(self, x: Tensor) -> Tensor:
        """Logits ``(B, K)`` of the teacher, by the statistics as they stand."""
        logits: Tensor = self.teacher(x)
        return logits

    def augment(self, x: Tensor, purpose: str) -> Tensor:
        """The student's view of images ``(B, C, H, W)``, same shape."""
        return augment.cotta(x, self.generator(purpose))

    def adapt(self, x: Tensor) -> Tensor:
        """Images ``(B, C, H, W)`` to the teacher's logits ``(B, K)`` from before the update."""
        with torch.no_grad(), norm_layers.moving(self._robust, on=False):
            self.count_forwards(len(x))
            features, logits = self._tap(self.teacher, x)
        labels, uncertainties = judge(logits)
        bank = Timeliness(self.memory, self.config.capacity, logits.shape[1])
        bank.add(x, labels, uncertainties)
        drift = self.sense(features, logits)
        images, _ = bank.batch()
        for step in range(self.config.steps):
            loss = self.loss(images, self.augment(images, f"view/{step}"), drift)
            self.update(loss, images=2 * len(images) if self._symmetric else len(images))
            ema.update(self._taught, self._learnt, 1 - self.config.pace * (1 - drift))
        self.record(loss=loss, entropy=sum(uncertainties) / len(x), drift=drift, memory=len(bank))
        return logits

    @torch.no_grad()
    def sense(self, features: Tensor, logits: Tensor) -> float:
        """Drift ``gamma`` in ``[0, 1)`` of the predicted classes; then their means follow.

        Args:
            features: ``(B, D)`` of the teacher.
            logits: ``(B, K)`` of the teacher.

        Returns:
            From the means as they were before these features.
        """
        chosen = F.one_hot(logits.argmax(1), logits.shape[1]).to(features)
        count = chosen.sum(0)
        present = count > 0
        known = present & self.source_means[:, 0].isfinite()
        squared = (self.means - self.source_means).square() / (self.source_vars + 1e-6)
        distance = squared.mean(1).where(known, 0).sum() / known.sum().clamp_min(1)
        now = chosen.T @ features / count.clamp_min(1)[:, None]
        moved = torch.lerp(self.means, now, 1 - self.config.memory_decay)
        self.means = torch.where(present[:, None], moved, self.means)
        return float(1 - torch.exp(-distance))

    def loss(self, images: Tensor, views: Tensor, drift: float) -> Tensor:
        """Classification, anchor and pull to the initial weights, a scalar.

        Args:
            images: The memory's, ``(n, C, H, W)``.
            views: The same, augmented.
            drift: ``gamma``.
        """
        config, count = self.config, len(images)
        self.count_forwards(2 * count)
        with torch.no_grad():
            target = self.teacher(images)
        with torch.set_grad_enabled(self._symmetric):
            plain = self.logits(images)
        with torch.no_grad():
            initial = self.initial(images)
        view = self.logits(views)
        if self._symmetric:
            both = [losses.symmetric_cross_entropy(z, target) for z in (plain, view)]
            classification = (both[0] + both[1]).mean() / 2
        else:
            classification = losses.cross_entropy(target, view).mean()
        anchor = losses.cross_entropy(initial, view).mean()
        pull = -self._likeness().mean()
        return classification + config.pull * drift * pull + config.anchor_weight * anchor

    @property
    def _symmetric(self) -> bool:
        return self.config.classification == "sce"

    def _likeness(self) -> Tensor:
        """Cosine of each adapted tensor with its initial value; padding leaves it as it is."""
        now = pad_sequence(self._learnt, batch_first=True)
        then = pad_sequence(self._anchors, batch_first=True)
        return F.cosine_similarity(now, then, dim=1, eps=1e-8)
