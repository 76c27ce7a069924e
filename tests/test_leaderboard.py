"""Leaderboards: intervals, paired tests, frozen columns with types, and files in four forms."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import duckdb
import numpy as np
import pandas
import polars
import pytest
from scipy import stats
from typer.testing import CliRunner

import tta
from benchmarks.cli import app
from benchmarks.errors import UsageError
from benchmarks.leaderboard import BEHIND, BEST, TIED, leaderboard, standing
from benchmarks.leaderboard_columns import (
    COLUMNS,
    DOMAIN,
    LEADERBOARD_VERSION,
    column_type,
    columns,
    columns_page,
)
from benchmarks.leaderboard_export import escape_tex, export, to_csv
from benchmarks.leaderboard_stats import interval, paired_test

GOLDEN = Path(__file__).parent / "golden" / "leaderboard_header.csv"
DOCS = Path(tta.__file__).parents[1] / "docs"


def result(method: str, seed: int, fog: float, snow: float, **changes: object) -> dict:
    """A row of result.json, with the fields that a leaderboard must have."""
    return {
        "schema_version": 1,
        "run_id": f"{method}{seed}{sorted(changes.items())}",
        "method": method,
        "protocol": "p-v1",
        "stream": "s",
        "setting": "continual",
        "backbone": "net",
        "seed": seed,
        "error_pct": (fog + snow) / 2,
        "error_pct_fog": fog,
        "error_pct_snow": snow,
        "worst_domain": "fog",
        "source_error_pct": 60.0,
        "clean_error_pct": 10.0 + seed,
        "source_clean_error_pct": 10.0,
        "config": json.dumps({"lr": 0.1, "seed": seed}),
        "batch_size": 200,
        "severity": "5",
        "provenance": "generated (x)",
        "weight_hash": "ab" * 32,
        "dtype": "float32",
        "window": 1,
        "seconds_per_1k": 2,
        **changes,
    }


ERRORS = {"good": (30.0, 31.0, 29.5), "close": (30.5, 31.2, 29.9), "bad": (50.0, 53.0, 50.5)}


def results() -> list[dict]:
    return [
        result(method, seed, error - 1, error + 1)
        for method, errors in ERRORS.items()
        for seed, error in enumerate(errors)
    ]


# Statistics -------------------------------------------------------------------------------------


def test_interval_and_paired_test_are_those_of_scipy():
    for row in leaderboard(results()):
        values = ERRORS[row["method"]]
        low, high = stats.t.interval(0.95, 2, np.mean(values), stats.sem(values))
        assert row["error_pct"] == pytest.approx(np.mean(values))
        assert row["error_pct_ci95"] == pytest.approx((high - low) / 2)
        assert row["error_pct_std"] == pytest.approx(np.std(values, ddof=1))
        if row["rank"] == 1:
            assert (row["method"], row["p_vs_best"], row["pairs_vs_best"]) == ("good", None, None)
        else:
            expected = stats.ttest_rel(values, ERRORS["good"]).pvalue
            assert row["p_vs_best"] == pytest.approx(expected)
            assert row["pairs_vs_best"] == 3
    assert [standing(row) for row in leaderboard(results())] == [BEST, TIED, BEHIND]


def test_pairs_are_the_shared_seeds():
    rows = leaderboard([r for r in results() if r["method"] != "close" or r["seed"] > 0])
    close = next(row for row in rows if row["method"] == "close")
    assert (close["seeds"], close["pairs_vs_best"]) == (2, 2)
    assert close["p_vs_best"] == pytest.approx(stats.ttest_rel((31.2, 29.9), (31.0, 29.5)).pvalue)
    rows = leaderboard([r for r in results() if r["method"] != "bad" or r["seed"] == 1])
    bad = next(row for row in rows if row["method"] == "bad")
    assert (bad["seeds"], bad["pairs_vs_best"], bad["p_vs_best"]) == (1, 1, None)
    assert bad["error_pct_ci95"] is bad["error_pct_std"] is None
    assert standing(bad) == BEHIND


def test_differences_without_variance_have_a_p_value():
    ours = {0: 10.0, 1: 12.0, 2: 11.0}
    assert paired_test(ours, ours) == (1.0, 3)
    shifted = {seed: value + 0.1 for seed, value in ours.items()}  # rounding differs by seed
    assert paired_test(ours, shifted) == (0.25, 3)
    assert paired_test({0: 1.0, 1: 2.0}, {0: 2.0, 1: 3.0}) == (0.5, 2)
    assert paired_test({0: 1.0}, {0: 2.0, 1: 3.0}) == (None, 1)
    assert paired_test({0: 1.0}, {1: 3.0}) == (None, 0)
    assert interval([3.0]) == (3.0, None)


def test_several_runs_of_a_seed_count_as_their_mean():
    again = result("good", 0, 39.0, 41.0, device="cuda", run_id="again")
    row = next(r for r in leaderboard([*results(), again]) if r["method"] == "good")
    assert row["seeds"] == 3
    assert row["error_pct"] == pytest.approx(np.mean([35.0, 31.0, 29.5]))
    assert row["error_pct_fog"] == pytest.approx(np.mean([34.0, 30.0, 28.5]))


def test_retention_and_worst_domain():
    row = leaderboard(results())[0]
    # Accuracy 90, 89, 88 after the run, 90 before it.
    assert row["retention_pct"] == pytest.approx(100 * np.mean([90, 89, 88]) / 90)
    assert (row["worst_domain"], row["worst_domain_error_pct"]) == (
        "snow",
        pytest.approx(31.1667, abs=1e-4),
    )
    lost = [result("a", 0, 1.0, 2.0, source_clean_error_pct=100.0, clean_error_pct=100.0)]
    lost += [result("b", 0, 1.0, 2.0, clean_error_pct=None)]
    assert [r["retention_pct"] for r in leaderboard(lost)] == [None, None]


def test_tuned_and_untuned_are_two_entries():
    tuned = {"tuned_trials": 8, "tuned_on": "q-v1 (0123456789ab)"}
    other = {"tuned_trials": 8, "tuned_on": "q-v1 (ffff)"}
    runs = [result("a", s, 20.0 + s, 20.0, **kind) for s in (0, 1) for kind in ({}, tuned, other)]
    rows = leaderboard(runs)
    assert [(row["seeds"], row["rank"]) for row in rows] == [(2, 1), (2, 2), (2, 3)]
    assert {row["tuned_on"] for row in rows} == {None, tuned["tuned_on"], other["tuned_on"]}
    assert {row["tuned_trials"] for row in rows} == {None, 8}


# Columns ----------------------------------------------------------------------------------------


def everything() -> list[dict]:
    """Rows that have every column."""
    words = {name: kind for name, (kind, _) in COLUMNS.items() if name not in (DOMAIN, "config")}
    values = {"int": 3, "float": 12, "str": 'x, "y"'}
    full = {name: values[kind] for name, kind in words.items()}
    runs = [
        {**full, **result(m, s, e, e + 1, severity="5,3")}
        for m, e in (("a", 10), ("b", 20), ("c", 20.001))
        for s in (0, 1, 2)
    ]
    runs[4]["error_pct"] = 21.0  # differences of unequal size: a small p
    return leaderboard(runs)


def test_the_header_is_frozen():
    """Another name, place or column is another LEADERBOARD_VERSION and another golden line."""
    frozen = dict(line.split(",", 1) for line in GOLDEN.read_text().splitlines())
    now = to_csv(everything()).splitlines()[0]
    assert str(LEADERBOARD_VERSION) == list(frozen)[-1], "add a line for the new version"
    assert now == frozen[str(LEADERBOARD_VERSION)], "columns changed: raise LEADERBOARD_VERSION"


def test_every_column_is_documented_and_every_row_has_them():
    rows = everything()
    names = columns(rows)
    assert len(names) == len(set(names))
    for name in names:
        assert column_type(name) in ("int", "float", "str")
    for row in rows:
        assert set(row) <= set(names)
    with pytest.raises(KeyError):
        column_type("no_such_column")
    assert columns_page() in (DOCS / "leaderboard.md").read_text("utf-8")


def loaded_types(path: Path) -> dict[str, dict[str, str]]:
    """Type of every column as each library infers it."""
    pandas_types = {"Int64": "int", "Float64": "float", "string": "str"}
    polars_types = {polars.Int64: "int", polars.Float64: "float", polars.String: "str"}
    duckdb_types = {"BIGINT": "int", "DOUBLE": "float", "VARCHAR": "str"}
    table = pandas.read_csv(path, dtype_backend="numpy_nullable")
    found = duckdb.sql(f"DESCRIBE SELECT * FROM read_csv('{path}')").fetchall()
    return {
        "pandas": {name: pandas_types[str(kind)] for name, kind in table.dtypes.items()},
        "polars": {n: polars_types[kind] for n, kind in polars.read_csv(path).schema.items()},
        "duckdb": {name: duckdb_types[kind] for name, kind, *_ in found},
    }


def test_csv_loads_with_the_documented_types(tmp_path: Path):
    rows = everything()
    export(rows, tmp_path / "l.csv")
    expected = {name: column_type(name) for name in columns(rows)}
    for library, types in loaded_types(tmp_path / "l.csv").items():
        assert types == expected, library
    table = polars.read_csv(tmp_path / "l.csv")
    assert table["p_vs_best"].null_count() == 1
    assert table["p_vs_best"].drop_nulls().to_list() == pytest.approx(
        [row["p_vs_best"] for row in rows[1:]], rel=1e-9
    )


def test_an_empty_column_is_empty_in_all_three(tmp_path: Path):
    rows = leaderboard(results())
    export(rows, tmp_path / "l.csv")
    empty = [name for name in columns(rows) if all(row.get(name) is None for row in rows)]
    assert "auroc_pct" in empty
    assert pandas.read_csv(tmp_path / "l.csv")[empty].isna().all(axis=None)
    kinds = {"int": polars.Int64, "float": polars.Float64, "str": polars.String}
    schema = {name: kinds[column_type(name)] for name in columns(rows)}
    table = polars.read_csv(tmp_path / "l.csv", schema=schema)
    assert dict(table.schema) == schema
    assert all(table[name].null_count() == len(rows) for name in empty)
    found = duckdb.sql(f"SELECT * FROM read_csv('{tmp_path / 'l.csv'}')").pl()
    assert all(found[name].null_count() == len(rows) for name in empty)


# Files ------------------------------------------------------------------------------------------


def test_markdown(tmp_path: Path):
    export(leaderboard(results()), tmp_path / "l.md")
    lines = (tmp_path / "l.md").read_text("utf-8").splitlines()
    assert "| 1 | good | 30.17 ± 1.90 | 3 | 60.00 | 11.00 | 29.17 | 31.17 |" in lines
    assert any(line.startswith("| 2 | close | 30.53 ± 1.62 ≈ |") for line in lines)
    assert {line.count("|") for line in lines if line.startswith("|")} == {9}


def test_latex(tmp_path: Path):
    rows = leaderboard([*results(), result("100%_{a}&b", 0, 70.0, 71.0)])
    export(rows, tmp_path / "l.tex")
    text = (tmp_path / "l.tex").read_text("utf-8")
    assert r"100\%\_\{a\}\&b" in text
    assert r"1 & good & \textbf{30.17 $\pm$ 1.90} &" in text
    assert r"2 & close & 30.53 $\pm$ 1.62 $\approx$ &" in text
    assert re.search(r"^3 & bad & 51\.17 \$\\pm\$ \d\.\d\d & 3", text, re.MULTILINE)
    for rule in (r"\toprule", r"\midrule", r"\bottomrule"):
        assert text.count(rule) == 1
    columns_said = re.search(r"\\begin\{tabular\}\{(\w+)\}", text)
    body = [line for line in text.splitlines() if line.endswith(r"\\")]
    assert {len(re.findall(r"(?<!\\)&", line)) + 1 for line in body} == {len(columns_said[1])}
    bare = re.sub(r"\\[{}]", "", text)
    assert bare.count("{") == bare.count("}")
    assert escape_tex("\\a^~$#±") == (
        r"\textbackslash{}a\textasciicircum{}\textasciitilde{}\$\#$\pm$"
    )


def test_html_stands_alone_and_escapes(tmp_path: Path):
    class Reader(HTMLParser):
        def __init__(self) -> None:
            super().__init__()
            self.open: list[str] = []
            self.cells = 0

        def handle_starttag(self, tag, attrs):
            assert not {"src", "href"} & {name for name, _ in attrs}
            if tag not in ("meta", "html"):
                self.open.append(tag)
            self.cells += tag == "td"

        def handle_endtag(self, tag):
            if tag != "html":
                assert self.open.pop() == tag

    rows = leaderboard([*results(), result("<script>alert(1)</script>", 0, 70.0, 71.0)])
    export(rows, tmp_path / "l.html")
    text = (tmp_path / "l.html").read_text("utf-8")
    reader = Reader()
    reader.feed(text)
    assert reader.open == []
    assert reader.cells == 4 * 8
    assert "&lt;script&gt;alert(1)" in text
    assert "http" not in text
    assert '<td class="best">30.17 ± 1.90</td>' in text


def test_the_command_writes_all_forms_and_refuses_others(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for number, row in enumerate(results()):
        folder = Path("r", str(number))
        folder.mkdir(parents=True)
        (folder / "result.json").write_text(json.dumps(row))
    names = ["l.csv", "l.md", "l.tex", "l.html"]
    words = [word for name in names for word in ("--export", name)]
    done = CliRunner().invoke(app, ["leaderboard", "r", *words])
    assert done.exit_code == 0, done.output
    assert "30.53 ± 1.62 ≈" in done.stdout
    assert all(Path(name).stat().st_size > 500 for name in names)
    refused = CliRunner().invoke(
        app, ["leaderboard", "r", "--export", "a.csv", "--export", "b.xls"]
    )
    assert refused.exit_code == 2
    assert "use .csv, .md, .tex or .html" in refused.stderr
    assert not Path("a.csv").exists()
    with pytest.raises(UsageError, match="cannot export"):
        export([], Path("l"))
