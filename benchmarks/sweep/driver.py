"""The loop of a sweep: cells go to an engine, outcomes are written down as they come.

The results folder gets the runs' folders, the store, and

    sweep.jsonl         key of each finished cell, and its run_id
    sweep-failures/     the traceback of each failed cell
"""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from benchmarks.errors import UsageError
from benchmarks.files import atomic_write
from benchmarks.store import Record, Store
from benchmarks.sweep.cells import Cell
from benchmarks.sweep.work import LEFT_OUT, Outcome, Task
from streams.jsonfiles import parse_json

INDEX = "sweep.jsonl"
FAILURES = "sweep-failures"
_LOCK = ".sweep.lock"
# Written last, since it says that the run is finished.
_LAST = "result.json"


class Engine(Protocol):
    """Where cells are run."""

    capacity: int
    """Cells that it wants to have at a time."""

    def submit(self, task: Task) -> None:
        """Take a cell."""

    def poll(self) -> list[Outcome]:
        """What has ended, at the latest after a few seconds."""

    def close(self) -> None:
        """Stop, whatever is at work."""


@dataclass
class Standing:
    """What of a sweep is there already.

    Attributes:
        todo: Cells to run.
        finished: Cells that are finished.
        failed: Reason of each cell that failed and is not to be tried again.
        left_out: Reason of each cell whose method does not fit.
    """

    todo: list[Cell] = field(default_factory=list)
    finished: list[Cell] = field(default_factory=list)
    failed: list[tuple[Cell, str]] = field(default_factory=list)
    left_out: list[tuple[Cell, str]] = field(default_factory=list)


@dataclass(frozen=True)
class Report:
    """How a sweep ended.

    Attributes:
        before: Cells that were finished before it began.
        finished: Cells that it finished.
        failed: Reason of each cell that failed, now or before.
        left_out: Reason of each cell whose method does not fit.
        seconds: What it took.
    """

    before: int
    finished: int
    failed: list[tuple[Cell, str]]
    left_out: list[tuple[Cell, str]]
    seconds: float


def standing(cells: Sequence[Cell], out: Path, *, retry_failed: bool = False) -> Standing:
    """What of a sweep is there already; nothing is written.

    Args:
        cells: The sweep.
        out: Results folder.
        retry_failed: Count failed cells and those left out among those to run.
    """
    index = _read_index(out)
    records = {record.run_id: record for record in Store(out).records()}
    made = Standing()
    for cell in cells:
        run = records.get(index.get(cell.key, ""))
        mine = records.get(cell.key)
        if run is not None and run.status == "finished":
            made.finished.append(cell)
        elif mine is None or mine.status != "failed" or retry_failed:
            made.todo.append(cell)
        elif mine.reason.startswith(LEFT_OUT):
            made.left_out.append((cell, mine.reason.removeprefix(LEFT_OUT)))
        else:
            made.failed.append((cell, mine.reason))
    return made


def drive(
    cells: Sequence[Cell],
    out: Path,
    engine: Callable[[], Engine],
    *,
    threads: int = 1,
    retries: int = 2,
    retry_failed: bool = False,
    progress: Callable[[Outcome | None, int], None] | None = None,
) -> Report:
    """Run what is not finished yet.

    Args:
        cells: The sweep.
        out: Results folder.
        engine: Makes the engine; called only where there is something to run.
        threads: Threads of torch in each run.
        retries: How often a cell is run again whose worker was lost.
        retry_failed: Run again what failed before.
        progress: Called with ``None`` and the number of cells to run, then with each outcome and
            the number of cells still to run.

    Raises:
        UsageError: If another sweep is at work in the folder, or it cannot be written.
    """
    began = time.monotonic()
    with _alone(out):
        there = standing(cells, out, retry_failed=retry_failed)
        loop = _Loop(out, there, threads, retries, progress)
        if there.todo:
            loop.run(engine())
    return Report(
        before=len(there.finished),
        finished=loop.finished,
        failed=there.failed,
        left_out=there.left_out,
        seconds=time.monotonic() - began,
    )


class _Loop:
    def __init__(
        self,
        out: Path,
        there: Standing,
        threads: int,
        retries: int,
        progress: Callable[[Outcome | None, int], None] | None,
    ) -> None:
        self.out = out
        self.store = Store(out)
        self.there = there
        self.cells = {cell.key: cell for cell in there.todo}
        self.threads = threads
        self.retries = retries
        self.progress = progress or (lambda outcome, left: None)
        self.finished = 0
        self._losses: dict[str, int] = {}

    def run(self, engine: Engine) -> None:
        waiting = deque(self.cells)
        flying: set[str] = set()
        try:
            self._queue(self.cells, [cell.key for cell in self.there.finished])
            self.progress(None, len(self.cells))
            while waiting or flying:
                while waiting and len(flying) < engine.capacity:
                    key = waiting.popleft()
                    flying.add(key)
                    engine.submit(Task(self.cells[key], self.threads))
                for outcome in engine.poll():
                    flying.discard(outcome.key)
                    if self._lost_again(outcome):
                        waiting.append(outcome.key)
                        continue
                    self._settle(outcome)
                    self.progress(outcome, len(waiting) + len(flying))
        finally:
            engine.close()
            self._queue(flying)

    def _queue(self, keys: Iterable[str], also_forget: Iterable[str] = ()) -> None:
        """Make cells that nobody works on ``queued``, in two writes however many there are."""
        keys = list(keys)
        blank: dict[str, Any] = {
            "status": "queued",
            "reason": "",
            "done": 0,
            "total": 0,
            "row": None,
        }
        blank["updated"] = time.time()
        self.store.remove([*keys, *also_forget])
        self.store.add([], [Record(run_id=key, **blank, **self.cells[key].facts) for key in keys])

    def _lost_again(self, outcome: Outcome) -> bool:
        """Whether a cell whose worker was lost gets another one."""
        if outcome.status != "lost":
            return False
        lost = self._losses[outcome.key] = self._losses.get(outcome.key, 0) + 1
        if lost > self.retries:
            return False
        cell = self.cells[outcome.key]
        self.store.mark(cell.key, "queued", reason=f"again: {outcome.reason}", **cell.facts)
        return True

    def _settle(self, outcome: Outcome) -> None:
        cell = self.cells[outcome.key]
        if outcome.row is not None:
            if outcome.files:
                _write_run(self.out / outcome.folder, outcome.files)
            if not self.store.has(outcome.row["run_id"]):
                self.store.put(outcome.row)
            _add_to_index(self.out, cell.key, outcome.row["run_id"])
            self.store.remove([cell.key])
            self.finished += 1
            return
        if outcome.status == "left out":
            self.there.left_out.append((cell, outcome.reason))
            self.store.mark(cell.key, "failed", reason=LEFT_OUT + outcome.reason, **cell.facts)
            return
        if outcome.status == "lost":
            times = self._losses[cell.key]
            outcome = replace(outcome, reason=f"lost {times} times: {outcome.reason}")
        self.there.failed.append((cell, outcome.reason))
        self.store.mark(cell.key, "failed", reason=outcome.reason, **cell.facts)
        if outcome.trace:
            folder = self.out / FAILURES
            folder.mkdir(exist_ok=True)
            with atomic_write(folder / f"{_file_name(cell)}.txt") as temporary:
                temporary.write_text(f"{cell.title}\n\n{outcome.trace}", "utf-8")


@contextmanager
def _alone(out: Path) -> Iterator[None]:
    """One sweep at a time in a folder; a killed one gives it free."""
    from filelock import FileLock, Timeout

    try:
        out.mkdir(parents=True, exist_ok=True)
        held = FileLock(out / _LOCK).acquire(timeout=0)
    except Timeout:
        raise UsageError(
            f"another sweep is at work in {out}: see it with 'tta-bench watch {out}'"
        ) from None
    except OSError as error:
        raise UsageError(
            f"cannot write results to {out} ({error.strerror}); name another --out"
        ) from error
    with held:
        yield


def _read_index(out: Path) -> dict[str, str]:
    """``run_id`` by key; a line that a kill cut off is skipped, its cell is looked at again."""
    try:
        lines = (out / INDEX).read_text("utf-8").splitlines()
    except FileNotFoundError:
        return {}
    found = {}
    for line in lines:
        with suppress(ValueError, TypeError, KeyError):
            entry = parse_json(line)
            found[entry["cell"]] = entry["run_id"]
    return found


def _add_to_index(out: Path, key: str, run_id: str) -> None:
    # The line feed first: it ends a line that was cut off.
    with (out / INDEX).open("a", encoding="utf-8") as file:
        file.write("\n" + json.dumps({"cell": key, "run_id": run_id}))


def _write_run(folder: Path, contents: Mapping[str, bytes]) -> None:
    """The folder of a run that was made elsewhere."""
    folder.mkdir(exist_ok=True)
    for name in sorted(contents, key=lambda name: name == _LAST):
        with atomic_write(folder / name) as temporary:
            temporary.write_bytes(contents[name])


def _file_name(cell: Cell) -> str:
    title = cell.title.replace(" ", "-").replace("/", "_").replace(":", "_")
    return f"{title}-{cell.key[:8]}"
