"""Options and stored permutations of the DeYO traces."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.lib.npyio import NpzFile

import tta


def options(method: str, given: dict[str, Any]) -> dict[str, Any]:
    log_classes = math.log(10)
    kinds = {"occ": "occlusion", "patch": "patch", "pixel": "pixel"}
    ours = {
        "DEYO.AUG_TYPE": ("destruction", kinds.get),
        "aug_type": ("destruction", kinds.get),
        "DEYO.OCCLUSION_SIZE": ("occlusion_size", int),
        "occlusion_size": ("occlusion_size", int),
        "DEYO.ROW_START": ("occlusion_row", int),
        "row_start": ("occlusion_row", int),
        "DEYO.COLUMN_START": ("occlusion_column", int),
        "column_start": ("occlusion_column", int),
        "DEYO.PATCH_LEN": ("patch_grid", int),
        "patch_len": ("patch_grid", int),
        "DEYO.REWEIGHT_ENT": ("reweight_entropy", bool),
        "reweight_ent": ("reweight_entropy", bool),
        "DEYO.REWEIGHT_PLPD": ("reweight_plpd", bool),
        "reweight_plpd": ("reweight_plpd", bool),
        "DEYO.FILTER_ENT": ("filter_entropy", bool),
        "filter_ent": ("filter_entropy", bool),
        "DEYO.FILTER_PLPD": ("filter_plpd", bool),
        "filter_plpd": ("filter_plpd", bool),
        "DEYO.PLPD": ("plpd_threshold", float),
        "plpd_threshold": ("plpd_threshold", float),
        "DEYO.MARGIN": ("entropy_threshold", float),
        "EATA.MARGIN_E0": ("entropy_margin", float),
        # The official code takes its thresholds in nats.
        "deyo_margin": ("entropy_threshold", lambda nats: nats / log_classes),
        "margin_e0": ("entropy_margin", lambda nats: nats / log_classes),
    }
    options = {name: make(given[key]) for key, (name, make) in ours.items() if key in given}
    return {**options, "skip_top": "names"}


def install(adapter: tta.Adapter, meta: dict[str, Any], arrays: NpzFile) -> None:
    """Patch permutations ``(steps, batch, patches)`` as the trace drew them."""
    if "perm" in arrays:
        perm = np.asarray(arrays["perm"])

        def patch_permutations(images: int, step: int = 0) -> torch.Tensor:
            return torch.from_numpy(perm[adapter.num_steps])[:images]

        adapter.patch_permutations = patch_permutations  # type: ignore[assignment]
