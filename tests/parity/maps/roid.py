"""Options of the ROID traces; their augmentation is the identity."""

from __future__ import annotations

from typing import Any

from numpy.lib.npyio import NpzFile
from torch import Tensor

import tta

_OURS = {
    "ROID.USE_WEIGHTING": "weighting",
    "ROID.USE_PRIOR_CORRECTION": "prior_correction",
    "ROID.USE_CONSISTENCY": "consistency",
    "ROID.MOMENTUM_SRC": "source_momentum",
    "ROID.MOMENTUM_PROBS": "probs_momentum",
    "ROID.TEMPERATURE": "temperature",
}


def options(method: str, given: dict[str, Any]) -> dict[str, Any]:
    return {ours: given[key] for key, ours in _OURS.items() if key in given}


def install(adapter: tta.Adapter, meta: dict[str, Any], arrays: NpzFile) -> None:
    adapter.augment = lambda x, purpose: x  # type: ignore[assignment]


def tensors(adapter: tta.Adapter) -> dict[str, Tensor]:
    """Adapted weights and average prediction under the names of the trace."""
    named = {id(p): name.removeprefix("model.") for name, p in adapter.model.named_parameters()}
    weights = {named[id(p)]: p.detach() for p in adapter._params}
    return {**weights, "class_probs_ema": adapter.class_probs}
