"""A buffer of past samples in a learner's loop: offered each step, drawn, cleared on request."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from continual.buffers import Buffer, ClassBalanced, Reservoir
from continual.passes import untouched
from continual.plugin import Host, PluginConfig
from continual.rows import pack, unpack
from tta.config import param

if TYPE_CHECKING:
    from streams.learning_types import ForgetRequest, Samples


@dataclass(frozen=True, kw_only=True, slots=True)
class MemoryConfig(PluginConfig):
    """What every strategy with a buffer can be told."""

    size: int = param(500, "samples in the buffer", ge=1)
    storage: Literal["reservoir", "class-balanced"] = param(
        "reservoir", "which samples stay: a uniform sample of all, or as many of each class"
    )


class Memory:
    """The buffer of one strategy.

    Each row holds the raw image ``x``, the label ``y``, the number ``experience`` of the one it
    came in, its ``key`` (-1 where unknown) and what else the strategy offers.

    Args:
        owner: Name of the strategy, for its own random draws.
        config: The strategy's options.
    """

    def __init__(self, owner: str, config: MemoryConfig) -> None:
        self.owner = f"{owner}/{config.seed}"
        balanced = config.storage == "class-balanced"
        self.buffer: Buffer = (ClassBalanced if balanced else Reservoir)(config.size)

    def __len__(self) -> int:
        return len(self.buffer)

    def offer(self, host: Host, **columns: Tensor) -> None:
        """Offer the current rows of the step, with further columns ``(num_current, ...)``."""
        rows = host.num_current
        keys = torch.full_like(host.y[:rows], -1) if host.keys is None else host.keys[:rows]
        self.buffer.add(
            host.generator(f"{self.owner} store"),
            x=host.raw,
            y=host.y[:rows],
            key=keys,
            experience=torch.full_like(host.y[:rows], host.experience),
            **columns,
        )

    def draw(
        self, host: Host, count: int, purpose: str, *, old_only: bool = False
    ) -> dict[str, Tensor]:
        """Rows drawn without replacement, on the learner's device.

        Args:
            host: The loop.
            count: Rows; fewer come where there are fewer.
            purpose: Names the draw, where a step makes several.
            old_only: Leave out the rows of the present experience.

        Returns:
            The columns; ``x`` as raw images ``(R, C, H, W)`` in [0, 1], not augmented.
        """

        def old(columns: Mapping[str, Tensor]) -> Tensor:
            return columns["experience"] < host.experience

        generator = host.generator(f"{self.owner} {purpose}")
        rows = self.buffer.draw(count, generator, old if old_only else None)
        rows = {name: values.to(host.device) for name, values in rows.items()}
        if "x" in rows:
            rows["x"] = unpack(rows["x"], host.raw.dtype)
        return rows

    def forget(self, request: ForgetRequest) -> int:
        """Drop the rows of a request, by key, or by their pixels where the key is unknown."""
        return self.buffer.drop(lambda columns: requested(columns, request.samples))

    def retake_logits(self, host: Host, at_once: int = 500) -> None:
        """Put the learner's present answers in place of the stored ``logits``."""
        if not len(self):
            return
        columns = self.buffer.columns
        with untouched(host.model, mode="eval"), torch.no_grad():
            for first in range(0, len(self), at_once):
                part = slice(first, first + at_once)
                stored = columns["logits"][part]
                x = unpack(columns["x"][part].to(host.device), stored.dtype)
                stored.copy_(host.model(x))
        host.count(forwards=len(self))

    def state_dict(self) -> dict[str, Any]:
        """The buffer's state."""
        return self.buffer.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up the buffer's state."""
        self.buffer.load_state_dict(state)


def requested(columns: Mapping[str, Tensor], samples: Samples, at_once: int = 500) -> Tensor:
    """Mask ``(R,)`` of the rows that show an image of ``samples``."""
    keys = columns["key"].cpu().numpy()
    found = np.isin(keys, samples.keys)
    unknown = np.flatnonzero(keys < 0)
    if len(unknown):
        pixels = set()
        for first in range(0, len(samples), at_once):
            at = np.arange(first, min(first + at_once, len(samples)))
            pixels |= {pack(image).numpy().tobytes() for image in samples.images(at)}
        for row in unknown.tolist():
            image = pack(columns["x"][row].cpu())
            found[row] = image.numpy().tobytes() in pixels
    return torch.from_numpy(found)
