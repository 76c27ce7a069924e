"""Options of the COME traces: those of the host, with the literal number of classes."""

from __future__ import annotations

import math
from typing import Any

from maps import eata, eta, sar
from numpy.lib.npyio import NpzFile
from torch import Tensor

import tta


def options(method: str, given: dict[str, Any]) -> dict[str, Any]:
    host, classes = method.split("_")[1], int(given["K"])
    official = f"{host}_official"
    options: dict[str, Any] = {"host": host, "opinion_classes": classes}
    if host == "eata":
        options |= eata.options(official, given)
    elif host == "sar":
        options |= sar.options(official, given)
    if "entropy_margin" in options:  # its ln K is that of the opinion
        options["entropy_margin"] *= math.log(10) / math.log(classes)
    return options


def install(adapter: tta.Adapter, meta: dict[str, Any], arrays: NpzFile) -> None:
    """The Fisher information of the host ``eata``."""
    if adapter.config.host == "eata":
        eata.install(adapter, meta, arrays)


def tensors(adapter: tta.Adapter) -> dict[str, Tensor]:
    """As for ETA."""
    return eta.tensors(adapter)
