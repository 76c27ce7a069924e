"""Extra passes of a plug-in through the learner that leave no trace in it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, nn


@contextmanager
def untouched(
    model: nn.Module,
    generator: torch.Generator | None = None,
    *,
    mode: Literal["train", "eval"] | None = None,
) -> Iterator[None]:
    """Inside, forwards of ``model`` write to copies of its buffers; modes are put back after.

    Weights are not copied: an optimiser's step inside would stay. ``.grad`` stays as it is as long
    as gradients are taken with ``torch.autograd.grad``.

    Args:
        model: The learner.
        generator: Seeds the draws of dropout and stochastic depth inside; torch's global
            generators are put back after. ``None`` leaves them alone, for passes that draw
            nothing.
        mode: Put the model in this mode inside; ``None`` keeps the modes of its layers.
    """
    modes = [(module, module.training) for module in model.modules()]
    # The originals are swapped out, not written back: writing to a buffer that an earlier forward
    # of the step has saved (BatchNorm in eval mode) would break its backward.
    owned = [(module, dict(module._buffers)) for module in model.modules() if module._buffers]
    copies: dict[int, Tensor] = {}
    for module, buffers in owned:
        for name, value in buffers.items():
            if value is not None:
                copy = copies.setdefault(id(value), value.detach().clone())
                module._buffers[name] = copy
    if mode is not None:
        model.train(mode == "train")
    try:
        if generator is None:
            yield
        else:
            with seeded(generator, model):
                yield
    finally:
        for module, buffers in owned:
            module._buffers.update(buffers)
        for module, training in modes:
            module.training = training


@contextmanager
def seeded(generator: torch.Generator, model: nn.Module) -> Iterator[None]:
    """Global draws inside (dropout) follow ``generator``, on the CPU and on the model's device.

    Args:
        generator: Its initial seed is taken; its own state does not move.
        model: Says which devices draw.
    """
    seed = generator.initial_seed()
    devices = sorted({p.device.index for p in model.parameters() if p.device.type == "cuda"})
    with torch.random.fork_rng(devices):
        torch.default_generator.manual_seed(seed)
        for device in devices:
            torch.cuda.default_generators[device].manual_seed(seed)
        yield


def trainable(model: nn.Module) -> dict[str, Tensor]:
    """Parameters that require a gradient, by name."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}
