"""Slurm, through submitit: arrays of jobs that see the results folder on a shared file system.

The jobs do not need the driver: where it is gone they go on, and the next one takes them up from
``slurm/jobs.json`` in the results folder.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from benchmarks.errors import UsageError
from benchmarks.files import write_json
from benchmarks.sweep.plan import Resources
from benchmarks.sweep.work import Outcome, Task, be_worker, run_beside_store
from streams.jsonfiles import load_json

FOLDER = "slurm"
_JOBS = "jobs.json"
# Jobs of an array: Slurm's usual limit is 1001.
_ARRAY = 1000
# Cells are dealt out so that each slot gets about so many jobs: what is slow is evened out.
_ROUNDS = 4
_POLL = 2.0
# Options that submitit calls alike on every cluster; the others are Slurm's own.
_COMMON = ("name", "timeout_min", "mem_gb", "nodes", "cpus_per_task", "gpus_per_node")


class Slurm:
    """Arrays of jobs, each with a few cells.

    Args:
        out: Results folder, on a file system that the nodes share.
        jobs: Jobs of the array that run at a time.
        resources: What each job gets.
        options: Slurm's options by name, as text: ``partition``, ``account``, ``timeout_min`` …

    Raises:
        UsageError: If submitit is not installed, there is no Slurm here, or an option is wrong.
    """

    capacity = 2**31

    def __init__(
        self, out: Path, jobs: int, resources: Resources, options: Mapping[str, str]
    ) -> None:
        try:
            import submitit
        except ImportError as error:
            raise UsageError("submitit is not installed: pip install 'tta-bench[slurm]'") from error
        self._submitit = submitit
        self._out = out.absolute()
        self._folder = self._out / FOLDER
        self._jobs = jobs
        self._cluster = options.get("cluster", "slurm")
        self._executor = self._make_executor(resources, options)
        self._waiting: list[Task] = []
        self._seen: set[str] = set()
        self._running: list[tuple[Any, list[Task]]] = []
        self._earlier = _read_jobs(self._folder)

    def submit(self, task: Task) -> None:
        """Take a cell; cells go out together with the next ``poll``."""
        self._waiting.append(task)

    def poll(self) -> list[Outcome]:
        """What has ended; waits two seconds."""
        self._send()
        time.sleep(_POLL)
        outcomes = []
        for job, tasks in list(self._running):
            if self._ended(job):
                self._running.remove((job, tasks))
                outcomes += _outcomes(job, tasks)
        if outcomes:
            self._remember()
        return outcomes

    def close(self) -> None:
        """Leave the jobs alone: the next driver finds them."""

    def _make_executor(self, resources: Resources, options: Mapping[str, str]) -> Any:
        from benchmarks.words import read_numbers

        chosen: dict[str, Any] = {
            "name": "tta-bench",
            "timeout_min": 240,
            "cpus_per_task": resources.cpus,
            "slurm_array_parallelism": self._jobs,
        }
        if resources.gpus:
            # Slurm deals out whole ones.
            chosen["gpus_per_node"] = max(1, round(resources.gpus))
        if resources.memory_mib is not None:
            chosen["mem_gb"] = resources.memory_mib / 1024
        given = {key: value for key, value in options.items() if key != "cluster"}
        for key, value in (read_numbers(given) or {}).items():
            chosen[key if key in _COMMON else f"slurm_{key}"] = value
        try:
            executor = self._submitit.AutoExecutor(self._folder, cluster=self._cluster)
            executor.update_parameters(**chosen)
        except (ValueError, TypeError, NameError, AssertionError, RuntimeError) as error:
            words = " ".join(str(error).split())
            raise UsageError(f"Slurm: {words[:400]}") from error
        return executor

    def _send(self) -> None:
        """Take up the jobs of an earlier driver, and submit an array of what they do not hold."""
        tasks = {task.key: task for task in self._waiting}
        self._waiting = []
        for job_id, keys in self._earlier.items():
            held = [tasks.pop(key) for key in keys if key in tasks]
            if held:
                self._running.append((self._job(job_id), held))
        self._earlier = {}
        # A cell that was lost with its job is alone in the next one: it may have been the reason.
        again = [[task] for key, task in tasks.items() if key in self._seen]
        first = [task for key, task in tasks.items() if key not in self._seen]
        chunks = [*again, *self._chunks(first)]
        self._seen |= set(tasks)
        for start in range(0, len(chunks), _ARRAY):
            part = chunks[start : start + _ARRAY]
            jobs = self._executor.map_array(run_chunk, part, [self._out] * len(part))
            self._running += list(zip(jobs, part, strict=True))
        if chunks:
            self._remember()

    def _chunks(self, tasks: Sequence[Task]) -> list[list[Task]]:
        size = max(1, len(tasks) // (_ROUNDS * self._jobs))
        return [list(tasks[start : start + size]) for start in range(0, len(tasks), size)]

    def _remember(self) -> None:
        """So that a driver that is killed leaves word of its jobs."""
        held = {job.job_id: [task.key for task in tasks] for job, tasks in self._running}
        write_json(self._folder / _JOBS, held)

    def _job(self, job_id: str) -> Any:
        local = self._cluster == "local"
        kind = self._submitit.LocalJob if local else self._submitit.SlurmJob
        return kind(self._folder, job_id)

    def _ended(self, job: Any) -> bool:
        if self._cluster == "local" and not job.paths.result_pickle.exists():
            # submitit knows nothing of a local job that another driver started.
            return not _alive(int(job.job_id))
        return bool(job.done())


def run_chunk(tasks: Sequence[Task], out: Path) -> list[Outcome]:
    """What a job does: its cells, one after the other."""
    be_worker()
    return [run_beside_store(task, out) for task in tasks]


def at_work(out: Path) -> bool:
    """Whether jobs of an earlier driver may still be at work in a results folder."""
    return bool(_read_jobs(out / FOLDER))


def _outcomes(job: Any, tasks: Sequence[Task]) -> list[Outcome]:
    """Of a job that was killed, or timed out, all cells are lost; the finished ones are found."""
    try:
        made: list[Outcome] = job.result()
    except Exception as error:
        words = " ".join(str(error).split())[-200:]
        return [Outcome(t.key, "lost", reason=f"job {job.job_id} died: {words}") for t in tasks]
    # A job of an earlier driver may hold cells that are none of this sweep.
    wanted = {task.key for task in tasks}
    return [outcome for outcome in made if outcome.key in wanted]


def _read_jobs(folder: Path) -> dict[str, list[str]]:
    try:
        found: dict[str, list[str]] = load_json(folder / _JOBS)
    except (FileNotFoundError, ValueError):
        return {}
    return found


def _alive(pid: int) -> bool:
    # A child of ours that has ended stays until it is waited for.
    with suppress(ChildProcessError):
        if os.waitpid(pid, os.WNOHANG)[0] == pid:
            return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
