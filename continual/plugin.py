"""The base of every strategy: a plug-in that a learner calls at each point of its loop.

The same plug-in runs in our ``Learner`` and, through ``continual.avalanche``, in an Avalanche
strategy: it sees both through ``Host`` and nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from tta.config import Config, param

if TYPE_CHECKING:
    from streams.learning_types import ForgetRequest, Samples


@dataclass(frozen=True, kw_only=True, slots=True)
class PluginConfig(Config):
    """What every plug-in can be told."""

    seed: int = param(0, "seed of every random draw of the plug-in", ge=0)


class Host(Protocol):
    """What a plug-in sees of the loop around it.

    Attributes:
        model: The learner; logits ``(B, K)`` from images ``(B, C, H, W)`` in [0, 1].
        optimizer: Owner of its parameters.
        device: Where the model is.
        num_classes: Width ``K`` of the head.
        experience: Number of the present experience, from 0.
        epoch: Number of the present epoch, from 0.
        epochs: Epochs of the present experience.
        step: Training steps so far, over all experiences.
        step_in_experience: Steps so far in the present experience.
        steps_in_experience: Steps that the present experience will take.
        batch_size: New samples a step.
        data: Samples of the present experience, as the plug-ins chose them.
        x: Images of the step ``(B, C, H, W)``, augmented; the rows from ``num_current`` on were
            added by plug-ins.
        y: Labels ``(B,)`` int64.
        raw: The current rows without augmentation ``(num_current, C, H, W)``.
        keys: Ids ``(num_current,)`` int64 of the current rows among all images of the stream;
            ``None`` where the loop knows none.
        num_current: Rows of the present experience's data in ``x``.
        logits: ``(B, K)`` with graph, after the forward.
        loss: Scalar, after the forward.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    device: str
    num_classes: int
    experience: int
    epoch: int
    epochs: int
    step: int
    step_in_experience: int
    steps_in_experience: int
    batch_size: int
    data: Samples
    x: Tensor
    y: Tensor
    raw: Tensor
    keys: Tensor | None
    num_current: int
    logits: Tensor
    loss: Tensor

    @property
    def past(self) -> Sequence[Samples]:
        """Training samples of each finished experience, less what was forgotten."""

    def extend(self, x: Tensor, y: Tensor) -> None:
        """Add rows to the step's batch: raw images ``(R, C, H, W)``, augmented here, and labels."""

    def replace(self, rows: int) -> None:
        """Keep only the first ``rows`` current rows of the batch (before ``extend``)."""

    def augment(self, x: Tensor, purpose: str) -> Tensor:
        """Images ``(B, C, H, W)`` augmented as the training images are, drawn for ``purpose``."""

    def generator(self, purpose: str) -> torch.Generator:
        """CPU generator keyed by (seed, step, purpose)."""

    def count(self, forwards: int = 0, backwards: int = 0) -> None:
        """Report images that a plug-in sent through a model."""


class Plugin:
    """One strategy, or one part of a composed one.

    A subclass overrides what it needs; every hook may be left out. State that must survive a kill
    goes through ``state_dict`` as plain containers, numbers and tensors.

    Args:
        config: Options; the defaults when ``None``.
    """

    name: ClassVar[str] = ""
    Config: ClassVar[type[PluginConfig]] = PluginConfig
    # Options under which a short run takes every branch; the conformance suite runs each.
    check_options: ClassVar[tuple[Mapping[str, Any], ...]] = ({},)

    config: PluginConfig

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.name = cls.__dict__.get("name") or cls.__module__.rpartition(".")[2].replace("_", "-")

    def __init__(self, config: PluginConfig | None = None) -> None:
        self.config = self.Config() if config is None else config

    def attach(self, host: Host) -> None:
        """Once a process, before ``setup`` or after a state was loaded: what is no state.

        Which parameters are frozen, for one.
        """

    def setup(self, host: Host) -> None:
        """Before the first experience; the model is the pre-trained or fresh one."""

    def choose(self, host: Host, samples: Samples) -> Samples:
        """Samples of the experience to train on; called before anything else of it."""
        return samples

    def num_epochs(self, host: Host, epochs: int) -> int:
        """Epochs of the experience, where the learner would take ``epochs``."""
        return epochs

    def epoch_sizes(self, host: Host, sizes: list[int]) -> list[int]:
        """Samples of each epoch, where ``choose_epoch`` will change them."""
        return sizes

    def begin_experience(self, host: Host) -> None:
        """Data chosen, first step not taken; ``host.steps_in_experience`` is known."""

    def choose_epoch(self, host: Host, samples: Samples) -> Samples:
        """Samples of epoch ``host.epoch``, out of ``host.data``."""
        return samples

    def begin_step(self, host: Host) -> None:
        """Batch there, no forward yet; gradients are cleared after this hook."""

    def classify(self, host: Host) -> Tensor | None:
        """The classification loss in place of the learner's; ``None`` leaves it."""
        return None

    def add_loss(self, host: Host) -> Tensor | None:
        """A scalar that is added to the loss; ``None`` adds nothing."""
        return None

    def after_backward(self, host: Host) -> None:
        """Gradients are there; the optimiser has not stepped."""

    def after_step(self, host: Host) -> None:
        """The optimiser has stepped."""

    def end_experience(self, host: Host) -> None:
        """Last step taken, nothing evaluated yet."""

    def forget(self, host: Host, request: ForgetRequest, retained: Samples) -> bool:
        """Serve a request to forget; the first plug-in that returns ``True`` is the last asked.

        Args:
            host: ``host.data`` holds the samples of all experiences so far.
            request: What to forget.
            retained: All samples seen so far that are not in the request.
        """
        return False

    def forgotten(self, host: Host, request: ForgetRequest) -> None:
        """A request was served: drop what was kept or computed from its samples."""

    def state_dict(self) -> dict[str, Any]:
        """All that the plug-in carries from one hook to the next."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up a state that ``state_dict`` gave."""
