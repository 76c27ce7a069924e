"""Selective synaptic dampening: shrink the weights that matter for the forgotten alone.

Foster, Schoepf, Brintrup: Fast machine unlearning without retraining through selective synaptic
dampening, 2023, arXiv:2308.07707. Reference code: if-loops/selective-synaptic-dampening.

Importance is the mean over batches of the squared gradient of a batch's loss; weights whose
importance for the forgotten samples is more than ``alpha`` times that for all data are multiplied
by ``strength`` times the ratio of the two. No training step is taken.

Deviations:
- ``full="online"`` adds the importance up while learning, from the gradients of the steps (with the
  terms of other plug-ins, augmentation, layers in train mode): no earlier sample is needed. Its
  share of forgotten samples is not taken out again; ``decay`` lets it fade.
- Batches for both importances are of the learner's batch size by default, since the square of a
  batch's gradient depends on it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from continual.factory import strategies
from continual.passes import trainable
from continual.plugin import Host, Plugin, PluginConfig
from continual.unlearning import importance, ssd
from tta.config import param
from tta.errors import AdapterError

if TYPE_CHECKING:
    from streams.learning_types import ForgetRequest, Samples


@strategies.register()
class Ssd(Plugin):
    """Serves requests to forget by one dampening; learning goes on as without it."""

    check_options = ({}, {"full": "retained", "label_free": True}, {"full": "online", "decay": 0.9})

    @dataclass(frozen=True, kw_only=True, slots=True)
    class Config(PluginConfig):
        """Defaults of the reference code for a ResNet; for a ViT it takes alpha = 5 to 25."""

        alpha: float = param(10.0, "how many times more important a dampened weight is", gt=0)
        strength: float = param(1.0, "lambda: factor of the ratio", gt=0)
        full: Literal["samples", "retained", "online"] = param(
            "samples",
            "all data: everything seen, what is retained of it (the corrective code), or the "
            "gradients of the training steps",
        )
        decay: float = param(1.0, "online: what a step leaves of the steps before", gt=0, le=1)
        label_free: bool = param(False, "importance of the logits' length, without labels")
        batch_size: int | None = param(None, "images a batch; None: the learner's", ge=1)

        def __post_init__(self) -> None:
            PluginConfig.__post_init__(self)
            if self.full == "online" and self.label_free:
                raise AdapterError(
                    "full='online' adds up gradients of the loss, label_free=True those of the "
                    "logits' length: the two cannot be compared; take full='samples'"
                )

    config: Config

    def __init__(self, config: PluginConfig | None = None) -> None:
        super().__init__(config)
        self._squares: dict[str, Tensor] = {}
        self._weight = 0.0

    def after_backward(self, host: Host) -> None:
        """Add up the squared gradients of the step."""
        if self.config.full != "online":
            return
        found = {n: p.grad for n, p in trainable(host.model).items() if p.grad is not None}
        squares = torch._foreach_pow(list(found.values()), 2)
        self._weight = self.config.decay * self._weight + 1
        for name, square in zip(found, squares, strict=True):
            kept = self._squares.get(name)
            if kept is None or kept.shape != square.shape:
                self._squares[name] = square
            else:
                kept.mul_(self.config.decay).add_(square)

    def forget(self, host: Host, request: ForgetRequest, retained: Samples) -> bool:
        """Compare the two importances and dampen."""
        config = self.config
        size = host.batch_size if config.batch_size is None else config.batch_size
        if config.full == "online":
            if not self._squares:
                raise AdapterError("ssd with full='online' has seen no training step yet")
            full = {name: value / self._weight for name, value in self._squares.items()}
        else:
            data = host.data if config.full == "samples" else retained
            full = importance(host.model, data, size, label_free=config.label_free)
            host.count(forwards=len(data), backwards=len(data))
        gone = importance(host.model, request.samples, size, label_free=config.label_free)
        host.count(forwards=len(request.samples), backwards=len(request.samples))
        ssd(host.model, full, gone, alpha=config.alpha, strength=config.strength)
        return True

    def state_dict(self) -> dict[str, Any]:
        """Sums of squared gradients, and their weight."""
        return {"squares": self._squares, "weight": self._weight}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up a saved state."""
        self._squares, self._weight = dict(state["squares"]), float(state["weight"])
