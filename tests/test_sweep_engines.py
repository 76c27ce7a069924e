"""Engines of sweeps: real processes, killed in the middle, and rows that do not depend on them."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from typer.testing import CliRunner

from benchmarks.cli import app
from benchmarks.results import TIMING_FIELDS
from benchmarks.store import Store

TINY = """
methods = ["tent", "norm"]
streams = ["fashion-mnist-c"]
seeds = [0, 1]
num_examples = 20
[common]
corruptions = ["fog", "frost"]
batch_size = 10
"""
# Each cell is long enough to be killed in the middle, the second seed of LATE by far.
LONG = """
methods = ["tent"]
streams = ["fashion-mnist-c"]
seeds = [0, 1]
num_examples = 60
[common]
batch_size = 20
"""
LATE = f"""{LONG}
[[overrides]]
match = {{ seed = 1 }}
num_examples = 10000
"""
DEADLINE = 240.0
SBATCH = """#!{python}
import os, re, subprocess, sys
text = open(sys.argv[-1]).read()
first, last = re.search(r"--array=(\\d+)-(\\d+)", text).groups()
with open(os.environ["SBATCH_LOG"], "a") as log:
    print(text, file=log)
for index in range(int(first), int(last) + 1):
    own = {{"SLURM_JOB_ID": "7", "SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": str(index),
           "SLURM_NTASKS": "1", "SLURM_JOB_NUM_NODES": "1", "SLURM_NODEID": "0",
           "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}}
    subprocess.Popen(["bash", sys.argv[-1]], env={{**os.environ, **own}}, start_new_session=True,
                     stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
print("Submitted batch job 7")
"""
SRUN = """#!/usr/bin/env bash
while [[ "$1" == -* ]]; do [[ "$1" == --unbuffered ]] && shift || shift 2; done
exec "$@"
"""
SACCT = """#!/usr/bin/env bash
printf 'JobID|State|NodeList\\n'; for i in 0 1 2 3; do printf '7_%s|RUNNING|n\\n' $i; done
"""


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TTA_BENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


def write(text: str) -> str:
    Path("grid.toml").write_text(text, "utf-8")
    return "grid.toml"


def sweep(*words: str):
    done = CliRunner().invoke(app, ["sweep", *words])
    assert done.exit_code in (0, 1), done.output
    return done


def start(*words: str, **environment: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "benchmarks.cli", "sweep", *words]
    return subprocess.Popen(command, env={**os.environ, **environment})


def rows_of(out: str) -> dict[str, dict]:
    """Rows by run, without what may differ; each run stands in the store once."""
    rows = Store(Path(out)).rows()
    files = [json.loads(file.read_text("utf-8")) for file in Path(out).glob("*/result.json")]
    assert sorted(files, key=lambda row: row["run_id"]) == rows
    return {r["run_id"]: {k: v for k, v in r.items() if k not in TIMING_FIELDS} for r in rows}


def running(out: str) -> list:
    return [record for record in Store(Path(out)).records() if record.status == "running"]


def wait_for(what, driver: subprocess.Popen[bytes]):
    deadline = time.monotonic() + DEADLINE
    while time.monotonic() < deadline:
        if found := what():
            return found
        assert driver.poll() is None, "the sweep ended too early"
        time.sleep(0.1)
    raise AssertionError("nothing happened in time")


def kill(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()


def workers(driver: subprocess.Popen[bytes]) -> list[psutil.Process]:
    children = psutil.Process(driver.pid).children()
    return [child for child in children if "spawn_main" in " ".join(child.cmdline())]


@pytest.mark.slow
def test_the_pool_loses_nothing_where_a_worker_and_then_the_driver_is_killed() -> None:
    driver = start(write(LONG), "--out", "pool", "--jobs", "1")
    wait_for(lambda: running("pool"), driver)
    (worker,) = workers(driver)
    worker.send_signal(signal.SIGKILL)
    # Another one comes, and has finished a cell when it is killed with the driver.
    wait_for(lambda: list(Path("pool").glob("*/result.json")) and running("pool"), driver)
    before = {file: file.stat() for file in Path("pool").glob("*/result.json")}
    assert len(before) == 1
    children = workers(driver)
    kill(driver)
    assert children
    assert not psutil.wait_procs(children, timeout=30)[1], "a worker outlives its driver"
    assert start("grid.toml", "--out", "pool", "--jobs", "1").wait(DEADLINE) == 0
    for file, stat_before in before.items():
        now = file.stat()
        assert (now.st_ino, now.st_mtime_ns) == (stat_before.st_ino, stat_before.st_mtime_ns)
    assert sweep("grid.toml", "--out", "serial", "--engine", "serial").exit_code == 0
    assert rows_of("pool") == rows_of("serial")
    assert len(rows_of("pool")) == 2


@pytest.mark.slow
def test_ctrl_c_ends_cleanly_and_a_cell_that_takes_too_long_fails() -> None:
    driver = start(write(LATE), "--out", "out", "--jobs", "2")
    wait_for(lambda: list(Path("out").glob("*-s1-*/checkpoint/state.pt")), driver)
    children = workers(driver)
    driver.send_signal(signal.SIGINT)
    assert driver.wait(60) == 130
    assert not psutil.wait_procs(children, timeout=1)[1]
    statuses = {(record.seed, record.status) for record in Store(Path("out")).records()}
    assert statuses == {(0, "finished"), (1, "queued")}
    assert start("grid.toml", "--out", "out", "--jobs", "1", "--timeout", "5").wait(DEADLINE) == 1
    late = [record for record in Store(Path("out")).records() if record.row is None]
    assert {(r.status, r.reason, r.seed) for r in late} == {("failed", "took longer than 5 s", 1)}
    assert list(Path("out").glob("*-s1-*/checkpoint/state.pt"))


@pytest.mark.slow
def test_ray_gives_the_same_rows_and_survives_a_dead_actor() -> None:
    pytest.importorskip("ray", reason="needs the extra 'ray'")
    driver = start(write(TINY), "--out", "ray", "--engine", "ray", "--jobs", "1")

    def actor() -> psutil.Process | None:
        for child in psutil.Process(driver.pid).children(recursive=True):
            try:
                if child.cmdline() and child.cmdline()[0].startswith("ray::_Worker"):
                    return child
            except psutil.Error:
                continue
        return None

    wait_for(actor, driver).send_signal(signal.SIGKILL)
    assert driver.wait(DEADLINE) == 0
    assert sweep("grid.toml", "--out", "serial", "--engine", "serial").exit_code == 0
    assert rows_of("ray") == rows_of("serial")
    for folder in Path("ray").glob("*-s0-*"):
        assert {p.name for p in folder.iterdir()} == {"result.json", "spec.json", "steps.parquet"}


@pytest.mark.slow
def test_slurm_jobs_outlive_their_driver(tmp_path: Path) -> None:
    pytest.importorskip("submitit", reason="needs the extra 'slurm'")
    tools = {"sbatch": SBATCH.format(python=sys.executable), "srun": SRUN, "sacct": SACCT}
    for name, text in tools.items():
        file = tmp_path / "bin" / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(text, "utf-8")
        file.chmod(file.stat().st_mode | stat.S_IXUSR)
    log = tmp_path / "sbatch.log"
    environment = {
        "PATH": f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "SBATCH_LOG": str(log),
    }
    words = (write(TINY), "--out", "slurm", "--engine", "slurm", "--jobs", "2")
    driver = start(*words, "--slurm-partition", "short", "--slurm", "account=us", **environment)
    jobs = Path("slurm/slurm/jobs.json")
    wait_for(lambda: jobs.exists() and running("slurm"), driver)
    kill(driver)
    assert len(json.loads(jobs.read_text("utf-8"))) == 4
    # On another engine the cells would be run twice.
    refused = CliRunner().invoke(app, ["sweep", "grid.toml", "--out", "slurm"])
    assert refused.exit_code == 2
    assert "Slurm jobs may be at work" in refused.stderr
    assert start(*words, **environment).wait(DEADLINE) == 0
    said = log.read_text("utf-8")
    assert said.count("#SBATCH --array=0-3%2") == 1, "the second driver submitted again"
    assert "#SBATCH --partition=short" in said
    assert "#SBATCH --account=us" in said
    assert sweep("grid.toml", "--out", "serial", "--engine", "serial").exit_code == 0
    assert rows_of("slurm") == rows_of("serial")
    assert json.loads(jobs.read_text("utf-8")) == {}


@pytest.mark.slow
def test_a_local_submitit_job_that_dies_is_submitted_again() -> None:
    pytest.importorskip("submitit", reason="needs the extra 'slurm'")
    words = ("--out", "local", "--engine", "slurm", "--jobs", "1", "--slurm", "cluster=local")
    text = TINY.replace("[0, 1]", "[0]").replace('"tent", ', "")
    driver = start(write(text), *words)
    wait_for(lambda: running("local"), driver)
    (job,) = psutil.Process(driver.pid).children()
    for process in [*job.children(), job]:
        process.kill()
    assert driver.wait(DEADLINE) == 0
    assert len(rows_of("local")) == 1


def test_slurm_and_ray_say_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    for engine, extra in (("ray", "tta-bench[ray]"), ("slurm", "tta-bench[slurm]")):
        with monkeypatch.context() as without:
            for module in ("ray", "submitit"):
                without.setitem(sys.modules, module, None)
            done = CliRunner().invoke(app, ["sweep", write(TINY), "--engine", engine])
            assert done.exit_code == 2
            assert extra in done.stderr
    done = CliRunner().invoke(app, ["sweep", write(TINY), "--engine", "slurm"])
    assert done.exit_code == 2
    assert "srun" in done.stderr
