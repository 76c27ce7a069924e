"""Options and stored initial components of the UnMix-TNS traces."""

from __future__ import annotations

from typing import Any

import torch
from numpy.lib.npyio import NpzFile

import tta


def options(method: str, given: dict[str, Any]) -> dict[str, Any]:
    return {
        "components": given["K"],
        "max_batch_size": given["bs_max"],
        "temperature": given["softmax_temperature"],
    }


def install(adapter: tta.Adapter, meta: dict[str, Any], arrays: NpzFile) -> None:
    """``init/<layer>.running_means_mat`` and ``running_vars_mat``, ``(K, C)`` each."""
    buffers = {
        name.removeprefix("model."): buffer for name, buffer in adapter.model.named_buffers()
    }
    names = {"running_means_mat": "component_means", "running_vars_mat": "component_vars"}
    for key in arrays.files:
        if key.startswith("init/"):
            layer, _, kind = key.removeprefix("init/").rpartition(".")
            buffers[f"{layer}.{names[kind]}"].copy_(torch.from_numpy(arrays[key]))
