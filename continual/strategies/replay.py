"""Replay: each step trains on new samples and on as many out of a buffer (experience replay).

Chaudhry et al., On Tiny Episodic Memories in Continual Learning, 2019, arXiv:1902.10486. With
``fraction``, replay by replacement: old samples take the place of new ones and a step costs the
same (Ibrahim et al., Simple and Scalable Strategies to Continually Pre-train Large Language
Models, TMLR 2024).

Deviations: every step offers its new samples, so that with several epochs a sample is offered
several times, as in common code; an image is augmented anew each time it is drawn.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from continual.factory import strategies
from continual.plugin import Host, Plugin
from continual.rehearsal import Memory, MemoryConfig
from tta.config import param

if TYPE_CHECKING:
    from streams.learning_types import ForgetRequest


@strategies.register()
class Replay(Plugin):
    """Adds (or swaps in) rows of a buffer to each batch."""

    @dataclass(frozen=True, kw_only=True, slots=True)
    class Config(MemoryConfig):
        """Buffer, and how much of it a step takes."""

        ratio: float = param(1.0, "rows added for each new one, where nothing is replaced", ge=0)
        fraction: float | None = param(
            None,
            "share of the batch that rows of earlier experiences replace (Ibrahim et al.: .01 to "
            ".05 for weak, .25 for strong shifts); none adds rows instead",
            ge=0,
            le=1,
        )
        old_only: bool = param(
            False, "draw rows of earlier experiences alone; always so with a fraction"
        )

    config: Config
    check_options = (
        {"size": 20},
        {"size": 20, "storage": "class-balanced", "old_only": True, "ratio": 0.5},
        {"size": 20, "fraction": 0.25},
    )

    def __init__(self, config: Config | None = None) -> None:
        super().__init__(config)
        self.memory = Memory(self.name, self.config)

    def begin_step(self, host: Host) -> None:
        """Rows of the buffer into the batch."""
        fraction = self.config.fraction
        share = self.config.ratio if fraction is None else fraction
        wanted = round(share * host.num_current)
        if fraction is not None:
            wanted = min(wanted, host.num_current - 1)  # plug-ins count on a new sample
        old_only = self.config.old_only or fraction is not None
        rows = self.memory.draw(host, wanted, "draw", old_only=old_only)
        if not rows or not len(rows["y"]):
            return
        if fraction is not None:
            host.replace(host.num_current - len(rows["y"]))
        host.extend(rows["x"], rows["y"])

    def after_step(self, host: Host) -> None:
        """Offer the new rows."""
        self.memory.offer(host)

    def forgotten(self, host: Host, request: ForgetRequest) -> None:
        """Drop the rows of the request."""
        self.memory.forget(request)

    def state_dict(self) -> dict[str, Any]:
        """The buffer."""
        return {"memory": self.memory.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up the buffer."""
        self.memory.load_state_dict(state["memory"])
