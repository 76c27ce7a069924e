"""One life over a learning stream: learn, adapt on unlabelled segments, forget, be tested."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from continual.evaluate import Evaluation, count_correct
from continual.learner import Learner, Step
from streams.learning_types import Experience, ForgetRequest, LearningStream, Samples, Segment
from streams.order import rng
from streams.types import Batch
from tta.adapter import Adapter


class Watch(Protocol):
    """Who writes down what happens; every method may do nothing."""

    def learned(self, step: Step, experience: Experience, seconds: float) -> None:
        """A training step was taken."""

    def adapted(
        self,
        batch: Batch,
        logits: Tensor,
        report: Mapping[str, float],
        segment: Segment,
        seconds: float,
    ) -> None:
        """An adapter has seen a batch of a segment."""

    def forgot(self, request: ForgetRequest, server: str | None, seconds: float) -> None:
        """A request to forget was served by the plug-in ``server``; by none where ``None``."""

    def evaluated(self, evaluation: Evaluation) -> None:
        """All tests were looked at."""

    def settled(self, life: Life) -> None:
        """``life.state_dict()`` may be saved now, together with all that was written down."""


class Life:
    """Takes a learner through the items of a stream.

    Args:
        stream: What it meets.
        learner: Who learns.
        wrap: Makes the adapter that works on the segments out of the learner's model (a copy is
            passed); ``None`` predicts the segments without adapting.
        carry: Whether learning goes on from the adapted weights; otherwise from those before.
        eval_every: Training steps between looks at all tests in the middle of an experience; 0
            looks at the end of each item alone.
        source_images: At most so many seen training images for an adapter that needs source data.
    """

    def __init__(
        self,
        stream: LearningStream,
        learner: Learner,
        *,
        wrap: Callable[[nn.Module], Adapter] | None = None,
        carry: bool = True,
        eval_every: int = 0,
        source_images: int = 2000,
    ) -> None:
        self.stream = stream
        self.learner = learner
        self.wrap = wrap
        self.carry = carry
        self.eval_every = eval_every
        self.source_images = source_images
        self.item = -1
        self._in_segment = 0
        self._adapter: Adapter | None = None
        self._saved_adapter: dict[str, Any] | None = None

    def run(self, watch: Watch) -> None:
        """Live the whole stream, or the rest of it after ``load_state_dict``."""
        if self.item < 0:
            self.item = 0
            self._evaluate(watch, -1, "before", "before")
            watch.settled(self)
        while self.item < len(self.stream):
            item = self.stream.items[self.item]
            if isinstance(item, Experience):
                self._learn(item, watch)
            elif isinstance(item, Segment):
                self._adapt(item, watch)
            else:
                started = time.perf_counter()
                server = self.learner.forget(item)
                watch.forgot(item, server, time.perf_counter() - started)
            self.item += 1
            self._in_segment = 0
            kind = {Experience: "experience", Segment: "segment", ForgetRequest: "forget"}
            self._evaluate(watch, self.item - 1, kind[type(item)], item.name)
            watch.settled(self)

    def state_dict(self) -> dict[str, Any]:
        """Everything that the rest of the life depends on."""
        return {
            "item": self.item,
            "in_segment": self._in_segment,
            "learner": self.learner.state_dict(),
            "adapter": None if self._adapter is None else self._adapter.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state of the same stream, learner and options."""
        self.item = int(state["item"])
        self._in_segment = int(state["in_segment"])
        self._saved_adapter = state["adapter"]
        self.learner.load_state_dict(state["learner"], list(self._seen(self.item)))

    def _seen(self, stop: int) -> Iterator[Samples]:
        """Training samples of the finished experiences, less what was forgotten since."""
        items = self.stream.items[:stop]
        for place, item in enumerate(items):
            if isinstance(item, Experience):
                samples = item.train
                for later in items[place + 1 :]:
                    if isinstance(later, ForgetRequest):
                        kept = ~np.isin(samples.keys, later.samples.keys)
                        samples = samples.take(np.flatnonzero(kept))
                yield samples

    def _learn(self, experience: Experience, watch: Watch) -> None:
        started = time.perf_counter()

        def after(step: Step) -> None:
            nonlocal started
            watch.learned(step, experience, time.perf_counter() - started)
            if self.eval_every and self.learner.step % self.eval_every == 0:
                self._evaluate(watch, self.item, "step", experience.name)
            watch.settled(self)
            started = time.perf_counter()

        self.learner.learn(experience, after)

    def _adapt(self, segment: Segment, watch: Watch) -> None:
        device, model = self.learner.device, self.learner.model
        if self.wrap is not None:
            self._adapter = self.wrap(deepcopy(model))
            if self._saved_adapter is not None:
                self._adapter.load_state_dict(self._saved_adapter)
                self._saved_adapter = None
            elif self._adapter.needs.source_data:
                self._adapter.fit_source(self._source_batches(segment.stream.batch_size))
        resets = set(segment.stream.reset_steps)
        model.eval()
        for batch in segment.stream.start_at(self._in_segment):
            if self._adapter is not None and batch.step in resets:
                self._adapter.reset()
            x = batch.x.to(device)
            started = time.perf_counter()
            if self._adapter is None:
                with torch.no_grad():
                    logits = model(x)
                report: Mapping[str, float] = {"forwards": len(x)}
            else:
                logits, report = self._adapter(x), self._adapter.report
            self._in_segment = batch.step + 1
            watch.adapted(batch, logits, report, segment, time.perf_counter() - started)
            watch.settled(self)
        if self._adapter is not None and self.carry:
            carry_over(self._adapter.model, model)
        self._adapter = None

    def _source_batches(self, batch_size: int) -> Iterator[Any]:
        """Images seen in training, with their labels where the adapter asks for them."""
        assert self._adapter is not None
        labelled = self._adapter.needs.source_labels
        seen = list(self._seen(self.item))
        draw = rng(self.learner.config.seed, "source images", self.item)
        each = max(1, self.source_images // max(1, len(seen)))
        for samples in seen:
            chosen = np.sort(draw.permutation(len(samples))[:each])
            for first in range(0, len(chosen), batch_size):
                x, y = samples.batch(chosen[first : first + batch_size])
                x = x.to(self.learner.device)
                yield (x, y.to(self.learner.device)) if labelled else x

    def _evaluate(self, watch: Watch, item: int, kind: str, name: str) -> None:
        correct, masked, total = count_correct(
            self.learner.model, self.stream.tasks, device=self.learner.device
        )
        watch.evaluated(
            Evaluation(
                item=item,
                kind=kind,
                name=name,
                step=self.learner.step,
                correct=correct,
                masked=masked,
                total=total,
            )
        )


def carry_over(adapted: nn.Module, model: nn.Module) -> None:
    """Copy weights and statistics of an adapted model into one of the same architecture.

    What the adapter replaced or removed (another name or shape) stays as it is in ``model``.
    """
    made, own = adapted.state_dict(), model.state_dict()
    with torch.no_grad():
        for name, value in own.items():
            if name in made and made[name].shape == value.shape:
                value.copy_(made[name])
