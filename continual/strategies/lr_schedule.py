"""Learning-rate schedules over a stream: re-warm and re-decay, infinite, cosine, constant.

Ibrahim, Therien, Gupta, Richter, Anthony, Lesort, Belilovsky, Rish: Simple and scalable strategies
to continually pre-train large language models, 2024, arXiv:2403.08763 (``rewarm-cosine``, and the
infinite schedule). Singh, Janson, Mehrbod, Ibrahim, Rish, Belilovsky, Therien: Beyond cosine decay:
On the effectiveness of infinite learning rate schedule for continual pre-training, 2025,
arXiv:2503.02844 (``infinite``).

Every rate is a factor of the rate that the optimiser came with, group by group; a group's
``lr_scale`` (layer-wise decay) multiplies it. Moments are left alone: whether they are cleared
before an experience is the learner's option ``reset_optimizer`` (the papers keep them).

Deviations:
- Step ``i`` of an experience, from 0, uses the rate at time ``i + 1``: no step is taken at a rate
  of zero, and the last one is taken at the end value.
- ``resume="pre-anneal"`` goes back to weights, buffers and moments of the step before the annealing
  when the next experience begins, so evaluations between experiences see the annealed model. The
  way back also undoes what happened in between (an adapter whose weights were carried over); after
  a served request to forget there is no way back, since the copy has seen what is to be forgotten.
- ``cosine`` is one decay over the whole stream, whose ``experiences`` must be given and count
  alike.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from continual import schedules
from continual.factory import strategies
from continual.plugin import Host, Plugin, PluginConfig
from tta.config import param
from tta.errors import AdapterError

if TYPE_CHECKING:
    from streams.learning_types import ForgetRequest


@strategies.register()
class LrSchedule(Plugin):
    """Sets the learning rate before every step."""

    check_options = (
        {},
        {"rewarm_from": "last"},
        {"schedule": "infinite"},
        {"schedule": "infinite", "resume": "annealed", "cooldown_shape": "linear"},
        {"schedule": "infinite", "cooldown_shape": "inverse-sqrt"},
        {"schedule": "cosine", "experiences": 2},
        {"schedule": "constant"},
    )

    @dataclass(frozen=True, kw_only=True, slots=True)
    class Config(PluginConfig):
        """Ratios of the papers' language models (3e-4, 1.65e-4, 3e-5)."""

        schedule: Literal["rewarm-cosine", "infinite", "cosine", "constant"] = param(
            "rewarm-cosine", "shape; rewarm-cosine anew for each experience, cosine once in all"
        )
        min_ratio: float = param(0.1, "last rate, of the base rate; 3e-5 of 3e-4", gt=0, le=1)
        warmup: float | None = param(
            None, "warm-up, part of the schedule; None: .01, of infinite .05", ge=0, lt=1
        )
        rewarm_from: Literal["zero", "last"] = param(
            "zero", "where rewarm-cosine starts to rise: zero, or the last rate"
        )
        constant_ratio: float = param(
            0.55, "infinite: constant rate, of the base rate; 1.65e-4 of 3e-4", gt=0, le=1
        )
        cooldown: float = param(0.15, "infinite: end of the cool-down, part", ge=0, le=1)
        anneal: float = param(0.8, "infinite: start of the annealing, part", ge=0, le=1)
        cooldown_shape: schedules.Cooldown = param("cosine", "infinite: shape of the cool-down")
        resume: Literal["pre-anneal", "annealed"] = param(
            "pre-anneal", "infinite: from which weights the next experience goes on"
        )
        experiences: int | None = param(None, "cosine: experiences of the whole stream", ge=1)

        def __post_init__(self) -> None:
            PluginConfig.__post_init__(self)
            if self.schedule == "cosine" and self.experiences is None:
                raise AdapterError(
                    "schedule='cosine' decays once over the whole stream: give its number of "
                    "experiences (experiences=5)"
                )
            if self.schedule == "infinite" and not (
                self.warmup_part <= self.cooldown <= self.anneal
                and self.min_ratio <= self.constant_ratio
            ):
                raise AdapterError(
                    f"warmup={self.warmup_part}, cooldown={self.cooldown}, anneal={self.anneal} "
                    f"must not fall, and min_ratio={self.min_ratio} not be above "
                    f"constant_ratio={self.constant_ratio}"
                )

        @property
        def warmup_part(self) -> float:
            """The warm-up, its default filled in."""
            default = 0.05 if self.schedule == "infinite" else 0.01
            return default if self.warmup is None else self.warmup

    config: Config

    def __init__(self, config: PluginConfig | None = None) -> None:
        super().__init__(config)
        self._bases: list[float] = []
        self._factor = self._start = 0.0
        self._snapshot: dict[str, Any] | None = None

    def setup(self, host: Host) -> None:
        """Keep the optimiser's own rates as the base."""
        self._bases = [float(group["lr"]) for group in host.optimizer.param_groups]

    def begin_experience(self, host: Host) -> None:
        """Start a new segment, from the state before the annealing where there is one."""
        self._start = self._factor if self.config.rewarm_from == "last" else 0.0
        if self._snapshot is None:
            return
        host.model.load_state_dict(self._snapshot["model"])
        # The learner may have cleared the moments; then they stay cleared.
        if host.optimizer.state:
            host.optimizer.load_state_dict(self._snapshot["optimizer"])
        self._snapshot = None

    def begin_step(self, host: Host) -> None:
        """Set the rate of each group."""
        groups = host.optimizer.param_groups
        if len(groups) != len(self._bases):
            raise AdapterError(
                f"lr-schedule knows the base rates of {len(self._bases)} parameter groups, the "
                f"optimizer has {len(groups)} now: build it with all its groups before the first "
                "experience"
            )
        self._factor = self.factor(
            host.step_in_experience + 1, host.steps_in_experience, host.experience
        )
        for group, base in zip(groups, self._bases, strict=True):
            group["lr"] = base * self._factor * group.get("lr_scale", 1.0)

    def after_step(self, host: Host) -> None:
        """Keep the state from which the next experience goes on."""
        config = self.config
        if config.schedule != "infinite" or config.resume != "pre-anneal":
            return
        if host.step_in_experience + 1 == int(config.anneal * host.steps_in_experience):
            state = {"model": host.model.state_dict(), "optimizer": host.optimizer.state_dict()}
            self._snapshot = deepcopy(state)

    def factor(self, t: float, total: float, experience: int) -> float:
        """The rate at time ``t`` of an experience of ``total`` steps, of the base rate."""
        config = self.config
        warmup = config.warmup_part
        if config.schedule == "constant":
            return 1.0
        if config.schedule == "infinite":
            return schedules.infinite(
                t,
                total,
                peak=1.0,
                constant=config.constant_ratio,
                floor=config.min_ratio,
                warmup=warmup * total,
                cooldown=config.cooldown * total,
                anneal=config.anneal * total,
                first=experience == 0,
                shape=config.cooldown_shape,
            )
        if config.schedule == "cosine":
            assert config.experiences is not None
            t, total = experience + t / max(total, 1), config.experiences
        return schedules.rewarm_cosine(
            t,
            total,
            peak=1.0,
            floor=config.min_ratio,
            warmup=warmup * total,
            start=self._start if config.schedule == "rewarm-cosine" else 0.0,
        )

    def forgotten(self, host: Host, request: ForgetRequest) -> None:
        """Drop the weights that still know what was forgotten."""
        self._snapshot = None

    def state_dict(self) -> dict[str, Any]:
        """Base rates, the present factor, and the state before the annealing."""
        return {
            "bases": list(self._bases),
            "factor": self._factor,
            "start": self._start,
            "snapshot": self._snapshot,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up a saved state."""
        self._bases = [float(base) for base in state["bases"]]
        self._factor, self._start = float(state["factor"]), float(state["start"])
        self._snapshot = deepcopy(state["snapshot"])
