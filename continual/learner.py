"""The native loop: a model, an optimiser and plug-ins learn one experience after another."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from continual.augment import crop_flip
from continual.plugin import Plugin
from streams.learning_types import Experience, ForgetRequest, Samples, joined
from streams.order import rng
from tta.config import Config, param
from tta.errors import AdapterError


@dataclass(frozen=True, kw_only=True, slots=True)
class LearnerConfig(Config):
    """The learner's own options, whatever the plug-ins."""

    optimizer: Literal["sgd", "adam", "adamw"] = param("sgd", "update rule")
    lr: float = param(0.03, "learning rate", gt=0)
    momentum: float = param(0.0, "momentum of sgd", ge=0, lt=1)
    weight_decay: float = param(0.0, "weight decay", ge=0)
    batch_size: int = param(32, "new samples a step", ge=1)
    epochs: int = param(1, "passes over each experience", ge=1)
    augment: Literal["none", "crop", "crop-flip"] = param(
        "none", "random crop with a border of 4, and flips, of the training images"
    )
    freeze_norm: bool = param(False, "keep normalisation layers in eval mode while learning")
    reset_optimizer: bool = param(True, "clear the moments before each experience")
    seed: int = param(0, "seed of orders, augmentation and dropout", ge=0)


@dataclass(frozen=True, slots=True)
class Step:
    """What one training step left: the rows of the current data alone.

    Attributes:
        x: Images ``(B, C, H, W)`` as the model saw them.
        y: Labels ``(B,)``.
        logits: Detached logits ``(B, K)`` from before the update.
        at: Places ``(B,)`` of the rows in the epoch's samples.
        samples: The epoch's samples.
        loss: The whole loss, with the plug-ins' terms.
        lr: Learning rate of the first parameter group.
        forwards: Images sent through models, plug-ins included.
        backwards: Images sent back.
    """

    x: Tensor
    y: Tensor
    logits: Tensor
    at: np.ndarray[Any, np.dtype[np.int64]]
    samples: Samples
    loss: float
    lr: float
    forwards: int
    backwards: int


class Learner:
    """Trains a model on experiences; what a plug-in sees of it is ``continual.plugin.Host``.

    Order, augmentation and dropout depend on (seed, experience, epoch, step) alone, so a learner
    that is loaded from ``state_dict`` goes on bit for bit.

    Args:
        model: Images ``(B, C, H, W)`` in [0, 1] to logits ``(B, K)``; trained in place.
        num_classes: ``K``.
        config: The learner's options.
        plugins: Strategies, in the order in which they are asked.
        device: Where the model is.
    """

    def __init__(
        self,
        model: nn.Module,
        num_classes: int,
        config: LearnerConfig | None = None,
        plugins: Sequence[Plugin] = (),
        *,
        device: str = "cpu",
    ) -> None:
        self.config = LearnerConfig() if config is None else config
        self.model = model
        self.num_classes = num_classes
        self.plugins = tuple(plugins)
        self.device = device
        self.batch_size = self.config.batch_size
        self.optimizer = self._build_optimizer()
        self.experience = -1
        self.epoch = self.step = self.step_in_experience = self.steps_in_experience = 0
        self.epochs = self.config.epochs
        self.seen: list[Samples] = []
        self._batch_in_epoch = 0
        self._started = self._attached = False
        self._forwards = self._backwards = 0

    # The loop -------------------------------------------------------------------------------

    def learn(self, experience: Experience, watch: Callable[[Step], None] | None = None) -> None:
        """Train on one experience; after ``load_state_dict`` in its middle, on the rest of it.

        Args:
            experience: What to learn.
            watch: Called after each step; may save ``state_dict``.
        """
        self._setup()
        resumed = self._batch_in_epoch > 0 or self.epoch > 0 or self.step_in_experience > 0
        if not resumed:
            self.experience += 1
        self._choose(experience, resumed)
        if not resumed:
            if self.config.reset_optimizer:
                self.optimizer.state.clear()
            for plugin in self.plugins:
                plugin.begin_experience(self)
        while self.epoch < self.epochs:
            self._train_epoch(watch)
            self.epoch += 1
        for plugin in self.plugins:
            plugin.end_experience(self)
        self.seen.append(experience.train)
        self.epoch = self.step_in_experience = 0

    def forget(self, request: ForgetRequest) -> str | None:
        """Serve a request to forget; returns the name of the plug-in that served it.

        Raises:
            AdapterError: If nothing was learnt yet.
        """
        if not self.seen:
            raise AdapterError("a request to forget came before the first experience")
        self._setup()
        everything = joined(self.seen)
        gone = np.isin(everything.keys, request.samples.keys)
        retained = everything.take(np.flatnonzero(~gone))
        self.data = everything
        server = next((p for p in self.plugins if p.forget(self, request, retained)), None)
        self.seen = [
            s.take(np.flatnonzero(~np.isin(s.keys, request.samples.keys))) for s in self.seen
        ]
        for plugin in self.plugins:
            plugin.forgotten(self, request)
        return None if server is None else server.name

    @property
    def past(self) -> Sequence[Samples]:
        """Training samples of each finished experience, less what was forgotten."""
        return self.seen

    def _setup(self) -> None:
        if not self._attached:
            self._attached = True
            for plugin in self.plugins:
                plugin.attach(self)
        if not self._started:
            self._started = True
            for plugin in self.plugins:
                plugin.setup(self)

    def _choose(self, experience: Experience, resumed: bool) -> None:
        if not resumed:
            data = experience.train
            for plugin in self.plugins:
                data = plugin.choose(self, data)
            self.data = data
            self.epochs = experience.epochs or self.config.epochs
            for plugin in self.plugins:
                self.epochs = plugin.num_epochs(self, self.epochs)
        else:
            # ``choose`` may draw on state that has moved on: the choice itself was saved.
            self.data = (
                experience.train
                if self._saved_at is None
                else _restored(self._saved_at, [*self.seen, experience.train])
            )
        self._saved_at = None
        sizes = [len(self.data)] * self.epochs
        for plugin in self.plugins:
            sizes = plugin.epoch_sizes(self, sizes)
        self.steps_in_experience = sum(len(_offsets(n, self.batch_size)) for n in sizes)

    def _train_epoch(self, watch: Callable[[Step], None] | None) -> None:
        samples = self.data
        for plugin in self.plugins:
            samples = plugin.choose_epoch(self, samples)
        order = rng(self.config.seed, "learn", self.experience, self.epoch).permutation(
            len(samples)
        )
        offsets = _offsets(len(samples), self.batch_size)
        for number in range(self._batch_in_epoch, len(offsets)):
            at = order[offsets[number] : offsets[number] + self.batch_size]
            step = self._train_step(samples, at)
            self._batch_in_epoch = number + 1
            self.step += 1
            self.step_in_experience += 1
            if watch is not None:
                watch(step)
        self._batch_in_epoch = 0

    def _train_step(self, samples: Samples, at: np.ndarray[Any, np.dtype[np.int64]]) -> Step:
        raw, y = samples.batch(at)
        self.raw, self.y = raw.to(self.device), y.to(self.device)
        self.keys: Tensor | None = torch.from_numpy(samples.keys[at]).to(self.device)
        self.num_current = len(at)
        self.x = self.augment(self.raw, "batch")
        self._train_mode()
        for plugin in self.plugins:
            plugin.begin_step(self)
        self.optimizer.zero_grad()
        with self._dropout():
            self.logits = self.model(self.x)
            self.loss = self._classification_loss()
            for plugin in self.plugins:
                term = plugin.add_loss(self)
                if term is not None:
                    self.loss = self.loss + term
        self.count(forwards=len(self.x), backwards=len(self.x))
        self.loss.backward()  # type: ignore[no-untyped-call]
        for plugin in self.plugins:
            plugin.after_backward(self)
        self.optimizer.step()
        for plugin in self.plugins:
            plugin.after_step(self)
        n = self.num_current
        forwards, backwards = self._forwards, self._backwards
        # What is counted between steps (scores, a Fisher) belongs to the step that follows.
        self._forwards = self._backwards = 0
        return Step(
            x=self.x[:n],
            y=self.y[:n],
            logits=self.logits.detach()[:n],
            at=at[:n],
            samples=samples,
            loss=float(self.loss.detach()),
            lr=float(self.optimizer.param_groups[0]["lr"]),
            forwards=forwards,
            backwards=backwards,
        )

    def _classification_loss(self) -> Tensor:
        for plugin in self.plugins:
            loss = plugin.classify(self)
            if loss is not None:
                return loss
        return F.cross_entropy(self.logits, self.y)

    # What plug-ins call ---------------------------------------------------------------------

    def extend(self, x: Tensor, y: Tensor) -> None:
        """Add rows to the step's batch: raw images ``(R, C, H, W)`` and labels ``(R,)``."""
        extra = self.augment(x.to(self.x), "extended")
        self.x = torch.cat([self.x, extra])
        self.y = torch.cat([self.y, y.to(self.y)])

    def replace(self, rows: int) -> None:
        """Keep only the first ``rows`` current rows of the batch."""
        self.num_current = min(rows, self.num_current)
        self.x, self.y = self.x[: self.num_current], self.y[: self.num_current]
        self.raw = self.raw[: self.num_current]
        self.keys = None if self.keys is None else self.keys[: self.num_current]

    def augment(self, x: Tensor, purpose: str) -> Tensor:
        """Images ``(B, C, H, W)``, cropped and flipped as the config says."""
        if self.config.augment == "none":
            return x
        flip = self.config.augment == "crop-flip"
        return crop_flip(x, self.generator(f"augment {purpose}"), flip=flip)

    def generator(self, purpose: str) -> torch.Generator:
        """CPU generator keyed by (seed, step, purpose)."""
        key = f"{self.config.seed}/{self.step}/{purpose}".encode()
        seed = int.from_bytes(hashlib.sha256(key).digest()[:8], "little")
        return torch.Generator().manual_seed(seed)

    def count(self, forwards: int = 0, backwards: int = 0) -> None:
        """Add to the images sent forward and back in this step."""
        self._forwards += forwards
        self._backwards += backwards

    # State ----------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Everything that the rest of the stream depends on: tensors, numbers, containers."""
        return deepcopy(
            {
                "model": self.model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "plugins": [plugin.state_dict() for plugin in self.plugins],
                "started": self._started,
                "counters": {name: getattr(self, name) for name in _COUNTERS},
                "keys": torch.from_numpy(_keyed(self.data)) if self._in_experience() else None,
            }
        )

    def load_state_dict(self, state: Mapping[str, Any], seen: Sequence[Samples]) -> None:
        """Go on from a state.

        Args:
            state: From ``state_dict``.
            seen: Training samples of the experiences that were finished then, less what was
                forgotten.
        """
        state = deepcopy(dict(state))
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        for plugin, saved in zip(self.plugins, state["plugins"], strict=True):
            plugin.load_state_dict(saved)
        self._started = bool(state["started"])
        for name, value in state["counters"].items():
            setattr(self, name, value)
        self._saved_at = None if state["keys"] is None else state["keys"].numpy()
        self.seen = list(seen)

    _saved_at: np.ndarray[Any, np.dtype[np.int64]] | None = None

    def _in_experience(self) -> bool:
        return self._started and (self._batch_in_epoch > 0 or self.epoch > 0)

    def _train_mode(self) -> None:
        self.model.train()
        if self.config.freeze_norm:
            for module in self.model.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()

    def _dropout(self) -> Any:
        return _Seeded(int(self.generator("dropout").initial_seed()))

    def _build_optimizer(self) -> torch.optim.Optimizer:
        config = self.config
        params = [p for p in self.model.parameters() if p.requires_grad]
        if not params:
            raise AdapterError("the model has no parameter that requires a gradient")
        if config.optimizer == "sgd":
            return torch.optim.SGD(
                params, lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay
            )
        rule = torch.optim.Adam if config.optimizer == "adam" else torch.optim.AdamW
        return rule(params, lr=config.lr, weight_decay=config.weight_decay)


_COUNTERS = (
    *("experience", "epoch", "epochs", "step", "step_in_experience", "steps_in_experience"),
    *("_batch_in_epoch", "_forwards", "_backwards"),
)


class _Seeded:
    """Dropout draws from torch's global generator: seeded inside, put back outside."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def __enter__(self) -> None:
        self.state = torch.get_rng_state()
        torch.default_generator.manual_seed(self.seed)

    def __exit__(self, *_: object) -> None:
        torch.set_rng_state(self.state)


def _offsets(size: int, batch_size: int) -> list[int]:
    """First rows of an epoch's batches; a last batch of one is left out (BatchNorm needs two)."""
    starts = list(range(0, size, batch_size))
    if len(starts) > 1 and size - starts[-1] == 1:
        starts.pop()
    return starts


def _keyed(samples: Samples) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Keys, labels and tasks ``(N, 3)``: what a choice of samples amounts to."""
    return np.stack([samples.keys, samples.labels, samples.tasks], 1)


def _restored(saved: np.ndarray[Any, Any], pool: Sequence[Samples]) -> Samples:
    """The samples of ``pool`` that were saved, in their order, with the saved labels and tasks."""
    everything = joined(pool)
    order = np.argsort(everything.keys, kind="stable")
    found = np.searchsorted(everything.keys[order], saved[:, 0])
    chosen = everything.take(order[found])
    return replace(chosen, labels=saved[:, 1].copy(), tasks=saved[:, 2].copy())
