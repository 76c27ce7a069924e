"""LwF: on new images, the old classes' softened probabilities stay those of the last model.

Li and Hoiem, Learning without Forgetting, ECCV 2016, arXiv:1606.09282. The original has one head a
task. Here there is one head and no task label: the teacher is the model at the end of the last
experience, and with C the classes of finished experiences that the present one does not bring,

    loss = classification + alpha * KL(softmax(teacher[C] / T) || softmax(logits[C] / T)),

mean over the rows. There is no term in the first experience.

Deviations: as said; no factor T^2 (the original has none); no warm-up of the new head. Where each
experience brings new classes this equals one term for all old heads taken together.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch.nn.functional as F
from torch import Tensor

from continual.factory import strategies
from continual.plugin import Host, Plugin, PluginConfig
from continual.teacher import Classes, Teacher
from tta.config import param

if TYPE_CHECKING:
    from streams.learning_types import ForgetRequest


def distillation(logits: Tensor, target: Tensor, temperature: float) -> Tensor:
    """Mean over rows of KL(softmax(target / T) || softmax(logits / T)); both ``(B, C)``."""
    return F.kl_div(
        F.log_softmax(logits / temperature, dim=1),
        F.log_softmax(target / temperature, dim=1),
        reduction="batchmean",
        log_target=True,
    )


@strategies.register()
class Lwf(Plugin):
    """Distils the old classes of the last model on the images of the step."""

    @dataclass(frozen=True, kw_only=True, slots=True)
    class Config(PluginConfig):
        """Weight and temperature of the distillation."""

        alpha: float = param(1.0, "weight of the distillation; section 3", ge=0)
        temperature: float = param(2.0, "temperature T; section 3", gt=0)

    config: Config
    check_options = ({},)

    def __init__(self, config: Config | None = None) -> None:
        super().__init__(config)
        self.teacher = Teacher()
        self.classes = Classes()

    def begin_experience(self, host: Host) -> None:
        """Which classes it brings."""
        self.classes.begin(host)

    def add_loss(self, host: Host) -> Tensor | None:
        """The distillation of the old classes."""
        old = self.classes.old(host.device)
        if not self.teacher or not len(old):
            return None
        target = self.teacher.logits(host, host.x)[:, old]
        return self.config.alpha * distillation(
            host.logits[:, old], target, self.config.temperature
        )

    def end_experience(self, host: Host) -> None:
        """The next teacher."""
        self.classes.end()
        self.teacher.take(host)

    def forgotten(self, host: Host, request: ForgetRequest) -> None:
        """The teacher knows what is to be forgotten: the present model takes its place."""
        if self.teacher:
            self.teacher.take(host)

    def state_dict(self) -> dict[str, Any]:
        """Teacher and classes met."""
        return {"teacher": self.teacher.state_dict(), "classes": self.classes.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up teacher and classes."""
        self.teacher.load_state_dict(state["teacher"])
        self.classes.load_state_dict(state["classes"])
