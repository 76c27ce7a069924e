"""Options of the CoTTA traces, whose augmentation is a horizontal flip."""

from __future__ import annotations

from typing import Any

import torch
from numpy.lib.npyio import NpzFile
from torch import Tensor

import tta

_OURS = {
    "M_TEACHER.MOMENTUM": "teacher_decay",
    "mt": "teacher_decay",
    "COTTA.AP": "confidence_threshold",
    "ap": "confidence_threshold",
    "COTTA.RST": "restore_probability",
    "rst": "restore_probability",
    "TEST.N_AUGMENTATIONS": "num_views",
    "N": "num_views",
}


def options(method: str, given: dict[str, Any]) -> dict[str, Any]:
    return {ours: given[key] for key, ours in _OURS.items() if key in given}


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
