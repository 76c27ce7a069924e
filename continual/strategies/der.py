"""DER: past samples from a buffer are to keep the logits with which they were stored.

Buzzega et al., Dark Experience for General Continual Learning, NeurIPS 2020, arXiv:2004.07211. The
loss is the classification loss plus ``alpha`` times the mean squared difference between the
learner's logits of drawn rows and theirs from the step in which they came.

Deviations: after a request to forget, the stored logits of the other rows are taken anew from the
learner as it then is, for they hold what was to be forgotten.
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
class Der(Plugin):
    """Distils stored logits on rows of a buffer, augmented anew, in a forward of their own."""

    @dataclass(frozen=True, kw_only=True, slots=True)
    class Config(MemoryConfig):
        """Buffer, and the weight of its term."""

        alpha: float = param(0.1, "weight of the logits' squared difference", ge=0)

    config: Config
    check_options = ({"size": 20}, {"size": 20, "storage": "class-balanced"})

    def __init__(self, config: Config | None = None) -> None:
        super().__init__(config)
        self.memory = Memory(self.name, self.config)

    def add_loss(self, host: Host) -> Tensor | None:
        """``alpha * MSE`` on as many rows as there are new ones."""
        if not len(self.memory):
            return None
        rows = self.memory.draw(host, host.num_current, "logits")
        logits = host.model(host.augment(rows["x"], f"{self.name} logits"))
        host.count(forwards=len(logits), backwards=len(logits))
        return self.config.alpha * F.mse_loss(logits, rows["logits"])

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
