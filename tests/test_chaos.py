"""Operations that are killed, a full disk, clocks that jump, hostile batches, faults inside."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

import benchmarks
import tta
from benchmarks import files, runner
from benchmarks.cli import app
from benchmarks.results import TIMING_FIELDS, RunFolder
from benchmarks.store import Store

KILLS = Path(__file__).parent / "chaos" / "kills.py"
SMALL: dict[str, Any] = {"num_examples": 30, "batch_size": 10, "corruptions": ("fog", "snow")}
RUN = ("run", "-m", "tent", "-s", "fashion-mnist-c", "--num-examples", "30", "--batch-size", "10")
RUN += ("--corruptions", "fog,snow", "--checkpoint-seconds", "0", "--out", "out")


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TTA_BENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


def spec_of(method: str = "tent") -> benchmarks.RunSpec:
    return benchmarks.resolve(method, "fashion-mnist-c", **SMALL)


def same_end(left: Path, right: Path) -> None:
    """Rows and steps are identical, times aside."""
    ends = []
    for out in (left, right):
        (file,) = out.glob("*/result.json")
        row = json.loads(file.read_text("utf-8"))
        assert Store(out).rows() == [row]
        steps = pq.read_table(file.parent / "steps.parquet").drop(["seconds"])
        ends.append(({k: v for k, v in row.items() if k not in TIMING_FIELDS}, steps))
    assert ends[0] == ends[1]


# kill -9 -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kills", [5, pytest.param(60, marks=pytest.mark.slow)])
def test_kills(kills: int, tmp_path: Path) -> None:
    """Run, sweep, fetch, store and checkpoint, each killed at random moments."""
    out = tmp_path / "kills.jsonl"
    command = [sys.executable, KILLS, "--kills", str(kills), "--seed", "3", "--out", out]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    facts = [json.loads(line) for line in out.read_text("utf-8").splitlines()]
    assert len(facts) == kills
    assert sum(fact["killed"] for fact in facts) >= kills // 2
    assert {fact["fault"] for fact in facts} == {None}
    # Again: nothing is left to do.
    again = subprocess.run(command, capture_output=True, text=True, check=False)
    assert again.stdout == done.stdout


# A full disk -------------------------------------------------------------------------------------


def full_after(monkeypatch: pytest.MonkeyPatch, writes: int) -> None:
    """The disk is full once so many files have been written whole."""
    real, left = os.fsync, [writes]

    def fsync(handle: int) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(handle)

    monkeypatch.setattr(files.os, "fsync", fsync)


@pytest.mark.parametrize(
    "writes",
    [pytest.param(n, marks=[pytest.mark.slow] if n % 6 else []) for n in range(0, 14, 2)],
)
def test_a_full_disk_and_then_room(
    writes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        full_after(patch, writes)
        done = CliRunner().invoke(app, RUN)
    assert done.exit_code == 2, done.output
    (line,) = done.stderr.strip().splitlines()
    assert "No space left on device" in line
    assert not [p for p in tmp_path.rglob(".*") if p.is_file()], "a half written file is left"
    assert CliRunner().invoke(app, [*RUN, "--resume"]).exit_code == 0
    benchmarks.run(spec_of(), tmp_path / "whole")
    same_end(tmp_path / "out", tmp_path / "whole")


@pytest.mark.slow
def test_no_room_for_a_large_file(tmp_path: Path) -> None:
    """The system itself refuses: files may not grow beyond 4 kB."""
    code = (
        "import resource, signal, sys\n"
        "from benchmarks.cli import main\n"
        "import torch\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "main()\n"
    )
    command = [sys.executable, "-W", "ignore", "-c", code, *RUN]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    line = done.stderr.strip().splitlines()[-1]
    assert line.startswith("tta-bench: error: ")
    assert "Traceback" not in done.stderr
    assert CliRunner().invoke(app, [*RUN, "--resume"]).exit_code == 0
    benchmarks.run(spec_of(), tmp_path / "whole")
    same_end(tmp_path / "out", tmp_path / "whole")


# Clocks ------------------------------------------------------------------------------------------


def test_a_clock_that_jumps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = benchmarks.run(spec_of(), tmp_path / "whole")
    jumps = iter(range(10**6))
    monkeypatch.setattr(time, "time", lambda: 1e9 * (-1) ** next(jumps))
    row = benchmarks.run(spec_of(), tmp_path / "out", checkpoint_seconds=0)
    assert next(jumps) > 0, "nobody asked for the time"
    same_end(tmp_path / "out", tmp_path / "whole")
    for name in ("seconds", "images_per_second", "seconds_per_1k"):
        assert 0 < row[name] < 1e9
    assert row["run_id"] == whole["run_id"]


# Batches -----------------------------------------------------------------------------------------


def tiny() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()),
        *(nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)),
    )


def hostile() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    good = torch.rand(8, 3, 8, 8, generator=generator)
    mixed = good.clone()
    mixed[0], mixed[1, 0, 0, 0], mixed[2] = torch.nan, torch.inf, 1e30
    return [
        *(good, torch.zeros_like(good), torch.full_like(good, 0.5), torch.ones_like(good)),
        *(good[:1].expand(8, -1, -1, -1).clone(), good * 1e4, good * 1e8, good * 1e38, mixed),
        *(torch.full_like(good, torch.nan), torch.full_like(good, -torch.inf), good),
    ]


def finite(adapter: tta.Adapter) -> bool:
    tensors = [*adapter.parameters(), *adapter.buffers()]
    return all(bool(v.isfinite().all()) for v in tensors if v.is_floating_point())


# FOA puts tokens into a vision transformer: it has no place in the tiny model here.
METHODS = [name for name in tta.list_adapters() if name != "foa"]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("method", METHODS)
def test_no_batch_poisons(method: str) -> None:
    """Constant, black, huge, NaN and infinite batches: weights stay finite, and it goes on."""
    adapter = tta.wrap(tiny(), method)
    generator = torch.Generator().manual_seed(1)
    clean = torch.rand(8, 3, 8, 8, generator=generator)
    if adapter.needs.source_data:
        # Mislabelled: every image is said to be of class 0.
        adapter.fit_source([(clean, torch.zeros(8, dtype=torch.long))] * 2)
    for x in hostile():
        assert adapter(x).shape == (len(x), 5)
        assert finite(adapter)
    assert bool(adapter(clean).isfinite().all())


@pytest.mark.parametrize("method", METHODS)
def test_an_empty_batch_is_refused(method: str) -> None:
    adapter = tta.wrap(tiny(), method)
    clean = torch.rand(8, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    if adapter.needs.source_data:
        adapter.fit_source([(clean, torch.arange(8) % 5)] * 2)
    with pytest.raises(tta.AdapterError, match="B >= 1"):
        adapter(torch.zeros(0, 3, 8, 8))
    assert finite(adapter)
    assert bool(adapter(clean).isfinite().all())


# A domain that never ends ------------------------------------------------------------------------


# The dearest steps.
_SLOW = {"memo", "petal", "cotta"}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "method",
    [pytest.param(name, marks=[pytest.mark.slow] if name in _SLOW else []) for name in METHODS],
)
def test_nothing_grows_in_a_domain_that_never_ends(method: str) -> None:
    """After its banks are full, the state of a method has a fixed size."""
    adapter = tta.wrap(tiny(), method)
    generator = torch.Generator().manual_seed(1)
    if adapter.needs.source_data:
        clean = torch.rand(8, 3, 8, 8, generator=generator)
        adapter.fit_source([(clean, torch.arange(8) % 5)] * 2)

    def size(value: Any) -> int:
        if isinstance(value, Tensor):
            return value.numel()
        if isinstance(value, dict):
            return sum(map(size, value.values()))
        return sum(map(size, value)) if isinstance(value, (list, tuple)) else 1

    sizes = []
    for step in range(30):
        adapter(torch.rand(16, 3, 8, 8, generator=generator))
        if step % 10 == 9:
            sizes.append(size(adapter.state_dict()))
    bounded = sizes[2] <= sizes[1]
    # Banks that a config bounds above what these batches fill may still be filling.
    assert bounded or sizes[2] - sizes[1] <= sizes[1] - sizes[0] < 200_000
    assert len(adapter.report) < 40


# Faults inside -----------------------------------------------------------------------------------


def test_a_backbone_that_throws_and_is_mended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An internal fault keeps its traceback; the run goes on from the step before."""
    load, calls = runner.load, []

    def broken(*args: Any, **kwargs: Any) -> Any:
        backbone = load(*args, **kwargs)

        def throws(module: nn.Module, inputs: Any) -> None:
            calls.append(1)
            if len(calls) == 6:
                raise ZeroDivisionError("a fault of the backbone")

        backbone.model.register_forward_pre_hook(throws)
        return backbone

    with monkeypatch.context() as patch:
        patch.setattr(runner, "load", broken)
        done = CliRunner().invoke(app, RUN)
    assert isinstance(done.exception, ZeroDivisionError), done.output
    assert list(tmp_path.glob("out/*/checkpoint/state.pt"))
    assert not list(tmp_path.glob("out/*/result.json"))
    assert CliRunner().invoke(app, [*RUN, "--resume"]).exit_code == 0
    benchmarks.run(spec_of(), tmp_path / "whole")
    same_end(tmp_path / "out", tmp_path / "whole")


def test_an_end_that_is_cut_while_the_checkpoint_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run is finished: nothing says that it is damaged, and the rest goes the next time."""

    def cut(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("benchmarks.results.shutil.rmtree", cut)
        with pytest.raises(KeyboardInterrupt):
            benchmarks.run(spec_of(), tmp_path / "out", checkpoint_seconds=0)
    (left,) = tmp_path.glob("out/*/checkpoint")
    assert list(left.glob("steps-*.parquet"))
    assert RunFolder(left.parent).load("cpu") is None
    row = benchmarks.run(spec_of(), tmp_path / "out", resume=True)
    assert not left.exists()
    assert Store(tmp_path / "out").rows() == [row]
    benchmarks.run(spec_of(), tmp_path / "whole")
    same_end(tmp_path / "out", tmp_path / "whole")


@pytest.mark.slow
def test_a_feed_worker_that_dies(tmp_path: Path) -> None:
    """One clear line instead of waiting for ever; the run goes on to the identical end."""
    words = [word.replace("30", "1000") for word in RUN]
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.cli", *words, "--workers", "1"]
    one = {**os.environ, "OMP_NUM_THREADS": "1"}  # as the suite: they round sums
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=one) as process:
        end = time.monotonic() + 100
        while not list(tmp_path.glob("out/*/checkpoint/state.pt")):
            assert process.poll() is None, process.stderr.read()
            assert time.monotonic() < end
            time.sleep(0.01)
        (worker,) = psutil.Process(process.pid).children()
        worker.send_signal(signal.SIGKILL)
        said = process.stderr.read()
    assert process.returncode == 2, said
    assert said.strip().splitlines()[-1].startswith("tta-bench: error: a process that made batches")
    assert "Traceback" not in said
    spec = benchmarks.resolve("tent", "fashion-mnist-c", **(SMALL | {"num_examples": 1000}))
    benchmarks.run(spec, tmp_path / "out", resume=True)
    benchmarks.run(spec, tmp_path / "whole")
    same_end(tmp_path / "out", tmp_path / "whole")
