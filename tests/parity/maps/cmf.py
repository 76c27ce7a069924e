"""Options of the CMF trace; its augmentation is the identity."""

from __future__ import annotations

from typing import Any

from maps import roid
from numpy.lib.npyio import NpzFile
from torch import Tensor

import tta

_OURS = {
    "CMF.ALPHA": "source_momentum",
    "CMF.GAMMA": "hidden_momentum",
    "CMF.Q": "process_noise",
}


def options(method: str, given: dict[str, Any]) -> dict[str, Any]:
    ours = {ours: given[key] for key, ours in _OURS.items() if key in given}
    return {**roid.options(method, given), **ours}


def install(adapter: tta.Adapter, meta: dict[str, Any], arrays: NpzFile) -> None:
    roid.install(adapter, meta, arrays)


def tensors(adapter: tta.Adapter) -> dict[str, Tensor]:
    """As ROID's, and the hidden model."""
    named = roid.tensors(adapter)
    hidden = zip(list(named)[: len(adapter.hidden)], adapter.hidden, strict=True)
    return {**named, **{f"hidden_model.{name}": value for name, value in hidden}}
