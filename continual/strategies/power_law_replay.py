"""Power-law replay: each experience brings back samples of earlier ones, fewer the older they are.

Natural Mitigation of Catastrophic Interference: Continual Learning in Power-Law Learning
Environments, 2024, arXiv:2401.10393, as a rehearsal policy over any stream. With N the samples of
the new experience, ``streams.powerlaw.Schedule`` says how many of each earlier one are learnt
again beside it; they are drawn anew in each experience, without replacement, and mixed in
uniformly.

Deviations: an earlier experience gives no more than it has. With ``keep`` only so many samples of
each remain available (a store); without it the whole experience is, which is the paper's setting:
the task is revisited, no buffer is replayed. Only the ids of kept samples are held, pixels are read
from the stream again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from continual.factory import strategies
from continual.plugin import Host, Plugin, PluginConfig
from streams.errors import StreamError
from streams.learning_types import joined
from streams.order import rng
from streams.powerlaw import Mode, Schedule
from tta.config import param
from tta.errors import AdapterError

if TYPE_CHECKING:
    from streams.learning_types import Samples


@strategies.register()
class PowerLawReplay(Plugin):
    """Adds samples of earlier experiences to the data of each new one."""

    @dataclass(frozen=True, kw_only=True, slots=True)
    class Config(PluginConfig):
        """The schedule, and how much is kept."""

        mode: Mode = param("power", "how the samples fall with the age of an experience")
        budget: float | None = param(
            None, "old samples in all, as a share of the new ones; paper: 1, .75, .5, .25, .1", ge=0
        )
        exponent: float = param(5.6, "of the power; fitted to the code's table", gt=0)
        offset: float = param(10.0, "of the power, in experiences; likewise", gt=0)
        beta: float = param(1.0, "of the exponential, in experiences; code", gt=0)
        keep: int | None = param(
            None, "samples of each experience that stay available; none keeps all", ge=1
        )

    config: Config
    check_options = (
        {"budget": 0.5},
        {"mode": "uniform", "budget": 1.0, "keep": 10},
        {"mode": "joint"},
    )

    def __init__(self, config: Config | None = None) -> None:
        super().__init__(config)
        self.kept: list[Tensor] = []
        try:
            self._schedule(1)
        except StreamError as error:
            raise AdapterError(str(error)) from None

    def choose(self, host: Host, samples: Samples) -> Samples:
        """The new samples, and what the schedule brings back."""
        phase = len(host.past)
        if self.config.keep is not None:
            order = self._draw("kept", phase).permutation(len(samples))
            self.kept.append(torch.from_numpy(samples.keys[order[: self.config.keep]]))
        counts = self._schedule(len(samples)).counts(phase)
        parts = [samples]
        for number, count in enumerate(counts[:-1]):
            if count:
                old = self._available(number, host.past[number])
                drawn = self._draw("again", number, phase).permutation(len(old))[:count]
                parts.append(old.take(np.sort(drawn)))
        return joined(parts) if len(parts) > 1 else samples

    def state_dict(self) -> dict[str, Any]:
        """Ids of what each experience keeps; nothing where it keeps all."""
        return {"kept": self.kept}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up the ids."""
        self.kept = list(state["kept"])

    def _available(self, number: int, old: Samples) -> Samples:
        if self.config.keep is None:
            return old
        return old.take(np.flatnonzero(np.isin(old.keys, self.kept[number].numpy())))

    def _draw(self, *purpose: str | int) -> np.random.Generator:
        return rng(self.config.seed, self.name, *purpose)

    def _schedule(self, size: int) -> Schedule:
        config = self.config
        return Schedule(
            num_samples=size,
            mode=config.mode,
            budget=config.budget,
            exponent=config.exponent,
            offset=config.offset,
            beta=config.beta,
        )
