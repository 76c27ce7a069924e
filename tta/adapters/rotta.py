"""RoTTA: a mean teacher learns from a balanced, recent, confident memory of the stream.

Yuan, Xie, Li: Robust test-time adaptation in dynamic scenarios, 2023, arXiv:2303.13899.
Reference code: BIT-DA/RoTTA @ 67e34c9; the mariodoebler/test-time-adaptation @ 8b2ed63 port, which
also adapts LayerNorm and GroupNorm.

Deviations:
- GroupNorm, LayerNorm, InstanceNorm and RMSNorm are adapted too, as in the port;
  ``norm_kinds=("bn",)`` restores the official choice.
- The official code and the port average all parameters of the teacher; only those that the student
  learns can differ, so only they are averaged, and the frozen ones are shared.
- Draws of the augmentation come from a generator keyed by (seed, step).
- Layers replaced before (``norm="unmix-tns"``) stay; there is then no BatchNorm for RobustBN to
  take the place of.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from tta import augment, ema, losses, norm_layers, norms
from tta.adapter import Adapter, Needs
from tta.config import param
from tta.factory import adapters
from tta.memory import Timeliness, judge
from tta.published import doebler_table, figures

PUBLISHED = (
    *doebler_table(continual=(19.3, 34.8, 67.3), mixed=(33.4, 45.4, 78.1)),
    *figures(
        "PeTTA paper, arXiv:2311.18193",
        "table of CIFAR-10-C, first visit of the recurring stream",
        {"cifar10-c/practical/wrn-28-10": 24.6},
    ),
)


@adapters.register()
class RoTTA(Adapter):
    """Robust BatchNorm, a memory, and time-aware teaching; the teacher predicts."""

    needs = Needs(norms=frozenset(norms.AFFINE_KINDS))
    check_options = ({"capacity": 8, "update_every": 4},)

    @dataclass(frozen=True, kw_only=True, slots=True)
    class Config(norms.AffineConfig):
        """Defaults of the official configuration, the same for all data sets."""

        optimizer: Literal["sgd", "adam", "adamw"] = param("adam", "update rule; official cfgs")
        capacity: int = param(64, "images in the memory; official cfgs", ge=1)
        update_every: int = param(64, "images between two updates; official cfgs", ge=1)
        nu: float = param(1e-3, "share of the student in the teacher's update", ge=0, le=1)
        alpha: float = param(0.05, "share of the batch in the statistics of RobustBN", ge=0, le=1)
        lambda_t: float = param(1.0, "weight of the age in the memory's score", ge=0)
        lambda_u: float = param(1.0, "weight of the uncertainty in the memory's score", ge=0)

    config: Config
    memory: dict[str, Any]
    images_seen: int
    teacher: nn.Module

    def setup(self) -> None:
        """RobustBN for BatchNorm, a teacher beside the student, an empty memory."""
        config = self.config
        if any(layer.kind == "bn" for layer in norms.find(self.model)):
            norm_layers.replace(self.model, "robust", alpha=config.alpha)
        params = norms.enable_affine(self.model, kinds=config.norm_kinds, skip=config.skip_top)
        names = [name for name, p in self.model.named_parameters() if p.requires_grad]
        self.add_module_state("teacher", norms.twin(self.model))
        self._taught = [self.teacher.get_parameter(name) for name in names]
        self._learnt = [self.model.get_parameter(name) for name in names]
        self._robust = [layer for layer in norm_layers.find(self) if layer.kind == "robust"]
        self.add_optimizer(config, params)
        self.add_state("memory", Timeliness.empty())
        self.add_state("images_seen", 0)

    def infer(self, x: Tensor) -> Tensor:
        """Logits ``(B, K)`` of the teacher, by the statistics as they stand."""
        logits: Tensor = self.teacher(x)
        return logits

    def augment(self, x: Tensor, purpose: str) -> Tensor:
        """The student's view of images ``(B, C, H, W)``, same shape."""
        return augment.cotta(x, self.generator(purpose))

    def adapt(self, x: Tensor) -> Tensor:
        """Images ``(B, C, H, W)`` to the teacher's logits ``(B, K)`` from before any update.

        The images are then offered to the memory one by one, so an update may fall between two
        of a batch.
        """
        config = self.config
        with torch.no_grad(), norm_layers.moving(self._robust, on=False):
            self.count_forwards(len(x))
            logits = self.infer(x)
        labels, uncertainties = judge(logits)
        bank = Timeliness(
            self.memory, config.capacity, logits.shape[1], config.lambda_t, config.lambda_u
        )
        first = 0
        while first < len(x):
            stop = first + config.update_every - self.images_seen % config.update_every
            rows = slice(first, stop)
            bank.add(x[rows], labels[rows], uncertainties[rows])
            self.images_seen += len(x[rows])
            if self.images_seen % config.update_every == 0:
                self._learn(bank)
            first = stop
        self.record(entropy=sum(uncertainties) / len(x), memory=len(bank))
        return logits

    def _learn(self, bank: Timeliness) -> None:
        """The student from the teacher on the memory, old images weighing less; then averaging."""
        images, ages = bank.batch()
        weight = torch.sigmoid(-torch.tensor(ages).to(images) / self.config.capacity)
        for step in range(self.config.steps):
            self.count_forwards(len(images))
            with torch.no_grad():
                target = self.teacher(images)
            view = self.augment(images, f"view/{self.images_seen}/{step}")
            loss = (weight * losses.cross_entropy(target, self.logits(view))).mean()
            self.update(loss, images=len(images))
            ema.update(self._taught, self._learnt, 1 - self.config.nu)
        self.record(loss=loss)
