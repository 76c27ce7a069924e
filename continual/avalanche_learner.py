"""An Avalanche strategy as the learner of a ``Life``."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import numpy as np
from torch import nn

from continual.avalanche_data import as_avalanche_benchmark, origins
from continual.avalanche_load import Loader
from continual.avalanche_plugin import PluginBridge, note_past
from continual.avalanche_random import quiet, random_state, seed_all, set_random_state
from continual.avalanche_record import Answers, Recorder, recorders
from continual.avalanche_save import Saver
from continual.avalanche_state import UnknownState
from continual.learner import LearnerConfig, Step
from streams.learning_types import Experience, ForgetRequest, LearningStream, Samples, joined
from tta.errors import AdapterError

Counts = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]


class AvalancheLearner:
    """What ``Life`` asks of a learner, answered by an Avalanche strategy.

    Args:
        stream: The stream; its benchmark is built here.
        strategy: The strategy.
        seed: Seed of the global generators.
        train_options: Keyword arguments of the strategy's ``train``.
    """

    def __init__(
        self,
        stream: LearningStream,
        strategy: Any,
        seed: int,
        train_options: Mapping[str, Any] | None = None,
    ) -> None:
        from avalanche.training.supervised import JointTraining
        from avalanche.training.templates.base import BaseTemplate

        if isinstance(strategy, JointTraining) and len(stream.experiences) > 1:
            raise AdapterError(
                "JointTraining learns a whole stream at once, not one experience after another: "
                "take Cumulative"
            )
        if not isinstance(strategy, BaseTemplate):
            raise AdapterError(
                f"a {type(strategy).__name__} is no Avalanche strategy: build one with "
                "continual.from_avalanche"
            )
        self.strategy: Any = strategy
        self.tasks = stream.tasks
        self.train_options = dict(train_options or {})
        self.benchmark = as_avalanche_benchmark(stream)
        self.config = LearnerConfig(
            seed=seed,
            batch_size=getattr(strategy, "train_mb_size", 1),
            epochs=getattr(strategy, "train_epochs", 1),
        )
        self.step = 0
        self.seen: list[Samples] = []
        self._done = 0
        self._running = False
        self._random: dict[str, Any] | None = None
        self._datasets = [experience.dataset for experience in self.benchmark.train_stream]
        self._images = [origins(dataset)[0][0] for dataset in self._datasets]
        self._saver = Saver(strategy, self._images, (PluginBridge,))

    @property
    def model(self) -> nn.Module:
        """The strategy's present model."""
        model: nn.Module = self.strategy.model
        return model

    @property
    def device(self) -> str:
        """Where it is."""
        return str(self.strategy.device)

    def learn(self, experience: Experience, watch: Callable[[Step], None]) -> None:
        """Train on one experience.

        Args:
            experience: The next of the stream's experiences.
            watch: Called after each training iteration.
        """

        def after(step: Step) -> None:
            self.step += 1
            watch(step)

        recorder = Recorder(self._images, self._done, after)
        epochs = self.strategy.train_epochs
        if experience.epochs is not None:
            self.strategy.train_epochs = experience.epochs
        note_past(self.strategy, self.seen)
        with recorders(self.strategy, recorder), quiet():
            theirs = self.benchmark.train_stream[self._done]
            self.strategy.train(theirs, eval_streams=[], **self.train_options)
        self.strategy.train_epochs = epochs
        self._done += 1
        self.seen.append(experience.train)

    def evaluate(self, neutral: bool) -> Counts:
        """Correct predictions on each test among all and among its own classes; sizes.

        Args:
            neutral: Leave the global generators, and a model that grows with the classes, as they
                were.
        """
        answers = Answers([task.classes for task in self.tasks])
        with recorders(self.strategy, answers), _left_alone(self.strategy, neutral), quiet():
            self.strategy.eval(self.benchmark.test_stream)
        return answers.counts()

    def forget(self, request: ForgetRequest) -> str | None:
        """Let the first plug-in of ours that can serve a request to forget."""
        self.check_forgets()
        if not self.seen:
            raise AdapterError("a request to forget came before the first experience")
        bridges = [p for p in self.strategy.plugins if isinstance(p, PluginBridge)]
        everything = joined(self.seen)
        gone = np.isin(everything.keys, request.samples.keys)
        retained = everything.take(np.flatnonzero(~gone))
        server = next((b for b in bridges if b.forget(self, request, everything, retained)), None)
        if server is None:
            names = ", ".join(bridge.plugin.name for bridge in bridges)
            raise AdapterError(f"{request.name}: none of {names} serves a request to forget")
        self.seen = [
            s.take(np.flatnonzero(~np.isin(s.keys, request.samples.keys))) for s in self.seen
        ]
        note_past(self.strategy, self.seen)
        for bridge in bridges:
            bridge.plugin.forgotten(bridge.host, request)
        name: str = server.plugin.name
        return name

    def check_forgets(self) -> None:
        """Raise where nothing in the strategy can serve a request to forget."""
        if not any(isinstance(p, PluginBridge) for p in self.strategy.plugins):
            raise AdapterError(
                f"{type(self.strategy).__name__} cannot forget on request: add one of our "
                "unlearning plug-ins with continual.as_plugin, or leave the requests out"
            )

    def state_dict(self) -> dict[str, Any]:
        """The strategy's state, or why there is none; counters and global generators."""
        try:
            walked, unknown = self._saver.save(), None
        except UnknownState as error:
            walked, unknown = None, str(error)
        return {
            "strategy": walked,
            "unknown": unknown,
            "step": self.step,
            "done": self._done,
            "random": random_state(self.device) if self._running else self._random,
        }

    def load_state_dict(self, state: Mapping[str, Any], seen: Sequence[Samples]) -> None:
        """Go on from a state; raises ``UnknownState`` where the strategy cannot take it up."""
        Loader(self.strategy, self._datasets).load(state["strategy"])
        self.step = int(state["step"])
        self._done = int(state["done"])
        self._random = state["random"]
        self.seen = list(seen)

    @contextmanager
    def seeded(self) -> Iterator[None]:
        """The global generators are the life's inside, the caller's outside."""
        outer = random_state(self.device)
        if self._random is None:
            seed_all(self.config.seed)
        else:
            set_random_state(self._random)
        self._running = True
        try:
            yield
        finally:
            self._random = random_state(self.device)
            self._running = False
            set_random_state(outer)


@contextmanager
def _left_alone(strategy: Any, neutral: bool) -> Iterator[None]:
    """The global generators and the model of a strategy are as before, where ``neutral``."""
    if not neutral:
        yield
        return
    from avalanche.models import DynamicModule

    state, model = random_state(str(strategy.device)), strategy.model
    if any(isinstance(module, DynamicModule) for module in model.modules()):
        strategy.model = deepcopy(model)
    try:
        yield
    finally:
        strategy.model = model
        set_random_state(state)
