"""FeatKD: the features before the classifier stay those of the last model.

Smith et al., A Closer Look at Rehearsal-Free Continual Learning, CVPRW 2023; code
shaunak27/data-free-continual-learning, commit 5388102. The loss gets ``mu`` times the mean over
rows and dimensions of (h(x) - h'(x))^2, h' of the model at the end of the last experience; nothing
in the first.

Deviations: none known. The code trains with BatchNorm in eval mode: that is the learner's
``freeze_norm``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from continual.factory import strategies
from continual.passes import untouched
from continual.plugin import Host, Plugin, PluginConfig
from continual.teacher import Teacher
from tta.config import param
from tta.heads import Tap

if TYPE_CHECKING:
    from streams.learning_types import ForgetRequest


@strategies.register()
class FeatKd(Plugin):
    """Distils features; adds a term to the loss."""

    @dataclass(frozen=True, kw_only=True, slots=True)
    class Config(PluginConfig):
        """Weight of the term."""

        mu: float = param(5.0, "weight; code: 5 on CIFAR-100, 1 on TinyImageNet", ge=0)

    config: Config
    check_options = ({},)

    def __init__(self, config: Config | None = None) -> None:
        super().__init__(config)
        self.teacher = Teacher()
        self._hook: RemovableHandle | None = None
        self._caught: list[tuple[Tensor, Tensor]] = []

    def setup(self, host: Host) -> None:
        """The classifier must be there, or this says that it is not."""
        Tap(host.model)

    def begin_step(self, host: Host) -> None:
        """Listen to the classifier: the step's own forward gives the features."""
        if not self.teacher:
            return
        self._stop()

        def catch(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            self._caught.append((args[0], output))

        self._hook = Tap(host.model).head(host.model).register_forward_hook(catch)

    def add_loss(self, host: Host) -> Tensor | None:
        """``mu * mean((h - h') ** 2)`` over all rows of the batch."""
        if not self.teacher:
            return None
        caught = self._stop()
        teacher = self.teacher.model(host)
        tap = Tap(teacher)
        with torch.no_grad():
            target, _ = tap(teacher, host.x)
        host.count(forwards=len(host.x))
        own = [features for features, output in caught if output is host.logits]
        if own:
            features = own[-1].flatten(1)
        else:
            # Something after the classifier (class masks) hides which forward was the step's.
            with untouched(host.model, host.generator(f"{self.name} dropout")):
                features, _ = tap(host.model, host.x)
            host.count(forwards=len(host.x), backwards=len(host.x))
        return self.config.mu * F.mse_loss(features, target)

    def end_experience(self, host: Host) -> None:
        """The next teacher."""
        self.teacher.take(host)

    def forgotten(self, host: Host, request: ForgetRequest) -> None:
        """The teacher knows what is to be forgotten: the present model takes its place."""
        if self.teacher:
            self.teacher.take(host)

    def state_dict(self) -> dict[str, Any]:
        """The teacher."""
        return {"teacher": self.teacher.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up the teacher."""
        self.teacher.load_state_dict(state["teacher"])

    def _stop(self) -> list[tuple[Tensor, Tensor]]:
        if self._hook is not None:
            self._hook.remove()
        caught, self._hook, self._caught = self._caught, None, []
        return caught
