"""Options of the PETAL traces: the source as mean, deviations 0.01 + 0.1 |w|, mirrored views."""

from __future__ import annotations

from typing import Any

import torch
from numpy.lib.npyio import NpzFile
from torch import Tensor

import tta

_OURS = {
    "mt": "teacher_decay",
    "MT": "teacher_decay",
    "perc": "fisher_quantile",
    "PERC": "fisher_quantile",
    "spw": "prior_weight",
    "SPW": "prior_weight",
    "ap": "confidence_threshold",
    "AP": "confidence_threshold",
    "N": "num_views",
    "LR": "lr",
    "WD": "weight_decay",
}


def options(method: str, given: dict[str, Any]) -> dict[str, Any]:
    options = {ours: given[key] for key, ours in _OURS.items() if key in given}
    if "METHOD" in given:
        options |= {"optimizer": given["METHOD"].lower(), "betas": (given["BETA"], 0.999)}
    return {**options, "restore": "fisher", "fallback_deviation": (0.01, 0.1)}


def install(adapter: tta.Adapter, meta: dict[str, Any], arrays: NpzFile) -> None:
    adapter.augment = lambda x, purpose: x.flip(-1)  # type: ignore[assignment]


def tensors(adapter: tta.Adapter) -> dict[str, Tensor]:
    """Student and teacher weights under the names of the trace."""
    named = {}
    for prefix, weights in (("", adapter._params), ("model_ema.", adapter.teacher)):
        plain = {name.removeprefix("model."): p.detach() for name, p in weights.items()}
        named |= {f"{prefix}{name}": p for name, p in plain.items()}
        named[f"{prefix}bn_affine"] = torch.cat([p for name, p in plain.items() if "bn" in name])
    return named
