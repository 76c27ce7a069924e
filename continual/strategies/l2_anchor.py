"""L2 anchor: the weights before the classifier are held near those of the last experience.

Smith et al., A Closer Look at Rehearsal-Free Continual Learning, CVPRW 2023; code
shaunak27/data-free-continual-learning, commit 5388102. The loss gets ``lam`` times the sum of
(w - w')^2; w' are the pre-trained or initial weights in the first experience, then those at the end
of the last one. Without the term in the first experience its advantage is lost.

Deviations: none known. A very large ``lam`` freezes the backbone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from continual.anchors import chosen_names, copies, squared_distance
from continual.factory import strategies
from continual.plugin import Host, Plugin, PluginConfig
from tta.config import param

if TYPE_CHECKING:
    from streams.learning_types import ForgetRequest


@strategies.register()
class L2Anchor(Plugin):
    """Adds the squared distance from kept weights to the loss."""

    @dataclass(frozen=True, kw_only=True, slots=True)
    class Config(PluginConfig):
        """Weight of the term, and what it holds."""

        lam: float = param(0.05, "weight of the squared distance; code", ge=0)
        from_start: bool = param(True, "hold the first weights too, in the first experience")
        head: bool = param(False, "hold the classifier too; code: never")
        params: str = param("", "regular expression for the parameters' names; empty takes all")

    config: Config
    check_options = ({}, {"from_start": False, "head": True, "params": "weight"})

    def __init__(self, config: Config | None = None) -> None:
        super().__init__(config)
        self.anchor: dict[str, Tensor] = {}

    def setup(self, host: Host) -> None:
        """The first anchor."""
        names = self._names(host)
        if self.config.from_start:
            self.anchor = copies(host.model, names)

    def add_loss(self, host: Host) -> Tensor | None:
        """``lam * sum((w - w') ** 2)``."""
        if not self.anchor:
            return None
        return self.config.lam * squared_distance(host.model, self.anchor)

    def end_experience(self, host: Host) -> None:
        """The next anchor."""
        self.anchor = copies(host.model, self._names(host))

    def forgotten(self, host: Host, request: ForgetRequest) -> None:
        """The anchor would pull back what was forgotten: the present weights take its place."""
        if self.anchor:
            self.anchor = copies(host.model, self._names(host))

    def state_dict(self) -> dict[str, Any]:
        """The anchor, by parameter name."""
        return {"anchor": self.anchor}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up the anchor."""
        self.anchor = dict(state["anchor"])

    def _names(self, host: Host) -> list[str]:
        return chosen_names(host.model, head=self.config.head, pattern=self.config.params)
