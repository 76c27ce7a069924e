"""Options of the ETA traces, and of all methods that select by entropy and redundancy."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

import tta
from tta import optim

_LOG_CLASSES = math.log(10)


def options(method: str, given: dict[str, Any]) -> dict[str, Any]:
    ours = {
        "EATA.MARGIN_E0": ("entropy_margin", float),
        "EATA.D_MARGIN": ("redundancy_margin", float),
        # The official code takes its threshold in nats.
        "e_margin": ("entropy_margin", lambda nats: nats / _LOG_CLASSES),
        "d_margin": ("redundancy_margin", float),
    }
    options = {name: make(given[key]) for key, (name, make) in ours.items() if key in given}
    # The official reset leaves the mean prediction as it is.
    return {**options, "reset_mean": "official" not in method}


def tensors(adapter: tta.Adapter) -> dict[str, Tensor]:
    """Scale and shift of the last layer and of all in one vector, and the mean prediction."""
    params = [p.detach() for p in optim.params_of(adapter.optimizer)]
    found = {
        "layer3.2.bn2.weight": params[-2],
        "layer3.2.bn2.bias": params[-1],
        "bn_affine": torch.cat([p.flatten() for p in params]),
    }
    mean = getattr(adapter, "mean_probability", None)
    return found if mean is None else {**found, "current_model_probs": mean}
