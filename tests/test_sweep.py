"""Sweeps: from the file to the cells, what is skipped, what fails alone, how it stands."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from benchmarks.cli import app
from benchmarks.errors import UsageError
from benchmarks.store import Store
from benchmarks.sweep.cells import Cell, expand
from benchmarks.sweep.driver import FAILURES, INDEX, drive, standing
from benchmarks.sweep.plan import find, parse, sweeps
from benchmarks.sweep.pool import Serial
from benchmarks.sweep.summary import summary
from benchmarks.sweep.work import Outcome, Task

TINY = """
methods = ["norm", "source"]
streams = ["fashion-mnist-c"]
seeds = [0, 1]
num_examples = 20
[common]
corruptions = ["fog", "frost"]
batch_size = 10
"""
LIFE = """
methods = ["naive"]
streams = ["split-fashion-mnist"]
backbones = ["mlp-10"]
num_examples = 20
[common]
num_tasks = 2
eval_every = 4
[set]
learner.batch_size = 10
"""


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TTA_BENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


def cells_of(text: str) -> list[Cell]:
    return expand(parse("grid.toml", text))


def call(*arguments: str | Path):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def write(text: str, name: str = "grid.toml") -> str:
    Path(name).write_text(text, "utf-8")
    return name


# From the file to the cells ---------------------------------------------------------------------


def test_cells_are_the_product_seed_by_seed_and_each_once() -> None:
    cells = cells_of(TINY.replace('["norm", "source"]', '["source", "n[o]rm", "norm", "s*e"]'))
    assert [(c.spec.method, c.spec.seed) for c in cells] == [
        ("source", 0),
        ("norm", 0),
        ("source", 1),
        ("norm", 1),
    ]
    # Both are also named: they must run.
    assert not any(cell.by_pattern for cell in cells)
    assert [c.key for c in cells] == [c.key for c in cells_of(TINY.replace('["n', '["source", "n'))]
    assert cells[0].spec.corruptions == ("fog", "frost")


def test_options_grid_and_overrides() -> None:
    cells = cells_of(
        """
        methods = ["tent", "norm"]
        streams = ["fashion-mnist-c"]
        settings = ["continual", "reset"]
        num_examples = 20
        set = { tent.lr = 0.5 }
        grid = { batch_size = [10, 5], tent.steps = [1, 2] }
        [[overrides]]
        match = { method = "t*", setting = ["reset"] }
        num_examples = 7
        batch_size = 3
        set = { lr = 0.25 }
        [[overrides]]
        match = { setting = "reset", seed = 0 }
        severity = 2
        """
    )
    got = [
        (s.method, s.setting, s.batch_size, s.config.get("steps"), s.config.get("lr"))
        for s in (cell.spec for cell in cells)
    ]
    # The grid's option is of tent alone, and the override takes the grid's batch sizes away.
    assert got == [
        *[("tent", "continual", size, steps, 0.5) for size in (10, 5) for steps in (1, 2)],
        *[("norm", "continual", size, None, None) for size in (10, 5)],
        *[("tent", "reset", 3, steps, 0.25) for steps in (1, 2)],
        *[("norm", "reset", size, None, None) for size in (10, 5)],
    ]
    assert {c.spec.num_examples for c in cells if c.spec.setting == "reset"} == {7, 20}
    assert {(c.spec.setting, c.spec.severity) for c in cells} == {
        ("continual", (5,)),
        ("reset", (2,)),
    }


def test_what_watches_a_run_and_how_it_computes() -> None:
    plain, *others = cells_of(
        TINY.replace('"source"', '"tent"').replace("[0, 1]", "[0]")
        + """
        [grid]
        guard = ["rollback", "freeze"]
        [[overrides]]
        match = { method = "tent" }
        guard_set = { window = 16 }
        estimate = true
        budget = { update_every = 2 }
        layout = "contiguous"
        amp = "bf16"
        compile = true
        """
    )
    assert plain.spec.method == "norm"
    assert (plain.spec.guard["action"], plain.spec.budget, plain.spec.amp) == (
        "rollback",
        None,
        None,
    )
    assert (plain.spec.layout, plain.spec.compiled) == ("auto", False)
    specs = [cell.spec for cell in others if cell.spec.method == "tent"]
    assert [spec.guard["action"] for spec in specs] == ["rollback", "freeze"]
    for spec in specs:
        assert (spec.guard["window"], spec.guard["estimate"]) == (16, True)
        assert spec.budget["update_every"] == 2
        assert (spec.layout, spec.amp, spec.compiled) == ("contiguous", "bf16", True)


def test_a_learning_stream_is_swept_like_the_others() -> None:
    (cell,) = cells_of(LIFE)
    assert (cell.spec.setting, cell.spec.num_tasks, cell.spec.eval_every) == ("sequential", 2, 4)
    assert cell.spec.batch_size == 10


def test_the_key_knows_the_local_files(tmp_path: Path) -> None:
    plain, elsewhere = cells_of(TINY)[0], cells_of(TINY + 'data_dir = "there"')[0]
    assert plain.spec.identity() == elsewhere.spec.identity()
    assert plain.key != elsewhere.key


WRONG = {
    "top": ("metods = ['tent']", "unknown key 'metods' (did you mean 'methods'?)"),
    "missing": ("methods = ['tent']", "streams is missing"),
    "toml": ("methods = ", "grid.toml: "),
    "common": (TINY + "severty = 3", "unknown key 'severty' in common (did you mean 'severity'?)"),
    "match": (
        TINY + "[[overrides]]\nmatch = { metod = 'tent' }",
        "unknown key 'metod' in overrides.match (did you mean 'method'?)",
    ),
    "unused": (TINY + "[[overrides]]\nmatch = { method = 'tent' }", "override 1 is for no cell"),
    "type": (TINY.replace("[0, 1]", "['a']"), "seeds.0='a'"),
    "method": (TINY.replace("norm", "nrom"), "did you mean 'norm'"),
    "stream": (TINY.replace("mnist-c", "mnst-c"), "did you mean 'fashion-mnist-c'"),
    "setting": ("settings = ['rest']" + TINY, "did you mean 'reset'"),
    "backbone": ("backbones = ['fashion-resne']" + TINY, "did you mean 'fashion-resnet'"),
    "corruption": (TINY.replace("frost", "forst"), "did you mean 'frost'"),
    "severity": (TINY + "severity = 9", "severity=9 is out of range"),
    "guard": (TINY + "guard = 'rolback'", "rollback"),
    "guard options": (TINY + "[common.guard_set]\nwindow = 16", "has no effect without a guard"),
    "layout": (TINY + "layout = 'last'", "channels-last"),
    "budget": (TINY + "budget = { every = 2 }", "unknown option 'every'"),
    "option": (TINY + "[set]\nnorm.lr = 1", "unknown option 'lr'"),
    "grid": (TINY + "[grid]\nseverity = ['x']", "grid: severity"),
    "checkpoint": ("checkpoints = { a = 'b' }" + TINY, "'a', which is not among the backbones"),
    "learning key": (TINY + "num_tasks = 2", "num_tasks is for learning streams"),
    "stream key": (LIFE.replace("num_tasks", "severity"), "severity has no effect on a learning"),
    "both": (LIFE.replace('["split', '["fashion-mnist-c", "split'), "not both"),
}


@pytest.mark.parametrize(("text", "words"), WRONG.values(), ids=WRONG)
def test_a_wrong_file_is_one_line_and_nothing_runs(text: str, words: str) -> None:
    done = call("sweep", write(text), "--out", "out")
    assert done.exit_code == 2, done.output
    (line,) = done.stderr.strip().splitlines()
    assert words in line
    assert not Path("out").exists()


def test_options_of_another_engine_are_refused() -> None:
    for words in (
        ("--address", "auto"),
        ("--slurm", "account=a"),
        ("--engine", "serial", "--timeout", "5"),
        ("--engine", "slurm", "--timeout", "5"),
    ):
        assert call("sweep", write(TINY), *words).exit_code == 2


def test_sweeps_of_the_package_are_listed_and_whole() -> None:
    done = call("sweep")
    assert done.exit_code == 0
    assert done.stdout.splitlines()[0].startswith("fashion-all: ")
    for name in sweeps():
        assert expand(find(name))
    with pytest.raises(UsageError, match="did you mean 'fashion-all'"):
        find("fashion-al")


# What is run ------------------------------------------------------------------------------------


def test_finished_cells_are_not_run_again() -> None:
    file = write(TINY)
    assert "4 cells: 4 todo" in call("sweep", file, "--dry-run").stdout
    assert not Path("results").exists()
    threads = torch.get_num_threads()
    first = call("sweep", file, "--out", "out", "--engine", "serial")
    assert first.exit_code == 0, first.output
    assert torch.get_num_threads() == threads
    written = {path: path.stat().st_mtime_ns for path in Path("out").rglob("result.json")}
    assert len(written) == len(Store(Path("out")).rows()) == 4
    assert {record.status for record in Store(Path("out")).records()} == {"finished"}
    wider = write(TINY.replace("[0, 1]", "[0, 1, 2]"))
    report = json.loads(call("sweep", wider, "--out", "out", "--engine", "serial", "--json").stdout)
    assert (report["finished_before"], report["finished"], report["failed"]) == (4, 2, [])
    assert written.items() <= {p: p.stat().st_mtime_ns for p in Path("out").rglob("*.json")}.items()
    plan = json.loads(call("sweep", wider, "--out", "out", "--dry-run", "--json").stdout)
    assert (len(plan["finished"]), plan["todo"]) == (6, [])


class Scripted:
    """An engine that answers as it is told, and notes what it was given."""

    capacity = 3

    def __init__(self, answers: dict[str, list[Outcome]]) -> None:
        self.answers, self.given, self.most, self.closed = answers, [], 0, False
        self.flying: list[Task] = []

    def submit(self, task: Task) -> None:
        self.given.append(task.key)
        self.flying.append(task)
        self.most = max(self.most, len(self.flying))

    def poll(self) -> list[Outcome]:
        task = self.flying.pop(0)
        found = self.answers.get(task.key)
        if found is None:
            return [Outcome(task.key, "finished", row=row_of(task.cell))]
        if isinstance(found[0], BaseException):
            raise found[0]
        return [found.pop(0)]

    def close(self) -> None:
        self.closed = True


def row_of(cell: Cell) -> dict:
    facts = {name: getattr(cell.spec, name) for name in ("method", "stream", "setting", "seed")}
    return {"schema_version": 1, "run_id": f"run of {cell.key}", **facts}


def many() -> list[Cell]:
    return cells_of(TINY.replace("[0, 1]", "[0, 1, 2, 3]"))


def test_lost_cells_get_another_worker_and_failed_ones_do_not(tmp_path: Path) -> None:
    cells = many()
    lost, dead, wrong, unfit = (cell.key for cell in cells[:4])
    engine = Scripted(
        {
            lost: [Outcome(lost, "lost", reason="killed")] * 2
            + [Outcome(lost, "finished", row=row_of(cells[0]))],
            dead: [Outcome(dead, "lost", reason="signal 9")] * 3,
            wrong: [Outcome(wrong, "failed", reason="ValueError: no", trace="Traceback …")],
            unfit: [Outcome(unfit, "left out", reason="it has no norm layer")],
        }
    )
    report = drive(cells, tmp_path / "out", lambda: engine, retries=2)
    assert engine.closed
    assert engine.most == 3, "more cells in flight than the engine wants"
    assert [engine.given.count(key) for key in (lost, dead, wrong, unfit)] == [3, 3, 1, 1]
    assert report.finished == 5
    assert [(c.key, why) for c, why in report.failed] == [
        (wrong, "ValueError: no"),
        (dead, "lost 3 times: signal 9"),
    ]
    assert [(c.key, why) for c, why in report.left_out] == [(unfit, "it has no norm layer")]
    (trace,) = (tmp_path / "out" / FAILURES).iterdir()
    assert "Traceback" in trace.read_text("utf-8")
    # Next time they stay as they are, unless asked for.
    idle = Scripted({})
    again = drive(cells, tmp_path / "out", lambda: idle)
    assert (again.before, again.finished, len(again.failed), len(again.left_out)) == (5, 0, 2, 1)
    assert idle.given == []
    retried = drive(cells, tmp_path / "out", lambda: idle, retry_failed=True)
    assert sorted(idle.given) == sorted([wrong, dead, unfit])
    assert (retried.before, retried.finished, retried.failed) == (5, 3, [])
    assert {record.status for record in Store(tmp_path / "out").records()} == {"finished"}


def test_an_interrupted_sweep_leaves_no_cell_running(tmp_path: Path) -> None:
    cells = many()
    engine = Scripted({cells[2].key: [KeyboardInterrupt()]})
    with pytest.raises(KeyboardInterrupt):
        drive(cells, tmp_path, lambda: engine)
    assert engine.closed
    there = standing(cells, tmp_path)
    assert (len(there.finished), len(there.todo)) == (2, 6)
    assert sorted(r.status for r in Store(tmp_path).records()) == ["finished"] * 2 + ["queued"] * 6
    # A kill may cut off the line that it was writing; that cell is looked at again.
    index = tmp_path / INDEX
    index.write_text(index.read_text("utf-8")[:-5], "utf-8")
    assert len(standing(cells, tmp_path).finished) == 1
    second = Scripted({})
    assert drive(cells, tmp_path, lambda: second).finished == 7
    assert standing(cells, tmp_path).todo == []
    assert len(Store(tmp_path).rows()) == 8


def test_one_sweep_at_a_time_in_a_folder(tmp_path: Path) -> None:
    class Nested(Scripted):
        def poll(self) -> list[Outcome]:
            with pytest.raises(UsageError, match="another sweep is at work"):
                drive(many(), tmp_path, lambda: Scripted({}))
            return super().poll()

    assert drive(many()[:1], tmp_path, lambda: Nested({})).finished == 1


def test_what_goes_wrong_in_a_run_stays_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tta.adapters.norm import Norm

    def broken(self: object, x: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("the device caught fire\nsecond line")

    monkeypatch.setattr(Norm, "adapt", broken)
    text = TINY.replace('"source"]', '"source", "foa*"]').replace("[0, 1]", "[0]")
    done = call("sweep", write(text), "--out", "out", "--engine", "serial", "--json")
    assert done.exit_code == 1
    report = json.loads(done.stdout)
    assert report["finished"] == 1
    (failed,) = report["failed"]
    assert failed["reason"] == "RuntimeError: the device caught fire second line"
    (left_out,) = report["left_out"]
    assert "VisionTransformer" in left_out["reason"]
    (trace,) = Path("out", FAILURES).iterdir()
    assert "in broken" in trace.read_text("utf-8")
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    again = call("sweep", "grid.toml", "--out", "out", "--engine", "serial", "--retry-failed")
    assert again.exit_code == 0, again.output
    assert "1 finished before" in again.stdout


def test_a_collapsed_run_is_a_result() -> None:
    text = TINY.replace('"norm", "source"', '"tent"').replace("[0, 1]", "[0]")
    (cell,) = cells_of(text + "[set]\nlr = 1e30")
    report = drive([cell], Path("out"), lambda: Serial(Path("out")))
    assert (report.finished, report.failed) == (1, [])
    (row,) = Store(Path("out")).rows()
    assert row["non_finite"] > 0


def test_a_learning_stream_runs_too() -> None:
    done = call("sweep", write(LIFE), "--out", "out", "--engine", "serial")
    assert done.exit_code == 0, done.output
    (row,) = Store(Path("out")).rows()
    assert (row["method"], row["num_tasks"]) == ("naive", 2)


# How it stands ----------------------------------------------------------------------------------


def test_watch_reads_the_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = call("watch", "out", "--once")
    assert done.exit_code == 2
    assert "out has no store" in done.stderr
    cells = many()
    wrong, unfit = cells[0].key, cells[1].key
    engine = Scripted(
        {
            wrong: [Outcome(wrong, "failed", reason="ValueError: no")],
            unfit: [Outcome(unfit, "left out", reason="no norm layer")],
            cells[7].key: [KeyboardInterrupt()],
        }
    )
    with pytest.raises(KeyboardInterrupt):
        drive(cells, Path("out"), lambda: engine)
    store = Store(Path("out"))
    store.mark(
        cells[7].key, "running", reason="error 3.00 % so far", done=3, total=9, **cells[7].facts
    )
    seen = json.loads(call("watch", "out", "--once", "--json").stdout)
    counts = {name: seen[name] for name in ("finished", "failed", "left_out", "running", "queued")}
    assert counts == {"finished": 5, "failed": 1, "left_out": 1, "running": 1, "queued": 0}
    (running,) = seen["cells"]
    assert (running["method"], running["seed"]) == ("source", 3)
    assert (running["done"], running["total"]) == (3, 9)
    assert running["reason"] == "error 3.00 % so far"
    assert [failure["reason"] for failure in seen["failures"]] == ["ValueError: no"]
    monkeypatch.setenv("COLUMNS", "160")
    text = call("watch", "out", "--once").stdout
    for words in ("5 finished, 1 running, 1 failed, 1 left out of 8", "3/9", "ValueError: no"):
        assert words in text


def test_speed_and_time_left(tmp_path: Path) -> None:
    cells = many()
    store = Store(tmp_path)
    store.put_many([row_of(cell) for cell in cells[:5]])
    for cell in cells[5:]:
        store.mark(cell.key, "queued", **cell.facts)
    ended = max(record.updated for record in store.records() if record.row)
    seen = summary(tmp_path, now=ended + 120)
    # Five ended in 120 s, of which the first opens the interval; three are left.
    assert seen["per_minute"] == pytest.approx(2.0, rel=0.02)
    assert seen["eta_seconds"] == pytest.approx(90, rel=0.02)
    late = summary(tmp_path, now=time.time() + 3600)
    assert (late["per_minute"], late["eta_seconds"]) == (None, None)
