"""The memory layout of a run: chosen, or measured once per backbone and machine."""

from __future__ import annotations

import hashlib
import json
import platform
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from benchmarks.files import write_json
from streams.cache import cache_dir
from tta import execution

Choice = Literal["auto", "own", "contiguous", "channels-last"]
# Enough images that no core is idle, few enough that the probe takes about a second.
_PIXELS = 2**18
_KNOWN: tuple[execution.Layout, ...] = ("contiguous", "channels-last")


def resolved(choice: Choice, model: nn.Module, x: Tensor, backbone: str) -> execution.Layout:
    """The layout that a choice means for a model on this machine.

    ``auto`` leaves a model alone that comes in channels-last, and any in float64: what is compared
    with an original to the last digit must not depend on a probe. For every other one both layouts
    are measured, and the answer is kept in the cache folder.

    Args:
        choice: What was asked for.
        model: On its device.
        x: Images ``(B, C, H, W)`` like those of the stream.
        backbone: Name of the model.
    """
    if choice != "auto":
        return choice
    if x.dtype == torch.float64 or execution.layout_of(model) != "contiguous":
        return "own"
    images = max(1, min(len(x), _PIXELS // x[0, 0].numel()))
    file = _file(f"{backbone}/{tuple(x.shape[1:])}/{images}/{x.dtype}/{x.device}")
    try:
        known = json.loads(file.read_text("utf-8"))["layout"]
        for layout in _KNOWN:
            if known == layout:
                return layout
    except (OSError, ValueError, KeyError, TypeError):
        pass  # absent or damaged: it is measured again
    found = execution.faster_layout(model, x[:images])
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, {"layout": found, "backbone": backbone})
    except OSError:
        pass  # a cache that cannot be written is measured again
    return found


def _file(what: str) -> Path:
    # Home folders, and the caches in them, are shared between machines that are not alike.
    machine = (platform.node(), platform.machine(), torch.get_num_threads())
    key = f"{what}/{machine}/{torch.__version__}"
    return cache_dir() / "layout" / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.json"
