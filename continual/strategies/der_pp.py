"""DER++: stored logits of one draw from a buffer, and stored labels of another.

Buzzega et al., Dark Experience for General Continual Learning, NeurIPS 2020, arXiv:2004.07211:
classification loss + ``alpha`` * MSE(logits of the first draw, stored logits) + ``beta`` *
CE(logits of the second draw, labels). The draws are independent, each is augmented anew and goes
through the learner in a forward of its own; rows of the present experience may be drawn. The
defaults are those of the authors' later code for CIFAR.

Deviations: after a request to forget, the stored logits of the other rows are taken anew from the
learner as it then is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch.nn.functional as F
from torch import Tensor

from continual.factory import strategies
from continual.plugin import Host, Plugin
from continual.rehearsal import Memory, MemoryConfig
from tta.config import param

if TYPE_CHECKING:
    from streams.learning_types import ForgetRequest


@strategies.register()
class DerPp(Plugin):
    """Two terms on two draws from one buffer."""

    @dataclass(frozen=True, kw_only=True, slots=True)
    class Config(MemoryConfig):
        """Buffer, and the weights of its terms."""

        alpha: float = param(0.1, "weight of the logits' squared difference", ge=0)
        beta: float = param(0.5, "weight of the labels' cross-entropy", ge=0)

    config: Config
    check_options = ({"size": 20},)

    def __init__(self, config: Config | None = None) -> None:
        super().__init__(config)
        self.memory = Memory(self.name, self.config)

    def add_loss(self, host: Host) -> Tensor | None:
        """Both terms, on as many rows each as there are new ones."""
        if not len(self.memory):
            return None
        logits, stored = self._answer(host, "logits")
        loss = self.config.alpha * F.mse_loss(logits, stored["logits"])
        logits, stored = self._answer(host, "labels")
        return loss + self.config.beta * F.cross_entropy(logits, stored["y"])

    def after_step(self, host: Host) -> None:
        """Offer the new rows with their logits from before the update."""
        self.memory.offer(host, logits=host.logits.detach()[: host.num_current])

    def forgotten(self, host: Host, request: ForgetRequest) -> None:
        """Drop the rows of the request; the targets of the others are taken anew."""
        self.memory.forget(request)
        self.memory.retake_logits(host)

    def state_dict(self) -> dict[str, Any]:
        """The buffer."""
        return {"memory": self.memory.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up the buffer."""
        self.memory.load_state_dict(state["memory"])

    def _answer(self, host: Host, purpose: str) -> tuple[Tensor, dict[str, Tensor]]:
        rows = self.memory.draw(host, host.num_current, purpose)
        logits: Tensor = host.model(host.augment(rows["x"], f"{self.name} {purpose}"))
        host.count(forwards=len(logits), backwards=len(logits))
        return logits, rows
