"""Engines on this machine: a pool of processes, and none at all."""

from __future__ import annotations

import multiprocessing
import os
import threading
from concurrent.futures import CancelledError, wait
from concurrent.futures import TimeoutError as TooLate
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from benchmarks.errors import UsageError
from benchmarks.sweep.work import Outcome, Task, be_worker, run_beside_store

# Cells after which a worker is replaced, so that what it keeps of memory stays bounded.
_CELLS = 50
# Pools that may break in a row, without a single outcome between.
_BREAKS = 3


class Serial:
    """One cell after the other, in this process."""

    capacity = 1

    def __init__(self, out: Path) -> None:
        self._out = out
        self._task: Task | None = None
        self._threads: int | None = None

    def submit(self, task: Task) -> None:
        """Take a cell."""
        self._task = task

    def poll(self) -> list[Outcome]:
        """Run it."""
        import torch

        if self._task is None:
            return []
        if self._threads is None:
            self._threads = torch.get_num_threads()
        task, self._task = self._task, None
        return [run_beside_store(task, self._out)]

    def close(self) -> None:
        """Give torch its threads back."""
        if self._threads is not None:
            import torch

            torch.set_num_threads(self._threads)


class Pool:
    """Processes of their own: one that dies loses the cell it was at, and no other.

    Args:
        out: Results folder.
        jobs: Processes.
        timeout: Seconds that a cell may take; its process is ended then.
    """

    def __init__(self, out: Path, jobs: int, timeout: float | None = None) -> None:
        self._out, self._jobs, self._timeout = out, jobs, timeout
        # One waits for each that is at work: no worker is idle, and few cells are in flight.
        self.capacity = 2 * jobs
        self._pool: Any = None
        self._tasks: dict[Any, Task] = {}
        self._breaks = 0

    def submit(self, task: Task) -> None:
        """Give a cell to the processes, which are started with the first one."""
        from pebble import ProcessPool

        if self._pool is None:
            self._pool = ProcessPool(
                max_workers=self._jobs,
                max_tasks=_CELLS,
                initializer=_start,
                context=multiprocessing.get_context("spawn"),
            )
        arguments = (task, self._out.absolute())
        future = self._pool.schedule(run_beside_store, args=arguments, timeout=self._timeout)
        self._tasks[future] = task

    def poll(self) -> list[Outcome]:
        """What has ended within a second.

        Raises:
            UsageError: If the processes die again and again before they have done anything.
        """
        done, _ = wait(self._tasks, timeout=1.0, return_when="FIRST_COMPLETED")
        outcomes = [self._outcome(self._tasks.pop(future), future) for future in done]
        if self._pool is not None and not self._pool.active:
            outcomes += self._broken()
        elif any(outcome.status != "lost" for outcome in outcomes):
            self._breaks = 0
        return outcomes

    def close(self) -> None:
        """End the processes, whatever they are at."""
        if self._pool is not None:
            self._pool.stop()
            self._pool.join()
            self._pool = None

    def _outcome(self, task: Task, future: Any) -> Outcome:
        from pebble import ProcessExpired

        try:
            made: Outcome = future.result()
        except ProcessExpired as error:
            return Outcome(task.key, "lost", reason=f"its process died ({_death(error.exitcode)})")
        except TooLate:
            return Outcome(task.key, "failed", reason=f"took longer than {self._timeout:g} s")
        except (BrokenProcessPool, CancelledError):
            return Outcome(task.key, "lost", reason="the pool of processes broke")
        except Exception as error:  # what cannot be sent to a process, or back from it
            return Outcome(task.key, "failed", reason=f"{type(error).__name__}: {error}")
        return made

    def _broken(self) -> list[Outcome]:
        """An idle process was killed, or none comes up: a new pool is made by the next cell."""
        self._breaks += 1
        if self._breaks >= _BREAKS:
            raise UsageError("the worker processes die as they start; see their messages above")
        tasks, self._tasks = self._tasks, {}
        self.close()
        reason = "the pool of processes broke"
        return [Outcome(task.key, "lost", reason=reason) for task in tasks.values()]


def _start() -> None:
    """First thing in a process of the pool."""
    be_worker()
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: Any) -> None:
    """A worker whose parent was killed would go on to the end of its cell."""
    parent.join()
    os._exit(1)


def _death(code: int | None) -> str:
    return f"signal {-code}" if code is not None and code < 0 else f"exit status {code}"
