"""How a model computes, whatever it computes: memory layout, precision, compilation.

Layout and compilation change no value beyond rounding; ``bf16`` does, and is said in every row.
"""

from __future__ import annotations

import copy
import statistics
import time
from typing import Literal

import torch
from torch import Tensor, nn

from tta.backbones import Normalized

Layout = Literal["own", "contiguous", "channels-last"]
Precision = Literal["bf16"]

# A layout has to be clearly faster: near a tie the answer would change from day to day.
_CLEARLY = 0.95


def lay_out(model: nn.Module, layout: Layout) -> None:
    """Give a model a memory layout, in place.

    Args:
        model: Any module; each ``Normalized`` in it hands on its images in the layout.
        layout: ``channels-last``, ``contiguous``, or ``own``: as it is.
    """
    if layout == "own":
        return
    last = layout == "channels-last"
    for part in model.modules():
        if isinstance(part, Normalized):
            part.channels_last = last
    kind = torch.channels_last if last else torch.contiguous_format
    model.to(memory_format=kind)


def layout_of(model: nn.Module) -> Layout:
    """The layout in which the first ``Normalized`` of ``model`` hands on its images."""
    for part in model.modules():
        if isinstance(part, Normalized):
            return "channels-last" if part.channels_last else "contiguous"
    return "own"


def faster_layout(model: nn.Module, x: Tensor, rounds: int = 5) -> Layout:
    """The layout in which a forward and a backward to the images take the least time here.

    Args:
        model: In eval mode; a copy of it is measured.
        x: Images ``(B, C, H, W)`` of the usual size.
        rounds: Both layouts are timed this often, in turn.
    """
    layouts: tuple[Layout, Layout] = ("contiguous", "channels-last")
    twins = {layout: copy.deepcopy(model) for layout in layouts}
    for layout, twin in twins.items():
        lay_out(twin, layout)
    times: dict[Layout, list[float]] = {layout: [] for layout in layouts}
    for turn in range(rounds + 1):
        for layout, twin in twins.items():
            seconds = _seconds(twin, x)
            if turn:  # the first turn warms up
                times[layout].append(seconds)
    plain, last = (statistics.median(times[layout]) for layout in layouts)
    return "channels-last" if last < _CLEARLY * plain else "contiguous"


def _seconds(model: nn.Module, x: Tensor) -> float:
    x = x.detach().clone().requires_grad_()
    _synchronise(x)
    started = time.perf_counter()
    with torch.inference_mode(False), torch.enable_grad():
        loss: Tensor = model(x).logsumexp(1).mean()
        torch.autograd.grad(loss, x)
    _synchronise(x)
    return time.perf_counter() - started


def _synchronise(x: Tensor) -> None:
    if x.is_cuda:
        torch.cuda.synchronize(x.device)


def set_precision(model: nn.Module, precision: Precision | None) -> None:
    """Let each ``Normalized`` of ``model`` compute under autocast; its logits keep their dtype.

    Args:
        model: Any module.
        precision: ``bf16``: convolutions and products in bfloat16, weights stay as they are;
            ``None``: as the weights are.
    """
    for part in model.modules():
        if isinstance(part, Normalized):
            part.autocast = torch.bfloat16 if precision == "bf16" else None


def compile_(model: nn.Module) -> None:
    """Compile the network inside each ``Normalized`` of ``model``, in place; names stay.

    An adapter is given as a whole: its teachers and anchors are compiled with it. A copy of a
    compiled module is not compiled.
    """
    for part in model.modules():
        if isinstance(part, Normalized):
            part.model.compile()
