"""What a worker does with one cell, on whatever engine: run it, and never raise."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from benchmarks.errors import UsageError
from benchmarks.quiet import quiet_imports
from benchmarks.store import Store
from streams.errors import StreamError
from streams.secrets import masked
from tta.errors import AdapterError, BackboneError

if TYPE_CHECKING:
    from benchmarks.sweep.cells import Cell

Tell = Callable[[int, int, float], None]
LEFT_OUT = "left out: "
# Least time between two signs of progress, in seconds.
BEAT = 3.0


@dataclass(frozen=True)
class Task:
    """A cell on its way to a worker.

    Attributes:
        cell: The cell.
        threads: Threads of torch: the same on every engine, since numbers may depend on it.
    """

    cell: Cell
    threads: int = 1

    @property
    def key(self) -> str:
        """The cell's."""
        return self.cell.key


@dataclass(frozen=True)
class Outcome:
    """What became of a cell.

    Attributes:
        key: The cell's.
        status: ``lost`` where the worker died, so that another may succeed.
        row: The finished run's.
        reason: One line, where there is no row.
        trace: Traceback of a failure.
        folder: Name of the run's folder, where it must still be written to the results folder.
        files: Content of the folder's files by name.
    """

    key: str
    status: Literal["finished", "failed", "left out", "lost"]
    row: dict[str, Any] | None = None
    reason: str = ""
    trace: str = ""
    folder: str = ""
    files: dict[str, bytes] = field(default_factory=dict, repr=False)


def be_worker() -> None:
    """Prepare a process that is here to work."""
    from benchmarks.allocator import keep_freed_memory

    quiet_imports()
    keep_freed_memory()


def run_task(task: Task, out: Path, tell: Tell | None = None) -> Outcome:
    """Run a cell, or go on with it; an exception of the run is an outcome.

    Args:
        task: The cell.
        out: Results folder.
        tell: Called after each step with (steps done, steps, error so far in percent).
    """
    try:
        row = _run(task, out, tell)
    except AdapterError as error:
        if task.cell.by_pattern and not isinstance(error, BackboneError):
            return Outcome(task.key, "left out", reason=_line(error))
        return _failed(task, _line(error))
    except (UsageError, StreamError) as error:
        return _failed(task, _line(error))
    except Exception as error:
        return _failed(task, f"{type(error).__name__}: {_line(error)}")
    return Outcome(task.key, "finished", row=row)


def run_beside_store(task: Task, out: Path) -> Outcome:
    """Run a cell in a process that sees the results folder, and show its progress in the store."""
    store = Store(out)

    def say(done: int, total: int, words: str) -> None:
        # Progress is not worth a run: a store that is busy for long is told later.
        with suppress(UsageError):
            store.mark(task.key, "running", reason=words, done=done, total=total, **task.cell.facts)

    say(0, 0, "")
    return run_task(task, out, seldom(lambda done, total, error: say(done, total, so_far(error))))


def seldom(tell: Tell) -> Tell:
    """``tell``, at most every ``BEAT`` seconds."""
    last = time.monotonic()

    def told(done: int, total: int, error_pct: float) -> None:
        nonlocal last
        if time.monotonic() - last >= BEAT:
            last = time.monotonic()
            tell(done, total, error_pct)

    return told


def so_far(error_pct: float) -> str:
    """What the store says of a run in progress."""
    return f"error {error_pct:.2f} % so far"


def _run(task: Task, out: Path, tell: Tell | None) -> dict[str, Any]:
    import torch

    from benchmarks import learning_runner, runner
    from benchmarks.spec import RunSpec

    torch.set_num_threads(task.threads)
    spec = task.cell.spec
    if isinstance(spec, RunSpec):
        return runner.run(spec, out, resume=True, progress=tell)
    return learning_runner.run(spec, out, resume=True, progress=tell)


def _failed(task: Task, reason: str) -> Outcome:
    return Outcome(task.key, "failed", reason=reason, trace=masked(traceback.format_exc()))


def _line(error: BaseException) -> str:
    words = " ".join(str(error).split()) or type(error).__name__
    return words if len(words) <= 300 else f"{words[:300]} …"
