"""Options of the SAR traces."""

from __future__ import annotations

import math
from typing import Any

import torch
from maps import eta
from torch import Tensor

import tta


def options(method: str, given: dict[str, Any]) -> dict[str, Any]:
    ours = {
        "OPTIM.LR": ("lr", float),
        "OPTIM.MOMENTUM": ("momentum", float),
        "EATA.MARGIN_E0": ("entropy_margin", float),
        "SAR.RESET_CONSTANT_EM": ("recovery_threshold", float),
        # The official code takes its threshold in nats.
        "margin_e0": ("entropy_margin", lambda nats: nats / math.log(10)),
        "reset_constant_em": ("recovery_threshold", float),
        "rho": ("rho", float),
    }
    options = {name: make(given[key]) for key, (name, make) in ours.items() if key in given}
    recovery = "official" if "official" in method else "average"
    return {**options, "optimizer": "sgd", "recovery": recovery, "skip_top": "names"}


def tensors(adapter: tta.Adapter) -> dict[str, Tensor]:
    """As for ETA, and the moving average of the loss."""
    average = adapter.loss_average
    ema = {} if average is None else {"ema": torch.tensor(average, dtype=torch.float64)}
    return {**eta.tensors(adapter), **ema}
