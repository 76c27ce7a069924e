"""Options, prototypes and projector of the SANTA trace; its augmentation is the identity.

The trace stores the prototypes of its float32 run. Where the images are at hand
(``cifar10/train-*.parquet`` under ``meta["data_folder"]``) they are computed anew in float64.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from maps import adanpc
from numpy.lib.npyio import NpzFile
from torch import Tensor

import tta
from tta import source

_OURS = {
    "SANTA.LAMBDA_CE_TRG": "anchor_weight",
    "SANTA.LAMBDA_CONT": "contrast_weight",
    "CONTRAST.TEMPERATURE": "temperature",
    "CONTRAST.PROJECTION_DIM": "projection_dim",
}


def options(method: str, given: dict[str, Any]) -> dict[str, Any]:
    return {ours: given[key] for key, ours in _OURS.items() if key in given}


def install(adapter: tta.Adapter, meta: dict[str, Any], arrays: NpzFile) -> None:
    """What the reference drew (projector) and took from source images (prototypes)."""
    adapter.augment = lambda x, purpose: x  # type: ignore[assignment]
    adapter.prototypes = prototypes(adapter, meta, torch.from_numpy(arrays["init/prototypes"]))
    start = "init/projector."
    stored = {k.removeprefix(start): arrays[k] for k in arrays if k.startswith(start)}
    adapter.projector.load_state_dict({k: torch.from_numpy(v) for k, v in stored.items()})
    adapter.source_fitted = True


def prototypes(adapter: tta.Adapter, meta: dict[str, Any], stored: Tensor) -> Tensor:
    """Class means of the trace's 1,000 training images in batches of 50, else the stored ones."""
    found = sorted(Path(meta.get("data_folder", "")).glob("cifar10/train-*.parquet"))
    if not found:
        return stored.double()
    from pyarrow import parquet

    labels = parquet.read_table(found[0], columns=["label"])["label"].to_numpy()
    y = torch.from_numpy(labels[np.load(adanpc.ROWS, allow_pickle=False)])
    batches = zip(adanpc._images(found[0]).split(50), y.split(50), strict=True)
    means = source.class_means(adapter._tap, adapter.model, batches)
    if (means - stored).abs().max() > 1e-5:
        raise ValueError("the CIFAR-10 images are not those of the trace")
    return means


def tensors(adapter: tta.Adapter) -> dict[str, Tensor]:
    """Adapted weights under the names of the trace."""
    named = adapter.model.named_parameters()
    return {name.removeprefix("model."): p.detach() for name, p in named if p.requires_grad}
