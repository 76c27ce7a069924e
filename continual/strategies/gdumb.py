"""GDumb: keep a class-balanced buffer, and train from the start on it alone.

Prabhu, Torr and Dokania, GDumb: A Simple Approach that Questions Our Progress in Continual
Learning, ECCV 2020. In each experience the greedy sampler takes in its samples one after the
other; then the model goes back to its first weights and is trained on the buffer.

Deviations: the learner's optimiser, learning rate, epochs and augmentation are used (``epochs``
changes their number), where the original trains 256 epochs with restarts and CutMix. The first
weights are those before the first experience, pre-trained ones included. Only keys and labels are
kept: pixels are read from the stream again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from continual.buffers import ClassBalanced
from continual.factory import strategies
from continual.plugin import Host, Plugin, PluginConfig
from streams.learning_types import joined
from streams.order import rng
from tta.config import param

if TYPE_CHECKING:
    from streams.learning_types import ForgetRequest, Samples


@strategies.register()
class Gdumb(Plugin):
    """The experience is the buffer; each starts from the first weights."""

    @dataclass(frozen=True, kw_only=True, slots=True)
    class Config(PluginConfig):
        """Buffer and budget."""

        size: int = param(500, "samples in the buffer", ge=1)
        epochs: int | None = param(None, "passes over the buffer; none takes the learner's", ge=1)

    config: Config
    check_options = ({"size": 30}, {"size": 20, "epochs": 2})

    def __init__(self, config: Config | None = None) -> None:
        super().__init__(config)
        self.buffer = ClassBalanced(self.config.size, within="first")
        self._first: dict[str, Tensor] = {}

    def setup(self, host: Host) -> None:
        """Keep the first weights and statistics."""
        self._first = {n: v.detach().clone() for n, v in host.model.state_dict().items()}

    def choose(self, host: Host, samples: Samples) -> Samples:
        """Take in the new samples in random order; learn the buffer."""
        order = rng(self.config.seed, self.name, host.experience).permutation(len(samples))
        self.buffer.add(
            host.generator(f"{self.name}/{self.config.seed} sampler"),
            y=torch.from_numpy(samples.labels[order]),
            key=torch.from_numpy(samples.keys[order]),
        )
        everything = joined([*host.past, samples])
        keys = self.buffer.columns["key"].numpy()
        by_key = np.argsort(everything.keys, kind="stable")
        places = by_key[np.searchsorted(everything.keys[by_key], keys)]
        return everything.take(places).relabelled(self.buffer.columns["y"].numpy().copy())

    def num_epochs(self, host: Host, epochs: int) -> int:
        """The budget."""
        return self.config.epochs or epochs

    def begin_experience(self, host: Host) -> None:
        """Back to the first weights; moments of the optimiser cleared."""
        host.model.load_state_dict(self._first)
        host.optimizer.state.clear()

    def forgotten(self, host: Host, request: ForgetRequest) -> None:
        """Drop the samples of the request: the next experience has never seen them."""
        self.buffer.drop(
            lambda columns: torch.from_numpy(np.isin(columns["key"].numpy(), request.samples.keys))
        )

    def state_dict(self) -> dict[str, Any]:
        """Keys and labels held, and the first weights."""
        return {"buffer": self.buffer.state_dict(), "first": self._first}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up a state."""
        self.buffer.load_state_dict(state["buffer"])
        self._first = dict(state["first"])
