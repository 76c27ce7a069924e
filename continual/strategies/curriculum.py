"""Cyclical curriculum: epochs over a part of the data, easy samples first, in cycles.

Kesgin, Amasyali: Cyclical curriculum learning, 2023, arXiv:2202.05531. Reference code:
CyclicalCurriculum/Cyclical-Curriculum @ 90bfae0.

The part of the data that an epoch sees goes up from a quarter to all of it and down again; its
samples are drawn without replacement in proportion to a score of their loss.

Deviations:
- The last epoch is shortened so that an experience costs as many samples as without curriculum;
  ``trim=False`` lets it overshoot (10.75 epochs for 10), as the reference does.
- Losses below 1e-6 count as 1e-6, which bounds the score of what a teacher knows by heart.
- The teacher is the model as the experience begins, trained on it by a copy of the optimiser for
  ``teacher_epochs`` where that is more than 0. The reference takes a model of a whole training,
  whose cost it leaves out of the budget; here the teacher's images are counted beside it. The
  plug-in's attribute ``teacher`` takes any other model.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from continual.descent import UnlearnConfig, descend, shuffled
from continual.factory import strategies
from continual.passes import untouched
from continual.plugin import Host, Plugin, PluginConfig
from continual.schedules import cyclical_fractions
from continual.selection import weighted_draw
from streams.order import rng
from tta.config import param
from tta.errors import AdapterError

if TYPE_CHECKING:
    from streams.learning_types import Samples

_LEAST_LOSS = 1e-6


@strategies.register()
class Curriculum(Plugin):
    """Chooses the samples of each epoch.

    Attributes:
        teacher: Whose loss scores the samples, but for ``self-paced``; ``None`` takes the model as
            the experience begins.
    """

    check_options = (
        {},
        {"score": "hard-first", "teacher_epochs": 1},
        {"score": "easy-first"},
        {"score": "exponential", "trim": False},
        {"score": "random"},
    )

    @dataclass(frozen=True, kw_only=True, slots=True)
    class Config(PluginConfig):
        """Fractions of the reference code."""

        score: Literal["self-paced", "easy-first", "hard-first", "exponential", "random"] = param(
            "self-paced",
            "weight of a sample: 1 / its loss, anew each epoch; of a teacher's loss l 1 / l, l "
            "or rate * exp(-rate * l); or 1",
        )
        start: float = param(0.25, "smallest fraction of the data; reference code", gt=0, le=1)
        factor: float = param(0.5, "ratio of neighbouring fractions", gt=0, lt=1)
        end: float = param(1.0, "largest fraction of the data", gt=0, le=1)
        rate: float = param(1.0, "rate of exponential weights", gt=0)
        trim: bool = param(True, "shorten the last epoch to keep the budget")
        teacher_epochs: int = param(0, "epochs of the teacher on the experience", ge=0)
        batch_size: int = param(256, "images a forward while scoring", ge=1)

        def __post_init__(self) -> None:
            PluginConfig.__post_init__(self)
            if self.start > self.end:
                raise AdapterError(f"start={self.start} must not be above end={self.end}")

    config: Config

    def __init__(self, config: PluginConfig | None = None) -> None:
        super().__init__(config)
        self.teacher: nn.Module | None = None
        self._budget = 0
        # Losses and the (experience, epoch) that they were taken for; -1 for all its epochs.
        self._losses: Tensor | None = None
        self._taken = (-1, -1)

    def fractions(self) -> tuple[float, ...]:
        """Fraction of the data in each epoch of the present experience."""
        config = self.config
        return cyclical_fractions(
            self._budget, start=config.start, factor=config.factor, end=config.end, trim=config.trim
        )

    def num_epochs(self, host: Host, epochs: int) -> int:
        """Epochs whose samples amount to ``epochs`` over all of the data."""
        self._budget = epochs
        return len(self.fractions())

    def epoch_sizes(self, host: Host, sizes: list[int]) -> list[int]:
        """Samples of each epoch."""
        return [_part(f, size) for f, size in zip(self.fractions(), sizes, strict=True)]

    def begin_experience(self, host: Host) -> None:
        """Score the samples by the teacher, once."""
        if self.config.score not in ("self-paced", "random"):
            self._losses = self._of(host, self._teacher(host), host.data)
            self._taken = (host.experience, -1)

    def choose_epoch(self, host: Host, samples: Samples) -> Samples:
        """A weighted draw of the epoch's fraction."""
        count = _part(self.fractions()[host.epoch], len(samples))
        if count == len(samples):
            return samples
        draw = rng(self.config.seed, "curriculum", host.experience, host.epoch)
        generator = torch.Generator().manual_seed(int(draw.integers(2**62)))
        chosen = weighted_draw(self._weights(host, samples), count, generator)
        return samples.take(chosen.numpy())

    def end_experience(self, host: Host) -> None:
        """The losses are of no use any more."""
        self._losses, self._taken = None, (-1, -1)

    def _weights(self, host: Host, samples: Samples) -> Tensor:
        config = self.config
        if config.score == "random":
            return torch.ones(len(samples))
        if config.score == "self-paced" and self._taken != (host.experience, host.epoch):
            # Kept: a run that goes on in the middle of the epoch must draw the same samples.
            self._losses = self._of(host, host.model, samples)
            self._taken = (host.experience, host.epoch)
        losses = self._losses
        if losses is None or len(losses) != len(samples):
            raise AdapterError(
                f"curriculum scored {0 if losses is None else len(losses)} samples, the epoch has "
                f"{len(samples)}: put it before plug-ins that choose samples of an epoch"
            )
        losses = losses.double().clamp_min(_LEAST_LOSS)
        if config.score == "exponential":
            return config.rate * torch.exp(-config.rate * losses)
        return losses if config.score == "hard-first" else 1 / losses

    def _teacher(self, host: Host) -> nn.Module:
        if self.teacher is not None or not self.config.teacher_epochs:
            return host.model if self.teacher is None else self.teacher
        # Copied together: the copy of the optimiser owns the weights of the copy.
        teacher, optimizer = deepcopy((host.model, host.optimizer))
        config = UnlearnConfig(
            epochs=self.config.teacher_epochs, batch_size=host.batch_size, seed=self.config.seed
        )
        purpose = f"teacher {host.experience}"
        batches = shuffled(teacher, host.data, config, purpose)
        images = descend(teacher, config, batches, purpose, optimizer=optimizer)
        host.count(forwards=images, backwards=images)
        return teacher

    def _of(self, host: Host, model: nn.Module, samples: Samples) -> Tensor:
        """Cross-entropy ``(N,)`` of each sample, in eval mode."""
        parts = []
        with torch.no_grad(), untouched(model, mode="eval"):
            for first in range(0, len(samples), self.config.batch_size):
                at = np.arange(first, min(first + self.config.batch_size, len(samples)))
                x, y = samples.batch(at)
                logits = model(x.to(host.device))
                parts.append(F.cross_entropy(logits, y.to(host.device), reduction="none").cpu())
        host.count(forwards=len(samples))
        return torch.cat(parts)

    def state_dict(self) -> dict[str, Any]:
        """The budget, and the losses that the next draws go by."""
        return {"budget": self._budget, "losses": self._losses, "taken": list(self._taken)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up a saved state."""
        self._budget, self._losses = int(state["budget"]), state["losses"]
        experience, epoch = state["taken"]
        self._taken = (int(experience), int(epoch))


def _part(fraction: float, size: int) -> int:
    """Whole samples of a fraction, at least one; rounding noise does not cost one."""
    return min(size, max(1, int(fraction * size + 1e-6)))
