"""Published figures beside ours: none without a source, the rule, the page, the command."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import tta
from benchmarks import reproduce_plan
from benchmarks.cli import app
from benchmarks.own_figures import OWN
from benchmarks.reproduce import (
    Ours,
    Reproduction,
    measured,
    published,
    read_record,
    reproduce,
    write_record,
)
from benchmarks.reproduce_page import page
from benchmarks.reproduce_plan import (
    NETWORKS,
    PROTOCOLS,
    arguments,
    command,
    impossible,
    missing,
)
from benchmarks.spec import resolve
from tta.published import Published, figures

ROOT = Path(__file__).parents[1]
ALL = [(method, figure) for method in tta.list_adapters() for figure in published(method)]
PLACE = re.compile(r"README|benchmark\.md|[Tt]able|file|docs/")
SOURCE = re.compile(rf"^[\w-]+/[\w-]+( issue \d+)?$|arXiv:\d{{4}}\.\d{{5}}$|^{OWN}$")


def test_every_published_figure_says_what_it_is_and_where_it_stands() -> None:
    assert len(ALL) > 100
    for method, figure in ALL:
        at = f"{method}: {figure}"
        assert SOURCE.search(figure.source), at
        assert PLACE.search(figure.place), at
        assert 0 < figure.error_pct < 100, at
        assert all((figure.stream, figure.protocol, figure.backbone)), at
        assert figure.seeds is None or figure.seeds > 0, at


def test_no_figure_is_there_twice() -> None:
    keys = [(m, f.key, f.source, json.dumps(dict(f.options))) for m, f in ALL]
    assert len(set(keys)) == len(keys)


def test_every_figure_has_its_runs_or_a_reason() -> None:
    for method, figure in ALL:
        runs = arguments(method, figure)
        if impossible(figure):
            assert not runs
            continue
        assert figure.backbone in NETWORKS
        for fields in runs:
            spec = resolve(**fields)
            assert spec.severity == (5,)
            assert f"-s {figure.stream}" in command(fields)
        # What a figure of several runs averages are different runs.
        assert len({resolve(**fields).identity() for fields in runs}) == len(runs)
    assert len(PROTOCOLS["gradual-10-orders"]) == 10


def test_our_own_figures_are_those_of_the_documentation() -> None:
    tables = (ROOT / "docs" / "tables.md").read_text("utf-8")
    backbones = (ROOT / "docs" / "backbones.md").read_text("utf-8")
    for method, figure in ALL:
        if figure.source != OWN:
            continue
        if figure.protocol == "clean":
            assert f"{figure.error_pct:.2f} %" in backbones
            continue
        row = next(line for line in tables.splitlines() if line.startswith(f"| `{method}` |"))
        column = 2 if figure.backbone == "fashion-resnet" else 4
        assert row.split("|")[column].strip() == f"{figure.error_pct:.2f} ± {figure.std:.2f}"


def item(published: float, ours: float | None, **fields: Any) -> Reproduction:
    figure = Published(
        stream="s",
        protocol="p",
        backbone="b",
        error_pct=published,
        source="o/r",
        place="table",
        std=fields.pop("published_std", None),
    )
    made = (
        None
        if ours is None
        else Ours(error_pct=ours, std=fields.get("std"), seeds=fields.get("seeds", 1), run_ids=())
    )
    return Reproduction(method="tent", figure=figure, ours=made)


def test_the_rule() -> None:
    assert item(20.0, None).status == "not run"
    assert item(20.0, 20.5).status == item(20.0, 19.5).status == "reproduced"
    assert item(20.0, 20.6).status == "not reproduced"
    assert item(20.0, 21.1, published_std=0.6).status == "reproduced"
    # Half the 95 % interval of three seeds: 4.303 * 0.4 / sqrt(3) = 0.99 points.
    assert item(20.0, 20.9, std=0.4, seeds=3).status == "reproduced"
    assert item(20.0, 21.1, std=0.4, seeds=3).status == "not reproduced"
    # Two seeds say too little about their spread.
    assert item(20.0, 20.9, std=0.4, seeds=2).status == "not reproduced"


def row_of(method: str, figure: Published, number: int = 0, **changed: Any) -> dict[str, Any]:
    """A row as the run of a figure would leave it."""
    spec = resolve(**{**arguments(method, figure)[number], "seed": changed.pop("seed", 0)})
    row = {
        "method": spec.method,
        "protocol": spec.protocol,
        "setting": spec.setting,
        "backbone": spec.backbone,
        "normalisation": NETWORKS[figure.backbone].normalisation,
        "config": json.dumps(spec.config, sort_keys=True),
        "seed": spec.seed,
        "norm": None,
        "window": 1,
        "dtype": "float32",
        "num_examples": reproduce_plan.images(figure),
        "error_pct": 10.0 + number,
        "run_id": f"{number}",
        "provenance": "official",
        "device": "cpu",
        "version_tta_bench": "0",
        "version_torch": "0",
    }
    return {**row, **changed}


def named(method: str, part: str) -> Published:
    return next(f for f in published(method) if part in f"{f.key} {f.source}")


def test_only_runs_of_the_figure_count() -> None:
    figure = named("tent", "cifar10-c/reset/wrn-28-10")
    found = measured("tent", figure, [row_of("tent", figure)])
    assert found == Ours(
        error_pct=10.0, std=None, seeds=1, run_ids=("0",), facts=found.facts if found else {}
    )
    for changed in (
        {"protocol": "cifar10-c-continual-v1"},
        {"backbone": "cifar-resnet20"},
        {"normalisation": "mean=(0.5, 0.5, 0.5) std=(0.5, 0.5, 0.5), inside the model"},
        {"num_examples": 9000},
        {"norm": "robust"},
        {"dtype": "float64"},
        {"config": json.dumps({**json.loads(row_of("tent", figure)["config"]), "lr": 0.5})},
    ):
        assert measured("tent", figure, [row_of("tent", figure, **changed)]) is None, changed
    two = [row_of("tent", figure, seed=n, error_pct=10.0 + n) for n in (0, 1)]
    both = measured("tent", figure, two)
    assert both is not None
    assert (both.error_pct, both.seeds, round(both.std or 0, 4)) == (10.5, 2, 0.7071)
    generated = measured("tent", figure, [row_of("tent", figure, provenance="generated (x)")])
    assert generated is not None
    assert "not the official archive" in generated.note


def test_a_figure_over_ten_orders_needs_all_ten() -> None:
    figure = named("cotta", "gradual-10-orders")
    rows = [row_of("cotta", figure, number) for number in range(10)]
    assert measured("cotta", figure, rows[:9]) is None
    found = measured("cotta", figure, rows)
    assert found is not None
    assert found.error_pct == pytest.approx(14.5)


def test_the_record_goes_round_and_keeps_its_notes(tmp_path: Path) -> None:
    figure = named("tent", "cifar10-c/reset/wrn-28-10")
    found = reproduce(["tent"], protocol=figure.key, rows=[row_of("tent", figure)], recorded=[])
    file = tmp_path / "record.json"
    write_record(file, found)
    (entry,) = read_record(file)
    assert (entry["method"], entry["error_pct"], entry["run_ids"]) == ("tent", 10.0, ["0"])
    file.write_text(json.dumps({"figures": [{**entry, "note": "because"}]}))
    write_record(file, found)
    again = reproduce(["tent"], protocol=figure.key, recorded=read_record(file))
    assert again[0].ours is not None
    assert again[0].ours.note == "because"


def test_the_page_is_up_to_date() -> None:
    written = (ROOT / "docs" / "reproduce.md").read_text("utf-8")
    assert written == page(reproduce()), "run: tta-bench reproduce --export docs/reproduce.md"
    assert "/tmp" not in written


def test_every_record_belongs_to_a_figure_and_to_a_version() -> None:
    placed = [r for r in reproduce() if r.ours is not None]
    assert len(placed) == len(read_record())
    for found in placed:
        assert found.ours is not None
        assert found.ours.run_ids
        assert {"provenance", "device", "version_tta_bench", "version_torch"} <= set(
            found.ours.facts
        )
        assert found.status == "reproduced" or found.ours.note, "say why it is not reproduced"


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    said = missing(named("source", "cifar-resnet20"), tmp_path)
    assert [need.partition(":")[0] for need in said] == ["weights", "data"]
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "resnet20-12fca82f.th").touch()
    assert [need.partition(":")[0] for need in missing(named("source", "resnet20"), tmp_path)] == [
        "data"
    ]
    assert missing(named("source", "fashion-mnist/clean"), None) == []
    lifelong = named("eata", "lifelong")
    assert missing(lifelong, tmp_path) == [impossible(lifelong)]
    large = missing(named("tent", "imagenet-c/reset-50k/resnet50"), tmp_path, device="cpu")
    assert not any("GPU" in need for need in large)


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """One figure that takes a second."""
    monkeypatch.setenv("TTA_BENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(
        PROTOCOLS, "tiny", ({"setting": "continual", "num_examples": 30, "corruptions": ("fog",)},)
    )
    made = figures("o/r", "table 1", {"fashion-mnist-c/tiny/fashion-resnet": 50.0})
    monkeypatch.setattr("tta.adapters.source.PUBLISHED", made)
    monkeypatch.setattr("benchmarks.reproduce.own_figures", lambda method: ())
    monkeypatch.setattr("benchmarks.reproduce.images", lambda figure: 30)
    monkeypatch.setattr("benchmarks.reproduce_plan.images", lambda figure: 30)


@pytest.mark.usefixtures("tiny")
def test_the_command_runs_what_it_can(tmp_path: Path) -> None:
    words = ["reproduce", "-m", "source", "--out", str(tmp_path / "out"), "--json"]
    before = CliRunner().invoke(app, words)
    (said,) = json.loads(before.stdout)
    assert said["status"] == "not run"
    assert not (tmp_path / "out").exists()
    assert said["commands"] == [
        "tta-bench run -m source -s fashion-mnist-c --setting continual --corruptions fog "
        "--num-examples 30 --backbone fashion-resnet"
    ]
    record, export = tmp_path / "record.json", tmp_path / "page.md"
    extra = ["--run", "--record", str(record), "--export", str(export)]
    done = CliRunner().invoke(app, [*words, *extra])
    assert done.exit_code == 0, done.output
    (said,) = json.loads(done.stdout)
    assert said["status"] in ("reproduced", "not reproduced")
    (folder,) = (p for p in (tmp_path / "out").iterdir() if p.is_dir())
    row = json.loads((folder / "result.json").read_text())
    assert said["error_pct"] == row["error_pct"]
    assert read_record(record)[0]["run_ids"] == [row["run_id"]]
    assert "fashion-mnist-c/tiny/fashion-resnet" in export.read_text("utf-8")
    # What is there is taken from there.
    again = CliRunner().invoke(app, [*words[:3], "--results", str(tmp_path / "out"), "--json"])
    assert json.loads(again.stdout)[0]["run_ids"] == [row["run_id"]]


def test_wrong_words(tmp_path: Path) -> None:
    wrong = {
        ("-m", "tentt"): "did you mean 'tent'",
        ("--protocol", "cifar11"): "no published figure",
        ("--export", str(tmp_path / "page.txt")): "name a .md file",
        ("--record", str(tmp_path / "no" / "file.json")): "folder that exists",
    }
    for words, said in wrong.items():
        done = CliRunner().invoke(app, ["reproduce", *words])
        assert done.exit_code == 2, words
        assert said in done.stderr


def test_the_table_for_people(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    done = CliRunner().invoke(app, ["reproduce", "-m", "note"])
    assert done.exit_code == 0
    assert "no such network here" in done.stdout
    assert "0 ✓ reproduced, 0 ✗ not reproduced, 4 \N{EN DASH} not run" in done.stdout
    figure = replace(named("note", "cifar10-c/reset"), note="")
    assert impossible(figure)
