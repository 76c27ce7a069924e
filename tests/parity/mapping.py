"""From the names of the reference implementations to ours."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from numpy.lib.npyio import NpzFile
from torch import Tensor

import tta

MAPS = Path(__file__).parent / "maps"


def adapter_of(meta: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Our method and config for a trace.

    Raises:
        ValueError: If we have no method of that name.
    """
    name = _method(meta["method"])
    given = meta["hyperparameters"]
    options = _optimizer(given)
    options["episodic"] = bool(given.get("episodic", given.get("MODEL.EPISODIC", False)))
    specific = _map(name)
    options |= specific.options(meta["method"], given) if specific else {}
    # ``norm`` belongs to ``tta.wrap``; the other keys that a method lacks do not apply to it.
    known = {"norm", *tta.adapter_config(name).__dataclass_fields__}
    return name, {key: value for key, value in options.items() if key in known}


def external_resets(meta: dict[str, Any]) -> set[int]:
    """Numbers of finished steps after which the evaluation loop reset the method.

    Methods that decide on their own recovery do it inside.
    """
    if _method(meta["method"]) in {"sar", "rdumb"}:
        return set()
    return set(meta["hyperparameters"].get("reset_after_steps") or ())


def install(adapter: tta.Adapter, meta: dict[str, Any], arrays: NpzFile) -> None:
    """Give the adapter the random draws and the source state that the trace stores."""
    specific = _map(adapter.name)
    if specific is not None and hasattr(specific, "install"):
        specific.install(adapter, meta, arrays)


def tensors(adapter: tta.Adapter) -> dict[str, Tensor]:
    """Adapted tensors under the names that the traces store them by; empty if the map names none.

    A map may define ``tensors(adapter)``.
    """
    specific = _map(adapter.name)
    return specific.tensors(adapter) if hasattr(specific, "tensors") else {}


def _map(name: str) -> ModuleType | None:
    """``maps/<method>.py``: ``options(method, hyperparameters)`` and, if need be, ``install``."""
    if not (MAPS / f"{name.replace('-', '_')}.py").exists():
        return None
    if str(MAPS.parent) not in sys.path:
        sys.path.insert(0, str(MAPS.parent))
    return import_module(f"maps.{name.replace('-', '_')}")


def _method(name: str) -> str:
    parts = name.split("_")
    known = {adapter.replace("-", ""): adapter for adapter in tta.list_adapters()}
    for stop in range(len(parts), 0, -1):
        if "".join(parts[:stop]) in known:
            return known["".join(parts[:stop])]
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
