"""From the names of the reference implementations to ours."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.lib.npyio import NpzFile

import tta

CLASSES = 10


def adapter_of(meta: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Our method and config for a trace.

    Raises:
        ValueError: If we have no method of that name.
    """
    name = _method(meta["method"])
    given = meta["hyperparameters"]
    options = _optimizer(given)
    options["episodic"] = bool(given.get("episodic", given.get("MODEL.EPISODIC", False)))
    options |= _SPECIFIC.get(name, lambda method, given: {})(meta["method"], given)
    known = tta.adapter_config(name).__dataclass_fields__
    return name, {key: value for key, value in options.items() if key in known}


def external_resets(meta: dict[str, Any]) -> set[int]:
    """Numbers of finished steps after which the evaluation loop reset the method.

    Methods that decide on their own recovery do it inside.
    """
    if _method(meta["method"]) in {"sar", "rdumb"}:
        return set()
    return set(meta["hyperparameters"].get("reset_after_steps") or ())


def install_draws(adapter: tta.Adapter, arrays: NpzFile) -> None:
    """Give the adapter the random draws that the trace stores."""
    if "perm" in arrays:
        perm = np.asarray(arrays["perm"])

        def patch_permutations(images: int, step: int = 0) -> torch.Tensor:
            return torch.from_numpy(perm[adapter.num_steps])[:images]

        adapter.patch_permutations = patch_permutations  # type: ignore[assignment]


def _method(name: str) -> str:
    parts = name.split("_")
    for stop in range(len(parts), 0, -1):
        for candidate in ("-".join(parts[:stop]), "".join(parts[:stop])):
            if candidate in tta.list_adapters():
                return candidate
    raise ValueError(f"no adapter for the method {name!r}")


def _optimizer(given: dict[str, Any]) -> dict[str, Any]:
    if "OPTIM.METHOD" in given:
        beta2 = given.get("OPTIM.BETA2", 0.999)
        options = {
            "optimizer": given["OPTIM.METHOD"].lower(),
            "lr": given["OPTIM.LR"],
            "momentum": given.get("OPTIM.MOMENTUM", 0.9),
            "nesterov": given.get("OPTIM.NESTEROV", True),
            "betas": (given.get("OPTIM.BETA", 0.9), beta2),
            "weight_decay": float(given.get("OPTIM.WD", 0.0)),
            "steps": given.get("OPTIM.STEPS", 1),
        }
    elif "optimiser" in given:
        options = {
            "optimizer": given["optimiser"].lower(),
            "lr": given["lr"],
            "momentum": given.get("momentum", 0.0),
            "nesterov": given.get("nesterov", False),
            "betas": tuple(given.get("betas", (0.9, 0.999))),
            "weight_decay": float(given.get("weight_decay", 0.0)),
            "steps": given.get("steps", 1),
        }
    else:
        options = {}
    return options


def _norm(method: str, given: dict[str, Any]) -> dict[str, Any]:
    options: dict[str, Any] = {"statistics": method.split("_")[1]}
    if "BN.ALPHA" in given:
        options["alpha"] = given["BN.ALPHA"]
    return options


def _deyo(method: str, given: dict[str, Any]) -> dict[str, Any]:
    log_classes = math.log(CLASSES)
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


_SPECIFIC = {
    "norm": _norm,
    "deyo": _deyo,
}
