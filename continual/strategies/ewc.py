"""EWC: weights that mattered to earlier experiences are held where they were.

Kirkpatrick et al., Overcoming Catastrophic Forgetting in Neural Networks, PNAS 2017,
arXiv:1612.00796, with one anchor, the last experience's, and the Fishers of all experiences added
up, as Smith et al. (A Closer Look at Rehearsal-Free Continual Learning, CVPRW 2023) use it:

    loss = classification + mu / 2 * sum F (w - w')^2.

``accumulate="online"`` is online EWC (Schwarz et al., 2018, arXiv:1805.06370): F <- gamma F + new.

Deviations: the Fisher squares the gradient of each sample. Common code squares that of a minibatch
(``fisher="batch"``), which is smaller by about the batch size; ``labels="all"`` takes the
expectation over the model's own answers. It is taken in eval mode from the softmax cross-entropy,
also beside a strategy with another loss. After a request to forget the present weights are the
anchor and the Fisher is taken anew on what is left of each experience.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor

from continual.anchors import chosen_names, copies, padded, squared_distance
from continual.factory import strategies
from continual.fisher import diagonal_fisher, fisher_cost
from continual.plugin import Host, Plugin, PluginConfig
from tta.config import param

if TYPE_CHECKING:
    from streams.learning_types import ForgetRequest, Samples


@strategies.register()
class Ewc(Plugin):
    """Adds the Fisher-weighted squared distance from kept weights to the loss."""

    @dataclass(frozen=True, kw_only=True, slots=True)
    class Config(PluginConfig):
        """Weight of the term, and which Fisher."""

        mu: float = param(10.0, "weight of the penalty; Smith et al., code", ge=0)
        half: bool = param(True, "the factor 1/2; Avalanche has none")
        fisher: Literal["sample", "batch"] = param("sample", "whose gradient is squared")
        labels: Literal["true", "predicted", "sampled", "all"] = param(
            "true", "labels whose log-probability is differentiated"
        )
        accumulate: Literal["sum", "online"] = param("sum", "how Fishers of experiences add up")
        gamma: float = param(1.0, "share of the old Fisher that is kept, if online", ge=0, le=1)
        head: bool = param(False, "hold the classifier too; Smith et al.: never")
        params: str = param("", "regular expression for the parameters' names; empty takes all")
        fisher_samples: int | None = param(
            None, "samples of an experience that the Fisher takes; none takes all", ge=1
        )
        fisher_batch: int = param(32, "samples of a batch, where that is what is squared", ge=1)

    config: Config
    check_options = (
        {},
        {"fisher": "batch", "accumulate": "online", "gamma": 0.9, "head": True},
        {"labels": "sampled", "fisher_samples": 6},
        {"labels": "all", "half": False},
    )

    def __init__(self, config: Config | None = None) -> None:
        super().__init__(config)
        self.anchor: dict[str, Tensor] = {}
        self.fisher: dict[str, Tensor] = {}

    def setup(self, host: Host) -> None:
        """The parameters must be there, or this says that they are not."""
        self._names(host)

    def add_loss(self, host: Host) -> Tensor | None:
        """The penalty; none in the first experience."""
        if not self.anchor:
            return None
        scale = self.config.mu * (0.5 if self.config.half else 1.0)
        return scale * squared_distance(host.model, self.anchor, self.fisher)

    def end_experience(self, host: Host) -> None:
        """Add its Fisher; its last weights are the anchor."""
        self._add(host, host.data, 0)
        self.anchor = copies(host.model, list(self.fisher))

    def forgotten(self, host: Host, request: ForgetRequest) -> None:
        """Anchor and Fisher anew, from the present model and what is left."""
        if not self.anchor:
            return
        self.fisher = {}
        for number, samples in enumerate(host.past):
            if len(samples):
                self._add(host, samples, number)
        self.anchor = copies(host.model, list(self.fisher))

    def state_dict(self) -> dict[str, Any]:
        """Anchor and Fisher, by parameter name."""
        return {"anchor": self.anchor, "fisher": self.fisher}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up anchor and Fisher."""
        self.anchor, self.fisher = dict(state["anchor"]), dict(state["fisher"])

    def _add(self, host: Host, samples: Samples, number: int) -> None:
        config = self.config
        new = diagonal_fisher(
            host.model,
            samples,
            labels=config.labels,
            per=config.fisher,
            names=self._names(host),
            max_samples=config.fisher_samples,
            batch_size=config.fisher_batch,
            generator=host.generator(f"{self.name}/{config.seed} fisher {number}"),
        )
        size = min(config.fisher_samples or len(samples), len(samples))
        forwards, backwards = fisher_cost(size, config.labels, host.num_classes)
        host.count(forwards=forwards, backwards=backwards)
        keep = 1.0 if config.accumulate == "sum" else config.gamma
        for name, value in new.items():
            if name in self.fisher:
                value.add_(padded(self.fisher[name], value), alpha=keep)
        self.fisher = new

    def _names(self, host: Host) -> list[str]:
        return chosen_names(host.model, head=self.config.head, pattern=self.config.params)
