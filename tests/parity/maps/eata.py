"""Options of the EATA traces, and the Fisher information that they store."""

from __future__ import annotations

from typing import Any

import torch
from maps import eta
from numpy.lib.npyio import NpzFile
from torch import Tensor

import tta


def options(method: str, given: dict[str, Any]) -> dict[str, Any]:
    weight = given.get("EATA.FISHER_ALPHA", given.get("fisher_alpha"))
    return {**eta.options(method, given), "fisher_weight": float(weight or 0.0)}


def install(adapter: tta.Adapter, meta: dict[str, Any], arrays: NpzFile) -> None:
    """The float64 Fisher information where the trace stores it; else that of ``fit_source``."""
    if not any(name.startswith("f64/fisher/") for name in arrays.files):
        return
    fisher = [torch.from_numpy(arrays[f"f64/fisher/{name}"]) for name in arrays["fisher_names"]]
    assert [f.shape for f in fisher] == [f.shape for f in adapter.anchor]
    adapter.fisher = fisher
    adapter.source_fitted = True


def tensors(adapter: tta.Adapter) -> dict[str, Tensor]:
    """As for ETA."""
    return eta.tensors(adapter)
