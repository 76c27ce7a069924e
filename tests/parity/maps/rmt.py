"""Options, prototypes and projector of the RMT trace; its augmentation is the identity."""

from __future__ import annotations

from typing import Any

from maps import santa
from numpy.lib.npyio import NpzFile
from torch import Tensor

import tta

_OURS = {
    "M_TEACHER.MOMENTUM": "teacher_decay",
    "RMT.LAMBDA_CE_SRC": "source_weight",
    "RMT.LAMBDA_CE_TRG": "teacher_weight",
    "RMT.LAMBDA_CONT": "contrast_weight",
    "RMT.NUM_SAMPLES_WARM_UP": "warm_up_images",
    "CONTRAST.TEMPERATURE": "temperature",
    "CONTRAST.PROJECTION_DIM": "projection_dim",
}


def options(method: str, given: dict[str, Any]) -> dict[str, Any]:
    return {ours: given[key] for key, ours in _OURS.items() if key in given}


def install(adapter: tta.Adapter, meta: dict[str, Any], arrays: NpzFile) -> None:
    santa.install(adapter, meta, arrays)


def tensors(adapter: tta.Adapter) -> dict[str, Tensor]:
    """Student and teacher weights under the names of the trace."""
    teacher = {name.removeprefix("model."): p for name, p in adapter.teacher.items()}
    return santa.tensors(adapter) | {f"model_ema.{name}": p for name, p in teacher.items()}
