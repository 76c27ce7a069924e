"""Ray: one actor a slot, on this machine or on a cluster that shares no file system with it."""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.errors import UsageError
from benchmarks.store import Store
from benchmarks.sweep.plan import Resources
from benchmarks.sweep.work import BEAT, Outcome, Task, be_worker, run_task, so_far

# What a local Ray holds of shared memory, in bytes; rows and files of a run are small.
_OBJECTS = 200 * 2**20
_MIB = 2**20


class Ray:
    """Actors that run cells and send back what they wrote.

    Args:
        out: Results folder, of the driver alone.
        jobs: Actors; by default as many as the resources of the cluster allow.
        resources: What each actor gets.
        address: Cluster to join; ``None`` starts one on this machine.
        timeout: Seconds that a cell may take; its actor is ended then.

    Raises:
        UsageError: If ray is not installed, the cluster cannot be reached, or has no room.
    """

    def __init__(
        self,
        out: Path,
        jobs: int | None,
        resources: Resources,
        address: str | None = None,
        timeout: float | None = None,
    ) -> None:
        # Read when ray is imported.
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        try:
            import ray
        except ImportError as error:
            raise UsageError("ray is not installed: pip install 'tta-bench[ray]'") from error
        self._ray = ray
        self._store = Store(out)
        self._timeout = timeout
        self._options: dict[str, Any] = {"num_cpus": resources.cpus, "num_gpus": resources.gpus}
        if resources.memory_mib is not None:
            self._options["memory"] = resources.memory_mib * _MIB
        _connect(ray, address, (jobs or 1) * resources.cpus)
        room = _room(ray.cluster_resources(), self._options)
        if room < 1:
            ray.shutdown()
            raise UsageError(f"the Ray cluster has no room for one cell: {self._options}")
        self.capacity = room if jobs is None else min(jobs, room)
        self._idle: list[Any] = []
        self._busy: dict[Any, tuple[Any, Task, float]] = {}
        self._looked = time.monotonic()

    def submit(self, task: Task) -> None:
        """Give a cell to an actor that is idle, or to a new one."""
        if not self._idle:
            # Two threads: one works, one says how far it is.
            make = self._ray.remote(_Worker).options(max_concurrency=2, **self._options)
            self._idle.append(make.remote())
        actor = self._idle.pop()
        self._busy[actor.run.remote(task)] = (actor, task, time.monotonic())

    def poll(self) -> list[Outcome]:
        """What has ended within a second."""
        done, _ = self._ray.wait(list(self._busy), num_returns=1, timeout=1.0)
        outcomes = [self._outcome(reference) for reference in done]
        if time.monotonic() - self._looked >= BEAT:
            self._looked = time.monotonic()
            outcomes += self._look()
        return outcomes

    def close(self) -> None:
        """End the actors, and the cluster if it was started here."""
        self._ray.shutdown()

    def _outcome(self, reference: Any) -> Outcome:
        actor, task, _ = self._busy.pop(reference)
        errors = self._ray.exceptions
        try:
            outcome: Outcome = self._ray.get(reference)
        except errors.RayTaskError as error:  # what cannot be sent
            self._idle.append(actor)
            return Outcome(task.key, "failed", reason=_line(error))
        except errors.RayError as error:  # actor, node or object is gone
            with suppress(errors.RayError):
                self._ray.kill(actor)
            return Outcome(task.key, "lost", reason=f"its actor died: {_line(error)}")
        self._idle.append(actor)
        return outcome

    def _look(self) -> list[Outcome]:
        """End the actors that are at it for too long, and tell the store how far the others are."""
        late = []
        for reference, (actor, task, began) in list(self._busy.items()):
            if self._timeout is not None and time.monotonic() - began > self._timeout:
                del self._busy[reference]
                self._ray.kill(actor)
                reason = f"took longer than {self._timeout:g} s"
                late.append(Outcome(task.key, "failed", reason=reason))
        asked = {actor.told.remote(): task for actor, task, _ in self._busy.values()}
        if not asked:
            return late
        # An actor that is not up yet does not answer; of one that is gone ``poll`` learns.
        answers, _ = self._ray.wait(list(asked), num_returns=len(asked), timeout=0.5)
        for answer in answers:
            with suppress(self._ray.exceptions.RayError):
                done, total, error_pct = self._ray.get(answer)
                facts = asked[answer].cell.facts
                words = so_far(error_pct) if done else ""
                self._store.mark(
                    asked[answer].key, "running", reason=words, done=done, total=total, **facts
                )
        return late


class _Worker:
    """The actor: runs in a folder of its own, which is gone afterwards."""

    def __init__(self) -> None:
        be_worker()
        self._told = (0, 0, 0.0)
        self._lock = threading.Lock()

    def run(self, task: Task) -> Outcome:
        """A cell, with the content of its files."""
        self._tell(0, 0, 0.0)
        scratch = Path(tempfile.mkdtemp(prefix="tta-bench-"))
        try:
            outcome = run_task(task, scratch, self._tell)
            if outcome.row is None:
                return outcome
            (result,) = scratch.glob("*/result.json")
            files = {path.name: path.read_bytes() for path in result.parent.iterdir()}
            return replace(outcome, folder=result.parent.name, files=files)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)

    def told(self) -> tuple[int, int, float]:
        """Steps done, steps, error so far in percent."""
        with self._lock:
            return self._told

    def _tell(self, done: int, total: int, error_pct: float) -> None:
        with self._lock:
            self._told = (done, total, error_pct)


def _connect(ray: Any, address: str | None, cpus: int) -> None:
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if address is None:
        ray.init(
            address="local",
            num_cpus=cpus,
            include_dashboard=False,
            object_store_memory=_OBJECTS,
            **quiet,
        )
        return
    try:
        ray.init(address=address, **quiet)
    except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
        words = str(error).strip().splitlines()[0]
        raise UsageError(f"no Ray cluster at {address!r}: {words}") from error


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]


def _room(has: dict[str, float], wants: dict[str, Any]) -> int:
    """Actors that the cluster has room for."""
    names = {"num_cpus": "CPU", "num_gpus": "GPU", "memory": "memory"}
    return int(min(has.get(names[key], 0) // value for key, value in wants.items() if value))
