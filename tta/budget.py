"""A budget for adaptation: over it the adapter only predicts, and says so.

``tta.wrap(model, "tent", budget={"update_every": 4})``. A call without adaptation is
``adapter.predict``: no state moves but the counter of steps. The report holds ``degraded`` 1 and
the reason is ``adapter.degraded``.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from tta.config import Config, param


@dataclass(frozen=True, kw_only=True, slots=True)
class BudgetConfig(Config):
    """Limits; ``None`` is no limit."""

    update_every: int = param(1, "adapt on each n-th call, the first included", ge=1)
    max_selected: int | None = param(
        None, "images learnt from since the last reset; then prediction alone", ge=0
    )
    max_step_seconds: float | None = param(
        None,
        "mean wall time of a call: a longer one is paid back by predictions; not reproducible",
        gt=0,
    )


def empty() -> dict[str, Any]:
    """The state of a budget of which nothing was spent."""
    return {"calls": 0, "selected": 0.0, "debt": 0.0}


def reason(config: BudgetConfig, state: dict[str, Any]) -> str | None:
    """Which limit keeps this call from adapting, by name; ``None``: adapt."""
    if state["calls"] % config.update_every:
        return "update_every"
    if config.max_selected is not None and state["selected"] >= config.max_selected:
        return "max_selected"
    if config.max_step_seconds is not None and state["debt"] > 0:
        return "max_step_seconds"
    return None


def spend(
    config: BudgetConfig,
    state: dict[str, Any],
    step: Callable[[], Tensor],
    selected: Callable[[], float],
) -> Tensor:
    """Make one call and book its cost.

    Args:
        config: The limits.
        state: ``empty``'s; changed in place.
        step: The call.
        selected: Asked after it: images that were learnt from.
    """
    started = time.perf_counter() if config.max_step_seconds is not None else 0.0
    logits = step()
    state["calls"] += 1
    state["selected"] += selected()
    if config.max_step_seconds is not None:
        if logits.is_cuda:
            logits.sum().item()  # wait for the device
        taken = time.perf_counter() - started
        state["debt"] = max(0.0, state["debt"] + taken - config.max_step_seconds)
    return logits
