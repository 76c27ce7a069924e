"""The report: a page that needs nothing but itself, whose numbers are those of the runs."""

from __future__ import annotations

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

import benchmarks
from benchmarks.cli import app
from benchmarks.leaderboard import leaderboard
from benchmarks.learning_runner import run as run_learning
from benchmarks.learning_spec import resolve_learning
from benchmarks.report import report, style
from benchmarks.report.charts import charts
from benchmarks.report.data import read
from benchmarks.report.samples import picture
from benchmarks.results import find_results
from benchmarks.store import Store

SMALL = {"num_examples": 20, "batch_size": 10, "corruptions": ("fog", "contrast")}
RUNS = (("source", 0), ("source", 1), ("tent", 0), ("tent", 1), ("deyo", 0))
EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"
# Attributes that make a browser fetch something.
FETCHES = {"src", "srcset", "action", "data", "poster", "formaction", "background"}


class Page(HTMLParser):
    """Elements of a page, and the text of each kind of element."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}
        self._open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in {"meta", "link", "input", "img", "br"}:
            self._open.append(tag)
            self.texts.setdefault(tag, []).append("")

    def handle_endtag(self, tag):
        while self._open and self._open.pop() != tag:
            pass

    def handle_data(self, data):
        for tag in self._open:
            self.texts[tag][-1] += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]

    @property
    def data(self) -> dict:
        (place,) = [n for n, a in enumerate(self.all("script")) if a.get("id") == "data"]
        return json.loads(self.texts["script"][place])

    @property
    def words(self) -> str:
        return " ".join(self.texts["main"][0].split())


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five runs on a stream of two domains, and one on a learning stream."""
    out = tmp_path_factory.mktemp("results")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TTA_BENCH_CACHE", str(tmp_path_factory.mktemp("cache")))
        for method, seed in RUNS:
            benchmarks.run(benchmarks.resolve(method, "fashion-mnist-c", seed=seed, **SMALL), out)
        spec = resolve_learning(
            "naive", "split-fashion-mnist", backbone="mlp-10", num_tasks=2, num_examples=20
        )
        run_learning(spec, out)
    return out


@pytest.fixture(scope="module")
def page(results: Path, tmp_path_factory: pytest.TempPathFactory) -> Page:
    out = tmp_path_factory.mktemp("page") / "report.html"
    report([results], out)
    assert out.stat().st_size < 6e6
    return Page(out.read_text("utf-8"))


@pytest.fixture
def copied(results: Path, tmp_path: Path) -> Path:
    """The runs on the stream of two domains, to be changed."""
    out = tmp_path / "results"
    for folder in results.iterdir():
        if folder.is_dir() and "split" not in folder.name:
            shutil.copytree(folder, out / folder.name)
    return out


def change(file: Path, **fields: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text("utf-8")) | fields), "utf-8")


def change_steps(file: Path, where: str, **fields: object) -> None:
    """Set columns of the rows of a domain."""
    table = pq.read_table(file)
    rows = [row | (fields if row["domain"] == where else {}) for row in table.to_pylist()]
    pq.write_table(pa.Table.from_pylist(rows, table.schema), file)


def paged(roots: Path, title: str = "t") -> Page:
    out = roots.parent / "page.html"
    report([roots], out, title=title)
    return Page(out.read_text("utf-8"))


def test_the_page_needs_no_network(page: Page) -> None:
    for tag, attributes in page.tags:
        for name, value in attributes.items():
            if name in FETCHES or (name == "href" and tag == "link"):
                assert value.startswith("data:"), (tag, name, value)
            elif name == "href":
                assert value.startswith("#"), value
    assert not {"iframe", "object", "embed", "base"} & {tag for tag, _ in page.tags}
    css = " ".join(page.texts["style"])
    assert "@import" not in css
    assert "url(" not in css
    policy = [a["content"] for a in page.all("meta") if "http-equiv" in a]
    assert policy == [
        "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
        "img-src data: blob:"
    ]
    assert sum("plotly.js v" in text for text in page.texts["script"]) == 1


def test_rows_and_specs_are_those_of_the_runs(page: Page, results: Path) -> None:
    data = page.data
    embedded = {}
    for run in data["runs"]:
        row = dict(zip(data["columns"], run["row"], strict=True))
        embedded[row["run_id"]] = {key: value for key, value in row.items() if value is not None}
        assert run["spec"] == json.loads((results / run["folder"] / "spec.json").read_text())
    for row in find_results([results]):
        assert embedded.pop(row["run_id"]) == {k: v for k, v in row.items() if v is not None}
    assert not embedded


def test_the_leaderboard_is_the_leaderboard(page: Page, results: Path) -> None:
    words = page.words
    for row in leaderboard(find_results([results])):
        half = row["error_pct_ci95"]
        text = f"{row['method']} {row['error_pct']:.2f}"
        assert text + ("" if half is None else f"± {half:.2f}") in words
    rows = [a for a in page.all("tr") if "data-entry" in a]
    assert len(rows) == len(page.data["entries"]) == 4


def test_charts_show_the_numbers_of_the_rows(page: Page, results: Path) -> None:
    data = page.data
    (made,) = [group["charts"] for group in data["groups"] if not group["learning"]]
    rows = [row for row in find_results([results]) if row["stream"] == "fashion-mnist-c"]

    def mean(method: str, key: str) -> float:
        return round(np.mean([row[key] for row in rows if row["method"] == method]), 2)

    method = {n: entry["method"] for n, entry in enumerate(data["entries"])}
    assert made["domains"]["data"][0]["x"] == ["fog", "contrast"]
    for trace in made["domains"]["data"]:
        name = method[trace["meta"]["entry"]]
        assert trace["y"] == [mean(name, "error_pct_fog"), mean(name, "error_pct_contrast")]
    for trace in made["pareto"]["data"]:
        name = method[trace["meta"]["entry"]]
        passes = mean(name, "forwards_per_image") + mean(name, "backwards_per_image")
        assert trace["y"] == [mean(name, "error_pct")]
        assert trace["meta"]["x"]["passes"] == pytest.approx(passes, abs=0.01)
    for trace in made["retention"]["data"]:
        name = method[trace["meta"]["entry"]]
        assert trace["x"] == [mean(name, "source_clean_error_pct"), mean(name, "clean_error_pct")]
    (heat,) = made["heat"]["data"]
    for number, line, difference in zip(
        heat["meta"]["entries"], heat["z"], heat["meta"]["difference"], strict=True
    ):
        name = method[number]
        assert line == [mean(name, "error_pct_fog"), mean(name, "error_pct_contrast")]
        assert difference[0] == pytest.approx(line[0] - mean("source", "error_pct_fog"), abs=0.011)
    selecting = {method[trace["meta"]["entry"]] for trace in _lines(made["selected"])}
    assert selecting == {"deyo"}


def _lines(figure: dict) -> list[dict]:
    return [trace for trace in figure["data"] if trace["meta"]["kind"] == "line"]


def test_steps_and_calibration_are_those_of_the_files(page: Page, results: Path) -> None:
    (made,) = [group["charts"] for group in page.data["groups"] if not group["learning"]]
    tables = [pq.read_table(f / "steps.parquet").to_pydict() for f in results.glob("tent-*")]
    assert len(tables) == 2
    number = next(n for n, entry in enumerate(page.data["entries"]) if entry["method"] == "tent")
    (line,) = [trace for trace in _lines(made["steps"]) if trace["meta"]["entry"] == number]
    assert line["x"] == [0, 1, 2, 3]
    assert line["y"] == np.mean([table["error_pct"] for table in tables], axis=0).round(2).tolist()
    assert made["steps"]["layout"]["xaxis"]["ticktext"] == ["fog", "contrast"]
    (points,) = [t for t in made["calibration"]["data"] if t["meta"]["entry"] == number]
    count, correct = (
        np.sum([table[key] for table in tables], axis=(0, 1))
        for key in ("ece_count", "ece_correct")
    )
    kept = count >= 10
    assert points["y"] == (100 * correct[kept] / count[kept]).round(2).tolist()


def test_plotly_takes_every_figure(results: Path) -> None:
    import plotly.graph_objects as go

    from benchmarks.report.learning import learning_charts

    for group in read([results]).groups:
        made = learning_charts(group) if group.learning else charts(group)
        for figure in made.values():
            for one in figure.get("entries", [figure]):
                assert "missing" not in one
                go.Figure(one["data"], one["layout"])


def test_learning_streams_have_their_own_charts(page: Page) -> None:
    (group,) = [group for group in page.data["groups"] if group["learning"]]
    assert set(group["charts"]) == {"curve", "matrix"}
    (matrix,) = group["charts"]["matrix"]["entries"]
    (trace,) = matrix["data"]
    assert np.shape(trace["z"]) == (3, 2)  # before the first task, and after each of two
    final = np.mean(trace["z"][-1])
    (curve,) = _lines(group["charts"]["curve"])
    assert curve["y"][-1] == pytest.approx(final, abs=0.01)


def test_what_the_runs_say_is_text(copied: Path) -> None:
    """Names, options, reasons and the title can hold anything; no element comes of it."""
    folder = next(copied.glob("tent-*-s0-*"))
    config = json.loads(json.loads((folder / "result.json").read_text())["config"])
    fields = {"method": EVIL, "config": json.dumps(config | {"lr": EVIL})}
    change(folder / "result.json", **fields)
    change(folder / "spec.json", method=EVIL, backbone=EVIL)
    change_steps(folder / "steps.parquet", "fog", domain=EVIL)
    words = dict.fromkeys(("method", "stream", "setting", "label", "reason"), EVIL)
    Store(copied).mark("f" * 64, "failed", seed=0, **words)
    page = paged(copied, title=EVIL)
    assert len(page.all("script")) == 4
    assert [text for text in page.texts["script"] if text.strip() == "alert(1)"] == []
    assert not any("onerror" in attributes for _, attributes in page.tags)
    assert page.texts["title"] == [EVIL]
    assert page.words.count(EVIL) >= 4  # ranking, and the failed run's method, stream and reason
    data = page.data
    assert EVIL in {entry["method"] for entry in data["entries"]}
    assert EVIL in {run["spec"]["method"] for run in data["runs"]}
    # Plotly takes some elements in its texts for markup.
    names = [t.get("name", "") for g in data["groups"] for t in g["charts"]["steps"]["data"]]
    assert any(name.startswith("&lt;/script") for name in names)
    assert not any("<" in name for name in names)


def test_failed_runs_are_listed(copied: Path) -> None:
    Store(copied).mark(
        "a" * 64, "failed", method="cotta", stream="s", setting="t", seed=3, reason="out of memory"
    )
    assert "cotta s t 3 out of memory aaaaaaaa" in paged(copied).words


@pytest.mark.parametrize("kept", ["tent-*-s0-*", "deyo-*", "source-*-s0-*"])
def test_one_run_is_enough(copied: Path, kept: str) -> None:
    keep = set(copied.glob(kept))
    for folder in set(copied.iterdir()) - keep:
        shutil.rmtree(folder)
    page = paged(copied)
    assert "1 run · 1 method · 1 ranking" in " ".join(page.texts["header"][0].split())
    assert "Nothing to show: no run is on a learning stream." in page.words
    (group,) = page.data["groups"]
    if not kept.startswith("source"):
        assert group["charts"]["heat"]["data"][0]["meta"]["difference"] is None
        assert "mean error of the source model" in group["charts"]["steps"]["note"]


def test_learning_alone_is_enough(results: Path, tmp_path: Path) -> None:
    (folder,) = results.glob("naive-*")
    shutil.copytree(folder, tmp_path / "results" / folder.name)
    page = paged(tmp_path / "results")
    assert page.words.count("Nothing to show: all runs are on learning streams.") == 8
    assert "naive" in page.words


def test_a_store_without_folders(copied: Path, tmp_path: Path) -> None:
    """Rows outlive folders: the charts of the rows are there, the others say what is missing."""
    moved = tmp_path / "moved"
    Store(moved).put_many(find_results([copied]))
    page = paged(moved)
    (group,) = page.data["groups"]
    assert "folders of its runs are not here" in group["charts"]["steps"]["missing"]
    assert group["charts"]["domains"]["data"]
    assert "No spec.json was found" in page.words


def test_samples_are_the_images_of_the_stream(page: Page) -> None:
    images = [a for a in page.all("img") if a["src"].startswith("data:image/png")]
    assert [a["alt"] for a in images] == ["4 images of fog", "4 images of contrast"]


def test_missing_data_is_said() -> None:
    made = picture({"stream": "cifar10-c", "data_dir": "nowhere", "corruptions": ["fog"]})
    assert not made.strips
    assert made.missing.startswith("Its data is not on this machine:")


def test_methods_are_told_apart() -> None:
    import tta

    names = tta.list_adapters()
    looks = style.styles(names)
    assert len({(look.colour, look.symbol, look.dash) for look in looks.values()}) == len(names)
    assert looks["source"].colour == -1
    assert style.styles(sorted(names, reverse=True))["source"] == looks["source"]


@pytest.mark.slow
def test_figures_for_paper(results: Path, tmp_path: Path) -> None:
    made = report([results], tmp_path / "r.html", tmp_path / "figures").figures
    stem = "fashion-mnist-c-continual-fashion-resnet"
    kinds = ("leaderboard", "steps", "pareto", "retention", "calibration", "heat")
    wanted = {f"{kind}-{stem}.{form}" for kind in kinds for form in ("png", "pdf")}
    wanted |= {f"leaderboard-split-fashion-mnist-sequential-mlp-10.{f}" for f in ("png", "pdf")}
    assert {path.name for path in made} == wanted
    assert {path.name for path in (tmp_path / "figures").iterdir()} == wanted
    for path in made:
        start = path.read_bytes()
        if path.suffix == ".png":
            assert start.startswith(b"\x89PNG")
        else:
            assert b"/FontFile2" in start
            assert b"/Type3" not in start


def test_the_command(results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["report", str(results), "--out", "a/b.html", "--title", "Mine", "--json"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    said = json.loads(done.stdout)
    assert (said["runs"], said["failed"], said["rankings"], said["figures"]) == (6, 0, 2, [])
    assert said["bytes"] == Path("a/b.html").stat().st_size
    first = Path("a/b.html").read_text("utf-8")
    assert re.search(r"<h1>Mine</h1>", first)
    assert [path.name for path in tmp_path.rglob("*")] == ["a", "b.html"]
    CliRunner().invoke(app, words)
    assert Path("a/b.html").read_text("utf-8") == first  # the same results, the same page


WRONG = {
    "no folder": (("none",), "does not exist"),
    "no run": ((".",), "no finished run"),
    "no page": ((".", "--out", "report.pdf"), "no .html"),
    "a folder": ((".", "--out", "folder.html"), "is a folder"),
    "format": ((".", "--figures", "f", "--figure-format", "svg"), "expected png or pdf"),
    "format alone": ((".", "--figure-format", "pdf"), "without --figures"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_input(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("folder.html").mkdir()
    words, said = WRONG[case]
    done = CliRunner().invoke(app, ["report", *words])
    assert done.exit_code == 2, done.output
    assert said in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert [path.name for path in tmp_path.rglob("*")] == ["folder.html"]


def test_a_damaged_file_is_one_line(copied: Path) -> None:
    next(copied.glob("tent-*/steps.parquet")).write_bytes(b"no parquet")
    done = CliRunner().invoke(app, ["report", str(copied), "--out", str(copied / "r.html")])
    assert done.exit_code == 2
    assert "cannot be read; run it again" in done.stderr
    assert not (copied / "r.html").exists()
