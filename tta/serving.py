"""An adapter behind a service: many readers, one writer, no answer from half-written weights.

    with Server(tta.wrap(model, "tent")) as server:
        answer = server.predict(x)      # by the last committed state; never waits for an update
        server.submit(x)                # adapts in the background, or is refused: the queue is full

The writer works on the adapter. A step either ends, and its state is published as a commit, or it
fails, and everything is as before it. Readers answer from a copy of their own, which takes the last
commit before it answers.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

from tta import losses
from tta.adapter import Adapter
from tta.desk import Answer, Desk
from tta.errors import AdapterError
from tta.evidence import Side
from tta.factory import wrap
from tta.restore import Links, Reader, RestorePoint

T = TypeVar("T")
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """One step that was committed.

    Attributes:
        logits: What ``adapter(x)`` returned, ``(B, K)``.
        version: The commit that it made.
        report: ``adapter.report`` after it.
        seconds: Wall-clock time, that of the commit included.
    """

    logits: Tensor
    version: int
    report: dict[str, float]
    seconds: float


@dataclass(frozen=True, slots=True)
class _Commit:
    version: int
    point: RestorePoint


class Server:
    """Serves an adapter from several threads.

    Args:
        adapter: Any adapter, fitted where it needs source data. It belongs to the server from now
            on: nobody else calls it.
        source: The source model, for shadow mode: both answer, the source model is served until
            labels (``feedback``) show the adapted one to be better, and again when it is worse. It
            is copied. ``None``: the adapted model is served.
        queue_size: Batches that may wait for the background worker.
        history: Images whose answers are kept until their labels come.
        window: Labelled images that the temperature is fitted to.
        alpha: Most probability of ever switching to an adapted model that is no better.

    Attributes:
        listeners: Called with each ``Step`` after its commit, in the writer's thread; what they
            raise is logged.

    Raises:
        AdapterError: For an adapter without its source data, or numbers out of range.
    """

    def __init__(
        self,
        adapter: Adapter,
        *,
        source: nn.Module | None = None,
        queue_size: int = 16,
        history: int = 1000,
        window: int = 500,
        alpha: float = 0.05,
    ) -> None:
        if not isinstance(adapter, Adapter):
            raise AdapterError(f"a server takes a tta.Adapter, got {type(adapter).__name__}")
        if adapter.needs.source_data and not adapter.source_fitted:
            raise AdapterError(f"{adapter.name} needs source data: call fit_source(batches) first")
        if queue_size < 1:
            raise AdapterError(f"queue_size={queue_size}: it must be 1 or more")
        self.listeners: list[Callable[[Step], None]] = []
        self._adapter = adapter
        self._reader = Reader(adapter)
        self._frozen = None if source is None else wrap(source, "source")
        self._frozen_links = Links([] if self._frozen is None else self._frozen.modules())
        self._commit = _Commit(0, RestorePoint(adapter))
        self._dirty = False
        self._writing, self._reading = threading.Lock(), threading.Lock()
        self._desk = Desk(source is not None, history, window, alpha)
        self._counting = threading.Lock()
        self._counts = dict.fromkeys(("steps", "failed", "refused", "dropped", "step_seconds"), 0.0)
        self._last: dict[str, float] = {}
        self._gate = threading.Lock()
        self._closed = False
        self._queue: queue.Queue[tuple[Tensor, Future[Step]] | None] = queue.Queue(queue_size)
        self._worker: threading.Thread | None = None

    # Readers --------------------------------------------------------------------------------

    @property
    def version(self) -> int:
        """The last commit."""
        return self._commit.version

    @property
    def serving(self) -> Side:
        """The model whose answers are served."""
        return self._desk.side

    def predict(self, x: Tensor) -> Answer:
        """Answer a request; waits for other requests, never for an update.

        Args:
            x: Images ``(B, C, H, W)``, floating, in ``[0, 1]``; one or many.

        Raises:
            AdapterError: For a wrong rank or dtype, or an empty batch.
        """
        with self._reading:
            commit = self._commit
            try:
                self._reader.take(commit.point)
                adapted = self._reader.adapter.predict(x)
                source = None if self._frozen is None else self._frozen.predict(x)
            except BaseException:
                self._reader.spoilt()
                self._frozen_links.restore()
                raise
        return self._desk.give(adapted, source, commit.version)

    def feedback(self, index: int | Sequence[int] | Tensor, y: int | Sequence[int] | Tensor) -> int:
        """Labels of answers given before, in any order; they count for later answers alone.

        Args:
            index: Numbers of images: ``answer.index + i``.
            y: Their classes.

        Returns:
            The labels that were used: of images still remembered, the first of each.

        Raises:
            AdapterError: For an index never given out, a class that is not there, or a dense head.
        """
        return self._desk.feedback(index, y)

    def switch(self, side: Side) -> None:
        """Serve this model from now on, whatever the evidence, which is gathered anew.

        Raises:
            AdapterError: For ``"source"`` without a source model.
        """
        self._desk.turn(side)

    # The writer -----------------------------------------------------------------------------

    def adapt(self, x: Tensor) -> Step:
        """One step on ``x`` in the caller's thread; it waits for other steps.

        Args:
            x: Images ``(B, C, H, W)``, floating, in ``[0, 1]``.

        Raises:
            AdapterError: For a wrong input, or after ``close``.
            BaseException: What the step raised; the state is as before it, bit for bit.
        """
        if self._closed:
            raise AdapterError("the server is closed: it adapts no more")
        return self._step(x)

    def submit(self, x: Tensor) -> Future[Step] | None:
        """Queue a copy of ``x`` for the background worker; ``None`` where the queue is full.

        Raises:
            AdapterError: After ``close``.
        """
        future: Future[Step] = Future()
        with self._gate:
            if self._closed:
                raise AdapterError("the server is closed: it adapts no more")
            if self._worker is None:
                self._worker = threading.Thread(target=self._work, name="tta-writer", daemon=True)
                self._worker.start()
            try:
                self._queue.put_nowait((x.clone(), future))
            except queue.Full:
                self._count(dropped=1)
                return None
        return future

    def apply(self, change: Callable[[Adapter], T]) -> T:
        """Let ``change`` do what it likes with the adapter: a step that is committed or undone.

        ``server.apply(lambda adapter: adapter.reset())`` serves the source weights again.
        """
        with self._writing:
            return self._transact(change)

    def close(self, drain: bool = True) -> None:
        """End the worker; ``predict`` still answers.

        Args:
            drain: Adapt to what is queued first; else it is cancelled.
        """
        with self._gate:
            if self._closed:
                return
            self._closed = True
        while not drain:
            try:
                job = self._queue.get_nowait()
            except queue.Empty:
                break
            if job is not None:
                job[1].cancel()
        if self._worker is not None:
            self._queue.put(None)
            self._worker.join()

    def __enter__(self) -> Server:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        self.close(drain=kind is None)

    def stats(self) -> dict[str, float]:
        """Numbers for a monitor; see the table in ``docs/serving.md``."""
        commit = self._commit
        with self._counting:
            counts = {**self._counts, **self._last}
        return {
            **counts,
            **self._desk.stats(),
            "version": commit.version,
            "queue": self._queue.qsize(),
            "drift": self._drift(commit.point),
        }

    def _work(self) -> None:
        while (job := self._queue.get()) is not None:
            x, future = job
            if not future.set_running_or_notify_cancel():
                continue
            try:
                step = self._step(x)
            except BaseException as error:
                _LOG.warning("a queued step failed and was undone: %r", error)
                future.set_exception(error)
            else:
                future.set_result(step)

    def _step(self, x: Tensor) -> Step:
        with self._writing:
            started = time.perf_counter()
            try:
                logits, report, entropy = self._transact(lambda adapter: _stepped(adapter, x))
            except BaseException:
                self._count(failed=1)
                raise
            seconds = time.perf_counter() - started
            version = self._commit.version
            step = Step(logits=logits, version=version, report=report, seconds=seconds)
            self._count(steps=1, refused=report.get("update_refused", 0), step_seconds=seconds)
            told = {f"report_{key}": value for key, value in report.items()}
            self._last = {"entropy": entropy, "last_step_seconds": seconds, **told}
            for listener in self.listeners:
                _tell(listener, step)
        return step

    def _transact(self, change: Callable[[Adapter], T]) -> T:
        """A change and its commit, or neither; the caller holds the writer's lock."""
        if self._dirty:  # the way back was itself interrupted
            self._commit.point.restore()
        self._dirty = True
        failure: BaseException | None = None
        try:
            result = change(self._adapter)
            self._commit = _Commit(self._commit.version + 1, RestorePoint(self._adapter))
        except BaseException as error:
            failure = error
        if failure is not None:
            if isinstance(failure, (torch.cuda.OutOfMemoryError, MemoryError)):
                # The frames hold the activations that left no memory for the way back.
                traceback.clear_frames(failure.__traceback__)
            self._commit.point.restore()
        self._dirty = False
        if failure is not None:
            try:
                raise failure
            finally:
                failure = None  # else this frame and the traceback keep each other alive
        return result

    def _drift(self, point: RestorePoint) -> float:
        """``|w - w0| / |w0|`` over all floating tensors that the method may change."""
        first = self._adapter._initial["tensors"]
        gap = size = 0.0
        for name, now in point.state["tensors"].items():
            if now.is_floating_point() and name in first:
                then = first[name].to(now)
                gap += float((now - then).double().square().sum())
                size += float(then.double().square().sum())
        return (gap / size) ** 0.5 if size else 0.0

    def _count(self, **more: float) -> None:
        with self._counting:
            for name, value in more.items():
                self._counts[name] += value


def _stepped(adapter: Adapter, x: Tensor) -> tuple[Tensor, dict[str, float], float]:
    """Logits and report of a step, and the mean entropy of the logits in nats."""
    logits = adapter(x)
    finite = logits[logits.isfinite().flatten(1).all(1)]
    entropy = float(losses.entropy(finite).mean()) if len(finite) else float("nan")
    return logits, adapter.report, entropy


def _tell(listener: Callable[[Step], None], step: Step) -> None:
    try:
        listener(step)
    except Exception:
        _LOG.exception("a listener failed; the step is committed all the same")
