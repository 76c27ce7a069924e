"""PredKD: sigmoid outputs; on new images the old classes' targets are the last model's answers.

LwF.MC (Rebuffi et al., iCaRL, CVPR 2017, arXiv:1611.07725) in the form of Smith et al., A Closer
Look at Rehearsal-Free Continual Learning, CVPRW 2023; code shaunak27/data-free-continual-learning,
commit 5388102. The classification loss becomes

    scale * BCE(sigmoid(logits[seen]), target), mean over rows and seen classes,

where ``target`` is one-hot, but for an old class the sigmoid of the teacher's logit on the same
image. The teacher is the model at the end of the last experience; there is no weight and no
temperature. With softmax in place of the sigmoids the result is a different one: about 7 % where
this has 25 % (CIFAR-100, 10 tasks).

Deviations: classes that the present experience brings again are trained, not distilled, and so is
a row's own label where a replayed row is of an old class. The code trains with BatchNorm in eval
mode: that is the learner's ``freeze_norm``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from continual.factory import strategies
from continual.plugin import Host, Plugin, PluginConfig
from continual.teacher import Classes, Teacher
from tta.config import param

if TYPE_CHECKING:
    from streams.learning_types import ForgetRequest


@strategies.register()
class PredKd(Plugin):
    """Replaces the classification loss."""

    @dataclass(frozen=True, kw_only=True, slots=True)
    class Config(PluginConfig):
        """Scale and columns of the loss."""

        ce_loss_scale: float = param(5.0, "factor of the loss; code", gt=0)
        columns: Literal["seen", "all"] = param(
            "seen",
            "classes in the loss: those seen so far (code), or all, so that a class that was never "
            "seen is not predicted before it comes",
        )

    config: Config
    check_options = ({}, {"columns": "all"})

    def __init__(self, config: Config | None = None) -> None:
        super().__init__(config)
        self.teacher = Teacher()
        self.classes = Classes()

    def begin_experience(self, host: Host) -> None:
        """Which classes it brings."""
        self.classes.begin(host)

    def classify(self, host: Host) -> Tensor:
        """The scaled binary cross-entropy."""
        target = F.one_hot(host.y, host.logits.shape[1]).to(host.logits)
        old = self.classes.old(host.device)
        if self.teacher and len(old):
            answers = self.teacher.logits(host, host.x)[:, old].sigmoid()
            own = old == host.y[:, None]
            target[:, old] = torch.where(own, target[:, old], answers)
        if self.config.columns == "all":
            columns = torch.arange(host.logits.shape[1], device=host.logits.device)
        else:
            columns = self.classes.seen(host.device)
        loss = F.binary_cross_entropy_with_logits(host.logits[:, columns], target[:, columns])
        return self.config.ce_loss_scale * loss

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
