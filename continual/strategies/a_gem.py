"""A-GEM: a step may not raise the loss on a draw from the buffer, to first order.

Chaudhry et al., Efficient Lifelong Learning with A-GEM, ICLR 2019, arXiv:1812.00420. Where the
gradient g of the step and the gradient r of the buffer rows' cross-entropy disagree (g.r < 0), g is
replaced by g - (g.r / r.r) r.

Deviations: the buffer is a reservoir over all samples, or balanced by class, where the original
keeps a fixed number of each task; rows of the present experience are left out of the draw. The
buffer's forward runs in the learner's mode and leaves BatchNorm's statistics as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from continual.factory import strategies
from continual.passes import untouched
from continual.plugin import Host, Plugin
from continual.rehearsal import Memory, MemoryConfig
from tta.config import param

if TYPE_CHECKING:
    from streams.learning_types import ForgetRequest


def project(gradients: list[Tensor], reference: list[Tensor]) -> bool:
    """Take out of ``gradients`` their part against ``reference``, in place.

    Args:
        gradients: One tensor a parameter.
        reference: Of the same shapes.

    Returns:
        Whether they disagreed and were changed.
    """
    dot = torch.stack([p.sum() for p in torch._foreach_mul(gradients, reference)]).sum()
    if not dot < 0:
        return False
    size = torch.stack(torch._foreach_norm(reference)).square().sum()
    torch._foreach_sub_(gradients, torch._foreach_mul(reference, float(dot / size)))
    return True


@strategies.register()
class AGem(Plugin):
    """Projects the step's gradient against that of a draw from the buffer."""

    @dataclass(frozen=True, kw_only=True, slots=True)
    class Config(MemoryConfig):
        """Buffer, and the rows that the reference gradient takes."""

        sample_size: int = param(256, "rows of the reference gradient", ge=1)

    config: Config
    check_options = ({"size": 30, "sample_size": 8},)

    def __init__(self, config: Config | None = None) -> None:
        super().__init__(config)
        self.memory = Memory(self.name, self.config)

    def after_backward(self, host: Host) -> None:
        """Project ``.grad`` of all parameters as one vector."""
        rows = self.memory.draw(host, self.config.sample_size, "reference", old_only=True)
        if not rows or not len(rows["y"]):
            return
        params = [p for p in host.model.parameters() if p.grad is not None]
        x = host.augment(rows["x"], f"{self.name} reference")
        dropout = host.generator(f"{self.name} dropout")
        with untouched(host.model, dropout):
            loss = F.cross_entropy(host.model(x), rows["y"])
            found = torch.autograd.grad(loss, params, allow_unused=True, materialize_grads=True)
        host.count(forwards=len(x), backwards=len(x))
        project([p.grad for p in params if p.grad is not None], list(found))

    def after_step(self, host: Host) -> None:
        """Offer the new rows."""
        self.memory.offer(host)

    def forgotten(self, host: Host, request: ForgetRequest) -> None:
        """Drop the rows of the request."""
        self.memory.forget(request)

    def state_dict(self) -> dict[str, Any]:
        """The buffer."""
        return {"memory": self.memory.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up the buffer."""
        self.memory.load_state_dict(state["memory"])
