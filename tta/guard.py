"""A guard around an adapter: it compares it with the source model and steps in when it is worse.

``tta.wrap(model, "tent", guard=tta.guard.GuardConfig())`` or ``guard="rollback"``. The signals are
in ``tta.guard_signals``, the label-free accuracy estimate in ``tta.estimate``.

Rhythm. A *check* asks the frozen source model for the images of the batch (of the last ``window``
images, where batches are smaller). Checks come at the first batch, then 1, 2, 4, ... batches apart
up to ``every``. Values that cost no forward (entropy, marginal entropy and norm of the logits) are
looked at in each step; when they leave those of the last good check, the next check comes at once,
but once between two regular ones. The answer of a batch that raises an alarm is the source's.

Escalation. A first alarm of ``action="rollback"`` restores the last good snapshot and checks again
at the next batch. Any further one (the first, where batches are smaller than the window) puts the
adapter back to its start and gives the source model's answers for a while, which doubles from alarm
to alarm; then the adapter adapts again behind the source's answers, and answers itself once two
such probes were good. An adapter that answers well for ``FORGIVEN`` times as long as its last
suspension loses one alarm of its record.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from tta import ema
from tta import guard_signals as signals
from tta.config import Config, did_you_mean, param
from tta.errors import AdapterError
from tta.guarded_call import GuardedCall
from tta.heads import Tap

if TYPE_CHECKING:
    from tta.adapter import Adapter

Action = Literal["rollback", "fallback", "freeze", "watch"]
ACTIONS: tuple[Action, ...] = ("rollback", "fallback", "freeze", "watch")


@dataclass(frozen=True, kw_only=True, slots=True)
class GuardConfig(Config):
    """What a guard does; thresholds are in standard errors of the images at hand."""

    action: Action = param(
        "rollback", "rollback, then fallback; fallback to the source; freeze; or watch alone"
    )
    every: int = param(10, "batches between two checks against the source model", ge=1)
    window: int = param(64, "images of a check at least; smaller batches are pooled", ge=2)
    level: float = param(3.0, "summed excess, in standard errors, that raises an alarm", gt=0)
    estimate: bool = param(False, "estimate the accuracy in each step (AETTA)")
    dropout: float | None = param(
        None, "rate of the estimate; by the number of classes if not set", gt=0, lt=1
    )


Guarding = GuardConfig | str | Mapping[str, Any]


def as_config(guard: Guarding) -> GuardConfig:
    """A config from itself, an action, or options by name.

    Raises:
        AdapterError: For an unknown action or option, with the nearest name.
    """
    if isinstance(guard, GuardConfig):
        return guard
    options = {"action": guard} if isinstance(guard, str) else dict(guard)
    action = options.get("action", "rollback")
    if action not in ACTIONS:
        near = did_you_mean(str(action), ACTIONS)
        raise AdapterError(
            f"unknown action {action!r} of the guard{near}; it has {', '.join(ACTIONS)}"
        )
    return GuardConfig.create(options)


def empty() -> dict[str, Any]:
    """The state of a guard that has seen nothing: plain containers, numbers and tensors."""
    return {
        **{"phase": "live", "alarms": 0, "strikes": 0, "served": 0},
        **{"next": 0, "gap": 1, "early": False, "hold": 0, "probes": 0, "since": 0},
        **{"sums": signals.no_sums(), "spread": signals.no_spread(), "base": None},
        **{"good": None, "candidate": None, "images": [], "logits": []},
        **{"smoothed": None, "estimates": []},
    }


class Guard:
    """The part of a guard that does not change; its state is ``adapter.guard_state``.

    Args:
        config: What it does.
        source: The source model; used as it is, it must be nobody else's.

    Raises:
        AdapterError: If an estimate is asked for and the model has no linear classifier.
    """

    def __init__(self, config: GuardConfig, source: nn.Module) -> None:
        self.config = config
        self.source = source.eval().requires_grad_(False)
        self.tap = Tap(source) if config.estimate else None

    def step(self, adapter: Adapter, x: Tensor, live: Callable[[Tensor], Tensor]) -> Tensor:
        """One call of a guarded adapter.

        Args:
            adapter: The adapter; its report gets the guard's values.
            x: Images ``(B, C, H, W)``.
            live: The adapter's own call.

        Returns:
            Logits ``(B, K)``.
        """
        return GuardedCall(self, adapter, x, live).run()

    def move(self, fn: Callable[[Tensor], Tensor]) -> None:
        """Follow the adapter to its device and dtype."""
        self.source._apply(fn)  # type: ignore[no-untyped-call]

    def answer(self, x: Tensor) -> Tensor:
        """The source model's logits ``(B, K)`` for finite images."""
        with torch.inference_mode(False), torch.no_grad():
            logits: Tensor = self.source(x)
        return logits


def attach(adapter: Adapter, config: GuardConfig, source: nn.Module) -> None:
    """Give a fresh adapter a guard.

    Args:
        adapter: Not used yet, and not fitted.
        config: What the guard does.
        source: An independent copy of the source model.

    Raises:
        AdapterError: If the method resets in every step.
    """
    if adapter.config.episodic:
        raise AdapterError("a guard has nothing to do where episodic=True resets every step")
    adapter._guard = Guard(config, source)
    adapter.add_state("guard_state", empty())
    adapter._keep_initial()


def source_copy(model: nn.Module) -> nn.Module:
    """The frozen copy that a guard keeps.

    Raises:
        AdapterError: If the model cannot be copied.
    """
    try:
        return ema.frozen_copy(model)
    except RuntimeError as error:
        raise AdapterError(f"the model cannot be copied ({error}), which a guard needs") from error


__all__ = [
    "ACTIONS",
    "Guard",
    "GuardConfig",
    "Guarding",
    "as_config",
    "attach",
    "empty",
    "source_copy",
]
