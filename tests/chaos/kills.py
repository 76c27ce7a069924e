"""kill -9 at random moments of every operation; what is resumed must end as if nothing had been.

    python tests/chaos/kills.py [--kills 200] [--seed 0] [--out results/chaos/kills.jsonl]

One line of JSON a kill; the same command goes on after the last line. Exit status 1 if any failed.

One process imports everything and forks a child a trial, so a kill costs no start of torch.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

# Before torch is there: a forked child must not wait for threads that it has not got.
os.environ["OMP_NUM_THREADS"] = "1"

from operations import Operation, operations, serve

PATIENCE = 120.0


def start(function: Callable[[], Any], log: Path) -> int:
    """Call a function in a forked child, with its words in a file; its process number."""
    sys.stdout.flush()
    sys.stderr.flush()
    process = os.fork()
    if process:
        return process
    status = 1
    try:
        os.setpgid(0, 0)
        with log.open("ab", buffering=0) as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        warnings.simplefilter("ignore")
        function()
        status = 0
    except BaseException:
        os.write(2, traceback.format_exc().encode())
    finally:
        os._exit(status)


def finished(process: int, log: Path) -> None:
    """Wait for a child.

    Raises:
        AssertionError: If it failed, with its last words, or does not end.
    """
    end = time.monotonic() + PATIENCE
    while True:
        done, status = os.waitpid(process, os.WNOHANG)
        if done:
            break
        if time.monotonic() > end:
            os.kill(process, signal.SIGKILL)
            os.waitpid(process, 0)
            raise AssertionError("it did not end")
        time.sleep(0.002)
    lines = log.read_text("utf-8", "replace").strip().splitlines()
    assert status == 0, lines[-1] if lines else f"status {status}"


def warm(function: Callable[[], Any], folder: Path) -> None:
    """Import what a child imports when it calls a function, and no more."""
    names = folder / "modules"

    def told() -> None:
        function()
        names.write_text(json.dumps(list(sys.modules)), "utf-8")

    finished(start(told, folder / "log"), folder / "log")
    for name in json.loads(names.read_text("utf-8")):
        with suppress(Exception):
            import_module(name)


class Trials:
    """Kills of one operation.

    Args:
        name: Its name.
        operation: The operation.
        folder: For everything that is written.
    """

    def __init__(self, name: str, operation: Operation, folder: Path) -> None:
        self.name, self.operation, self.folder = name, operation, folder
        self.expected: Any = None
        self.duration = 0.0

    def measure(self) -> None:
        """Once without a kill: how long it takes, and how it must end."""
        warm(lambda: self.operation.go(self.folder / f"{self.name}-warm"), self.folder)
        folder = self.folder / f"{self.name}-whole"
        started = time.monotonic()
        self._go(folder)
        self.duration = time.monotonic() - started
        self.expected = self._asked(folder)

    def kill(self, number: int, seed: int) -> dict[str, Any]:
        """Kill it once, look at what is left, resume, compare; the facts of that."""
        folder = self.folder / f"{self.name}-{number}"
        draw = random.Random(f"{seed}/{self.name}/{number}")
        after = draw.uniform(0, self.duration)
        process, started = self._start(folder), time.monotonic()
        time.sleep(max(0.0, after - (time.monotonic() - started)))
        os.kill(process, signal.SIGKILL)  # not yet waited for: the number is still its own
        _, status = os.waitpid(process, 0)
        killed = os.WIFSIGNALED(status)
        fault = None
        try:
            self._child(folder, lambda: self.operation.whole(folder))
            self._go(folder)
            assert self._asked(folder) == self.expected, "another result"
        except AssertionError as error:
            fault = str(error)
        else:
            shutil.rmtree(folder)
        facts = {"operation": self.name, "number": number, "seed": seed, "after_s": round(after, 4)}
        return {**facts, "of_s": round(self.duration, 4), "killed": killed, "fault": fault}

    def _start(self, folder: Path) -> int:
        folder.mkdir(parents=True, exist_ok=True)

        def go() -> None:
            os.environ["TTA_BENCH_CACHE"] = str(folder / "cache")
            self.operation.go(folder)

        return start(go, folder / "log")

    def _go(self, folder: Path) -> None:
        finished(self._start(folder), folder / "log")

    def _child(self, folder: Path, function: Callable[[], Any]) -> None:
        # Not here: the process that forks must stay as it is.
        finished(start(function, folder / "log"), folder / "log")

    def _asked(self, folder: Path) -> Any:
        file = folder / "outcome"
        self._child(folder, lambda: file.write_text(json.dumps(self.operation.outcome(folder))))
        return json.loads(file.read_text("utf-8"))


def run(kills: int, seed: int, out: Path, folder: Path) -> list[dict[str, Any]]:
    """So many kills, spread over the operations; those that ``out`` has are not done again."""
    from tqdm import tqdm

    lines = out.read_text("utf-8").splitlines() if out.is_file() else []
    known = [fact for fact in map(json.loads, lines) if fact["seed"] == seed]
    done = {(fact["operation"], fact["number"]) for fact in known}
    out.parent.mkdir(parents=True, exist_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
    url, server = serve()
    try:
        names = list(all_ := operations(url))
        wanted = [(names[k % len(names)], k // len(names)) for k in range(kills)]
        left = [pair for pair in wanted if pair not in done]
        ready: dict[str, Trials] = {}
        for name, number in tqdm(left, unit="kill", disable=None):
            if name not in ready:
                ready[name] = Trials(name, all_[name], folder)
                ready[name].measure()
            fact = ready[name].kill(number, seed)
            known.append(fact)
            with out.open("a", encoding="utf-8") as file:
                file.write(json.dumps(fact) + "\n")
    finally:
        os.kill(server, signal.SIGKILL)
        os.waitpid(server, 0)
    return known


def main() -> None:
    """The command."""
    import torch

    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("results/chaos/kills.jsonl"))
    parser.add_argument("--keep", type=Path, help="folder for what failed; a temporary one else")
    given = parser.parse_args()
    folder = given.keep or Path(tempfile.mkdtemp(prefix="kills-"))
    facts = run(given.kills, given.seed, given.out, folder)
    faults = [fact for fact in facts if fact["fault"]]
    for fact in faults:
        print(json.dumps(fact))
    hit = sum(fact["killed"] for fact in facts)
    print(f"{len(facts)} kills ({hit} before the end), {len(faults)} failed; {given.out}")
    if not given.keep:
        shutil.rmtree(folder)
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
