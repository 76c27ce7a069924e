"""Sliding window: a method that needs a batch, on a stream that brings single images.

``tta.wrap(model, "tent", window=16)``. A batch with fewer images than the window goes into a ring
of the last ``size`` images. Each time the ring has been filled the method adapts to all of it; the
images of a call get the logits of their own rows. Between two updates nothing is adapted: a model
with BatchNorm layers is asked for the whole ring, so that its statistics are those of ``size``
images, any other model for the new images alone. The first ``size - 1`` images see a shorter ring.

Limits: batches of ``size`` images and more pass by and leave the ring as it is. Each call costs the
forward of the whole ring on models with BatchNorm. Statistics that move by themselves (replaced
layers, ``tta.norm_layers``) move with the updates alone. Images of another size start a new ring.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tta import norms
from tta.memory import Fifo

if TYPE_CHECKING:
    from tta.adapter import Adapter


def step(adapter: Adapter, x: Tensor) -> Tensor:
    """One call of a windowed adapter.

    Args:
        adapter: Its ``ring`` is a ``Fifo``'s state, its ``_window`` the size, at least 2.
        x: New images ``(B, C, H, W)``.

    Returns:
        Logits ``(B, K)`` of ``x``.
    """
    size = adapter._window
    if len(x) >= size:
        return adapter._adapt_once(x)
    ring = Fifo(adapter.ring, size)
    logits = []
    while len(x):
        # The ring is filled at its last slot; what is left over begins the next round.
        part, x = x.tensor_split([size - ring.next])
        slots = ring.add(part)
        if ring.next == 0:
            logits.append(adapter._adapt_once(ring.images().clone()).detach()[slots])
        else:
            logits.append(_between(adapter, ring, part, slots))
    return torch.cat(logits)


@torch.no_grad()
def _between(adapter: Adapter, ring: Fifo, part: Tensor, slots: list[int]) -> Tensor:
    """Logits of the images ``part`` in ``slots`` of the ring, before it is full again."""
    whole = any(layer.kind == "bn" for layer in norms.find(adapter.model))
    seen = ring.images() if whole else part
    adapter.count_forwards(len(seen))
    logits = adapter.infer(seen)
    return logits[slots] if whole else logits
