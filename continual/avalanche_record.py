"""What an Avalanche strategy does in each iteration, written down as our steps and counts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import Token
from typing import Any

import numpy as np
import torch
from torch import Tensor

from continual.avalanche_data import READS, Reads, SampleImages
from continual.avalanche_plugin import extra_passes, note_keys
from continual.learner import Step
from streams.learning_types import joined


class Recorder:
    """Two plug-ins, around all others, that report each training iteration.

    The rows of a batch are known by what our datasets were asked for while it was loaded. A step
    holds those of the experience, or of what a plug-in of ours chose in its place; where a batch
    has none (all of it is from a memory), all rows. Rows that a strategy puts before or behind the
    loaded ones (a replayed batch) are left out.

    Args:
        images: What the datasets of all experiences read from.
        current: Number of the present one.
        watch: Called with each step.
    """

    def __init__(
        self, images: Sequence[SampleImages], current: int, watch: Callable[[Step], None]
    ) -> None:
        self.watch = watch
        self.past = [part for n, part in enumerate(images) if n != current]
        self.samples = images[current].samples
        self._reads: Reads = []
        self._token: Token[Reads | None] | None = None
        self._loaded: Tensor | None = None
        self._at = np.zeros(0, dtype=np.int64)
        self._rows = np.zeros(0, dtype=np.int64)

    def first(self) -> Any:
        """The plug-in that comes before all others."""
        return _plugin(
            before_training_epoch=lambda _: self._reads.clear(),
            before_training_iteration=self._opened,
        )

    def last(self) -> Any:
        """The plug-in that comes after all others."""
        return _plugin(after_training_iteration=self._closed)

    def begin(self) -> None:
        """Note what is read from now on."""
        self._token = READS.set(self._reads)

    def end(self) -> None:
        """Note nothing any more."""
        if self._token is not None:
            READS.reset(self._token)

    def _opened(self, strategy: Any) -> None:
        self._loaded = strategy.mb_x
        rows = _rows(strategy.mb_x, self._reads)
        reads = [(part, place) for part, place, _ in self._reads] if rows else []
        self._reads.clear()
        note_keys(strategy, _keys(reads) if len(rows) == len(strategy.mb_x) else None)
        old = {id(part) for part in self.past}
        new = [n for n, (part, _) in enumerate(reads) if id(part) not in old]
        chosen = new or range(len(reads))
        parts = list({id(reads[n][0]): reads[n][0] for n in chosen}.values())
        starts = np.cumsum([0, *(len(part) for part in parts)]).tolist()
        start = {id(part): starts[n] for n, part in enumerate(parts)}
        if parts:
            held = [part.samples for part in parts]
            self.samples = held[0] if len(held) == 1 else joined(held)
        self._rows = np.array([rows[n] for n in chosen], dtype=np.int64)
        at = [start[id(reads[n][0])] + reads[n][1] for n in chosen]
        self._at = np.array(at, dtype=np.int64)

    def _closed(self, strategy: Any) -> None:
        x, y, loaded = strategy.mb_x, strategy.mb_y, self._loaded
        assert loaded is not None
        rows = self._rows
        if len(x) > len(loaded) and not torch.equal(x[: len(loaded)], loaded):
            rows = rows + len(x) - len(loaded)
        rows = rows[rows < len(x)]  # a plug-in may have taken rows away
        forwards, backwards = extra_passes(strategy)
        at = torch.from_numpy(rows).to(x.device)
        step = Step(
            x=x[at],
            y=y[at],
            logits=strategy.mb_output.detach()[at],
            at=self._at[: len(rows)],
            samples=self.samples,
            loss=float(strategy.loss.detach()),
            lr=_rate(strategy),
            forwards=len(x) + forwards,
            backwards=len(x) + backwards,
        )
        self._loaded = None
        self.watch(step)
        self._reads.clear()


def _rate(strategy: Any) -> float:
    """Learning rate; 0 for a strategy that takes no optimiser."""
    optimizer = getattr(strategy, "optimizer", None)
    return float(optimizer.param_groups[0]["lr"]) if optimizer is not None else 0.0


def _rows(x: Tensor, reads: Reads) -> list[int]:
    """Rows of a loaded batch ``(B, C, H, W)`` that the reads, in order, went to; none if unclear.

    A memory that holds tensors puts rows in between that nobody read.
    """
    if len(reads) == len(x):
        return list(range(len(x)))
    rows: list[int] = []
    row = 0
    for _, _, image in reads:
        while row < len(x) and not torch.equal(x[row].cpu(), image):
            row += 1
        if row == len(x):
            return []
        rows.append(row)
        row += 1
    return rows


def _keys(reads: list[tuple[SampleImages, int]]) -> Tensor | None:
    """Ids ``(B,)`` of the images that were read, in order."""
    if not reads:
        return None
    keys = np.zeros(len(reads), dtype=np.int64)
    owners = np.array([id(part) for part, _ in reads])
    places = np.array([place for _, place in reads])
    for part in {id(part): part for part, _ in reads}.values():
        mine = owners == id(part)
        keys[mine] = part.samples.take(places[mine]).keys
    return torch.from_numpy(keys)


class Answers:
    """A plug-in that counts correct predictions, of the strategy's own forward, by test.

    Args:
        classes: Classes of each test, in the order of the test stream.
    """

    def __init__(self, classes: Sequence[Sequence[int]]) -> None:
        self.classes = classes
        self.correct = [0] * len(classes)
        self.masked = [0] * len(classes)
        self.total = [0] * len(classes)

    def first(self) -> Any:
        """Nothing comes before the others."""
        return _plugin()

    def last(self) -> Any:
        """The plug-in that comes after all others."""
        return _plugin(after_eval_iteration=self._count)

    def begin(self) -> None:
        """Counts are there already."""

    def end(self) -> None:
        """Counts stay."""

    def counts(self) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
        """Correct among all classes, among the test's own, and sizes."""
        return tuple(self.correct), tuple(self.masked), tuple(self.total)

    def _count(self, strategy: Any) -> None:
        task = strategy.experience.current_experience
        logits, y = strategy.mb_output, strategy.mb_y
        own = torch.tensor([c for c in self.classes[task] if c < logits.shape[1]], device=y.device)
        self.correct[task] += int((logits.argmax(1) == y).sum())
        if len(own):
            self.masked[task] += int((own[logits[:, own].argmax(1)] == y).sum())
        self.total[task] += len(y)


@contextmanager
def recorders(strategy: Any, recorder: Recorder | Answers) -> Iterator[None]:
    """The recorder's plug-ins are among the strategy's inside, and gone outside."""
    first, last = recorder.first(), recorder.last()
    strategy.plugins.insert(0, first)
    strategy.plugins.append(last)
    recorder.begin()
    try:
        yield
    finally:
        recorder.end()
        for plugin in (first, last):
            strategy.plugins[:] = [p for p in strategy.plugins if p is not plugin]


def _plugin(**hooks: Callable[[Any], None]) -> Any:
    """A plug-in with the given hooks; Avalanche calls what an object has, whatever its class."""

    class Recording:
        """Hooks of a recorder."""

    made = Recording()
    for name, hook in hooks.items():
        setattr(made, name, lambda strategy, hook=hook, **_: hook(strategy))
    return made
