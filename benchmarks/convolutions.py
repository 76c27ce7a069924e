"""What a network's convolutions cost alone: ``python -m benchmarks.convolutions``.

No change around them makes a step faster than they are. For both memory layouts, in turn: a
forward, and a forward and backward as of a network whose BatchNorm layers are adapted (gradients of
the feature maps alone), of the network and of its convolutions at the same shapes.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from benchmarks.allocator import keep_freed_memory
from tta import norms
from tta.backbones import load
from tta.errors import AdapterError
from tta.execution import Layout, lay_out
from tta.losses import entropy

LAYOUTS: tuple[Layout, Layout] = ("contiguous", "channels-last")


class Layer(NamedTuple):
    """A convolution with an input and a gradient of the shapes that it has in the network."""

    module: nn.Conv2d
    x: Tensor
    grad: Tensor


def layers(model: nn.Module, x: Tensor, layout: Layout) -> list[Layer]:
    """The convolutions of ``model`` for images ``x`` ``(B, C, H, W)``, in a layout."""
    kind = torch.channels_last if layout == "channels-last" else torch.contiguous_format
    found: list[Layer] = []

    def note(module: nn.Module, args: tuple[Tensor], out: Tensor) -> None:
        own = copy.deepcopy(module).to(memory_format=kind)
        assert isinstance(own, nn.Conv2d)
        own._forward_hooks.clear()
        made = (torch.randn_like(t.contiguous(memory_format=kind)) for t in (args[0], out))
        found.append(Layer(own, *made))

    parts = [part for part in model.modules() if isinstance(part, nn.Conv2d)]
    hooks = [part.register_forward_hook(note) for part in parts]
    with torch.no_grad():
        model(x)
    for hook in hooks:
        hook.remove()
    return found


def alone(parts: list[Layer], *, back: bool) -> float:
    """Seconds of the convolutions; nothing goes back to the images."""
    seconds = 0.0
    for number, (module, x, grad) in enumerate(parts):
        leaf = x.detach().requires_grad_(back and number > 0)
        started = time.perf_counter()
        with torch.set_grad_enabled(back):
            out = module(leaf)
        if back and number:
            out.backward(grad)
        seconds += time.perf_counter() - started
    return seconds


def whole(model: nn.Module, x: Tensor, *, back: bool) -> float:
    """Seconds of the network, of its mean entropy where it goes back."""
    started = time.perf_counter()
    with torch.set_grad_enabled(back):
        logits = model(x)
    if back:
        entropy(logits).mean().backward()  # type: ignore[no-untyped-call]
    return time.perf_counter() - started


def measure(model: nn.Module, x: Tensor, rounds: int) -> dict[str, dict[str, float]]:
    """Median milliseconds by layout, then by what was computed."""
    calls: dict[tuple[str, str], Callable[[], float]] = {}
    for layout in LAYOUTS:
        network = copy.deepcopy(model).eval().requires_grad_(False)
        lay_out(network, layout)
        norms.enable_affine(network)
        norms.use_batch_statistics(network)
        parts = layers(network, x, layout)
        for back, words in ((False, "forward"), (True, "forward and backward")):
            calls[layout, f"network, {words}"] = partial(whole, network, x, back=back)
            calls[layout, f"convolutions, {words}"] = partial(alone, parts, back=back)
    times: dict[tuple[str, str], list[float]] = {key: [] for key in calls}
    for turn in range(rounds + 1):
        for key, call in calls.items():
            seconds = call()
            if turn:  # the first warms up
                times[key].append(1e3 * seconds)
    made: dict[str, dict[str, float]] = {layout: {} for layout in LAYOUTS}
    for (where, words), values in times.items():
        made[where][words] = round(statistics.median(values), 2)
    return made


def main(words: list[str] | None = None) -> int:
    """Parse the arguments, measure, print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--backbone", default="fashion-resnet")
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--batch-size", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures there")
    given = parser.parse_args(words)
    keep_freed_memory()
    try:
        backbone = load(given.backbone, checkpoint=given.checkpoint)
    except AdapterError as error:
        sys.stderr.write(f"convolutions: error: {error}\n")
        return 2
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(given.batch_size, 3, *backbone.input_size, generator=generator)
    made = measure(backbone.model, x, given.rounds)
    for layout, values in made.items():
        for name, milliseconds in values.items():
            sys.stdout.write(f"{layout:14} {name:38} {milliseconds:9.1f} ms\n")
    if given.json is not None:
        given.json.write_text(json.dumps(made, indent=2), "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
