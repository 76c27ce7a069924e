"""A budget for adaptation: over it the adapter only predicts, and says so.

``tta.wrap(model, "tent", budget={"update_every": 4})``. A call without adaptation is
``adapter.predict``: no state moves but the counter of steps. The report holds ``degraded`` 1 and
the reason is ``adapter.degraded``.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tta import inputs
from tta.config import Config, param

if TYPE_CHECKING:
    from tta.adapter import Adapter


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


def step(adapter: Adapter, x: Tensor) -> Tensor:
    """One call of an adapter with a budget; its cost is booked in ``adapter.budget_state``.

    Args:
        adapter: The adapter.
        x: Images ``(B, C, H, W)``.

    Returns:
        Logits ``(B, K)``.
    """
    config, state = adapter._budget, adapter.budget_state
    assert config is not None
    started = time.perf_counter()
    adapter.degraded = reason(config, state)
    if adapter.degraded is None:
        logits = adapter._ordinary_call(x)
        share = float(adapter._report.get("selected_fraction", 1.0))
        state["selected"] += share * len(x)
    else:
        logits = without_adapting(adapter, x, adapter.predict)
        adapter.count_forwards(len(x))
    state["calls"] += 1
    if config.max_step_seconds is not None:
        if logits.is_cuda:
            torch.cuda.synchronize(logits.device)
        taken = time.perf_counter() - started
        state["debt"] = max(0.0, state["debt"] + taken - config.max_step_seconds)
    adapter._report["degraded"] = float(adapter.degraded is not None)
    return logits


def without_adapting(adapter: Adapter, x: Tensor, answer: Callable[[Tensor], Tensor]) -> Tensor:
    """A call that moves nothing but the counter of steps, with a report as of a step."""
    adapter._report = {"forwards": 0, "backwards": 0, "update_refused": 0}
    adapter._report["skipped_non_finite"] = inputs.not_usable(x)
    logits = answer(x)
    adapter.num_steps += 1
    return logits


def limit(adapter: Adapter, config: BudgetConfig) -> None:
    """Give a fresh adapter a budget."""
    adapter._budget = config
    adapter.add_state("budget_state", empty())
    adapter._keep_initial()
