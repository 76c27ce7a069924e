"""Homeostatic learning rate: what the learner recognises raises or lowers its own learning rate.

Man, Damasio, Neven: Need is all you need: Homeostatic neural networks adapt to concept shift,
2022, arXiv:2205.08645. Reference code: kingsonman/homeostatic-neural-networks @ 703138f.

Every tenth sample, a rate moved by one step (up if the predicted class excites, down otherwise)
is tried on the latest samples against the present one; where it is strictly better, the step is
taken in the direction of the true class.

Deviations:
- The update is simulated with the gradient of the whole batch, and all decisions of a batch look
  at the samples before it; the reference tries the gradients accumulated so far.
- Classes from ``K / 2`` on excite (the reference: 5 to 9 of 10).
- ``decision="greedy"`` has no classes: one step up and one down are tried, and the better is taken
  if it is strictly better than staying; up where both are alike.
- The prediction is that of the training forward (augmented, layers in train mode); the trials run
  in eval mode on images without augmentation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor
from torch.func import functional_call

from continual.factory import strategies
from continual.passes import untouched
from continual.plugin import Host, Plugin, PluginConfig
from tta.config import param
from tta.errors import AdapterError

if TYPE_CHECKING:
    from streams.learning_types import ForgetRequest


@strategies.register()
class Homeostatic(Plugin):
    """Moves the learning rate by steps of a tenth of the base rate; for plain SGD."""

    check_options = (
        {"window": 4, "every": 1},
        {"window": 4, "every": 1, "decision": "greedy"},
        {"window": 4, "every": 1, "decision": "random"},
    )

    @dataclass(frozen=True, kw_only=True, slots=True)
    class Config(PluginConfig):
        """Constants of the reference code."""

        decision: Literal["vulnerable", "greedy", "random"] = param(
            "vulnerable",
            "what moves the rate: the true class after a trial, the better of two trials, or the "
            "true class after a fair coin (the paper's control)",
        )
        window: int = param(20, "latest samples on which rates are tried", ge=1)
        every: int = param(10, "samples between decisions", ge=1)
        step: float = param(0.1, "one move, of the base rate", gt=0)
        floor: float = param(1e-5, "smallest rate, of the base rate; 1e-8 of 1e-3", gt=0, le=1)

    config: Config

    def __init__(self, config: PluginConfig | None = None) -> None:
        super().__init__(config)
        self._bases: list[float] = []
        self._factor = 1.0
        self._samples = 0
        self._x: Tensor | None = None
        self._y: Tensor | None = None

    def attach(self, host: Host) -> None:
        """Refuse what the simulated update would not be the optimiser's.

        Raises:
            AdapterError: For another rule than SGD without momentum.
        """
        optimizer = host.optimizer
        plain = type(optimizer) is torch.optim.SGD and not any(
            group["momentum"] or group["maximize"] for group in optimizer.param_groups
        )
        if not plain:
            raise AdapterError(
                "homeostatic tries out the update of plain SGD, weights minus rate times gradient; "
                f"with the moments of {type(optimizer).__name__} that would be another update: "
                "take optimizer=sgd with momentum=0"
            )

    def setup(self, host: Host) -> None:
        """Keep the optimiser's own rates as the base."""
        self._bases = [float(group["lr"]) for group in host.optimizer.param_groups]

    def after_backward(self, host: Host) -> None:
        """Take the decisions of this batch and set the rate for its update."""
        rows = host.num_current
        first = -self._samples % self.config.every
        self._samples += rows
        if self._x is not None and len(self._x) == self.config.window:
            for row in range(first, rows, self.config.every):
                self._factor = self._decided(host, row)
        for group, base in zip(host.optimizer.param_groups, self._bases, strict=True):
            group["lr"] = base * self._factor

    def after_step(self, host: Host) -> None:
        """Keep the latest samples."""
        size = self.config.window
        x, y = host.raw.detach(), host.y[: host.num_current]
        if self._x is not None and self._y is not None:
            x, y = torch.cat([self._x.to(x), x]), torch.cat([self._y.to(y), y])
        self._x, self._y = x[-size:].clone(), y[-size:].clone()

    def _decided(self, host: Host, row: int) -> float:
        """The factor of the base rate after the decision of one sample."""
        now, label = self._factor, int(host.y[row])
        effect = self._moved(self._direction(host, label))
        if self.config.decision == "random":
            generator = host.generator(f"homeostatic {self.config.seed} {row}")
            return effect if bool(torch.rand((), generator=generator) < 0.5) else now
        if self.config.decision == "greedy":
            tried = {f: self._hits(host, f) for f in (now, self._moved(1), self._moved(-1))}
            # The first of the best: staying, then up.
            return max(tried, key=lambda factor: tried[factor])
        predicted = int(host.logits[row].detach().argmax())
        candidate = self._moved(self._direction(host, predicted))
        return effect if self._hits(host, candidate) > self._hits(host, now) else now

    def _direction(self, host: Host, label: int) -> int:
        return 1 if 2 * label >= host.num_classes else -1

    def _moved(self, direction: int) -> float:
        return max(self._factor + direction * self.config.step, self.config.floor)

    def _hits(self, host: Host, factor: float) -> int:
        """Right answers on the window after an update with the given factor of the base rate."""
        assert self._x is not None
        assert self._y is not None
        names = {p: name for name, p in host.model.named_parameters()}
        moved: dict[str, Tensor] = {}
        with torch.no_grad(), untouched(host.model, mode="eval"):
            for group, base in zip(host.optimizer.param_groups, self._bases, strict=True):
                params = [p for p in group["params"] if p.grad is not None]
                steps = [p.grad for p in params]
                if group["weight_decay"]:
                    steps = list(torch._foreach_add(steps, params, alpha=group["weight_decay"]))
                made = torch._foreach_add(params, steps, alpha=-base * factor) if params else []
                moved.update({names[p]: value for p, value in zip(params, made, strict=True)})
            logits = functional_call(host.model, moved, (self._x.to(host.device),))
        host.count(forwards=len(self._x))
        return int((logits.argmax(1) == self._y.to(host.device)).sum())

    def forgotten(self, host: Host, request: ForgetRequest) -> None:
        """Empty the window, which may hold what was forgotten; it is full again soon."""
        self._x = self._y = None

    def state_dict(self) -> dict[str, Any]:
        """Rates, the count of samples, and the latest of them."""
        return {
            "bases": list(self._bases),
            "factor": self._factor,
            "samples": self._samples,
            "x": self._x,
            "y": self._y,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up a saved state."""
        self._bases = [float(base) for base in state["bases"]]
        self._factor, self._samples = float(state["factor"]), int(state["samples"])
        self._x, self._y = state["x"], state["y"]
