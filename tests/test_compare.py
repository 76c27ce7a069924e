"""Why two numbers differ: each of the six usual causes is named, and nothing else with it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import benchmarks
import tta
from benchmarks.cli import app
from benchmarks.compare import compare
from benchmarks.compare_cli import load_run
from benchmarks.compare_words import USUALLY
from benchmarks.errors import UsageError

SMALL = {"num_examples": 30, "batch_size": 15, "corruptions": ("fog", "contrast")}
STREAM = "fashion-mnist-c"


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Real runs: a plain one, and for each cause one that differs in it alone."""
    root = tmp_path_factory.mktemp("compare")
    patch = pytest.MonkeyPatch()
    patch.setenv("TTA_BENCH_CACHE", str(root / "cache"))
    other = load_file(Path(tta.__file__).parent / "weights" / "fashion_resnet.safetensors")
    generator = torch.Generator().manual_seed(0)
    name = next(key for key, value in other.items() if value.ndim == 4)
    other[name] = other[name] + 0.01 * torch.randn(other[name].shape, generator=generator)
    save_file(other, root / "other.safetensors")
    half = (0.5, 0.5, 0.5)
    runs: dict[str, tuple[str, dict[str, Any]]] = {
        "plain": ("tent", {}),
        "normalisation": ("tent", {"mean": half, "std": half}),
        "subset size": ("tent", {"num_examples": 45}),
        "reset policy": ("tent", {"setting": "reset"}),
        "learning rate": ("tent", {"options": {"lr": 1e-2}}),
        "weights": ("tent", {"checkpoint": str(root / "other.safetensors")}),
        "seed": ("tent", {"seed": 1}),
        "batch size": ("tent", {"batch_size": 10}),
        "norm": ("norm", {}),
        "BN mode": ("norm", {"options": {"statistics": "ema"}}),
    }
    for name, (method, changed) in runs.items():
        spec = benchmarks.resolve(method, STREAM, **{**SMALL, **changed})
        benchmarks.run(spec, root / "all")
        (folder,) = [f for f in (root / "all").iterdir() if f.is_dir() and f.name != "named"]
        folder.rename(root / name.replace(" ", "-"))
    patch.undo()
    shutil.rmtree(root / "all")
    return root


def named(results: Path, a: str, b: str):
    (row_a, spec_a), (row_b, spec_b) = (load_run(str(results / name)) for name in (a, b))
    return compare(row_a, row_b, spec_a, spec_b)


SIX = ("normalisation", "subset size", "reset policy", "BN mode", "learning rate", "weights")


@pytest.mark.parametrize("cause", [*SIX, "seed", "batch size"])
def test_the_cause_is_named_and_no_other(results: Path, cause: str) -> None:
    plain = "norm" if cause == "BN mode" else "plain"
    for pair in ((plain, cause.replace(" ", "-")), (cause.replace(" ", "-"), plain)):
        found = named(results, *pair)
        assert [c.kind for c in found.causes] == [cause]
        assert found.verdict.startswith(f"One cause: {cause}.")


@pytest.mark.parametrize("cause", SIX)
def test_rows_alone_name_the_same_cause(results: Path, cause: str) -> None:
    """A store keeps no specs: what the rows say is enough for the six."""
    plain = "norm" if cause == "BN mode" else "plain"
    rows = [load_run(str(results / name))[0] for name in (plain, cause.replace(" ", "-"))]
    assert [c.kind for c in compare(*rows).causes] == [cause]


def test_what_is_said_of_a_cause(results: Path) -> None:
    (rate,) = named(results, "plain", "learning-rate").causes
    assert rate.says == "lr 0.001 (default) against 0.01"
    (subset,) = named(results, "plain", "subset-size").causes
    assert subset.says == "30 against 45 distinct images"
    (reset,) = named(results, "plain", "reset-policy").causes
    assert reset.says == "never against every domain"
    (mode,) = named(results, "norm", "BN-mode").causes
    assert mode.says == "statistics test (default) against ema"
    (constants,) = named(results, "plain", "normalisation").causes
    assert "mean=(0.5, 0.5, 0.5)" in constants.says
    (weights,) = named(results, "plain", "weights").causes
    assert "file other.safetensors" in weights.says


def test_normalisation_moves_the_source_model_too(results: Path) -> None:
    """The kept errors of the source model are told apart by it, though the weights are equal."""
    source = named(results, "plain", "normalisation").source
    assert source.points
    assert (
        load_run(str(results / "plain"))[0]["weight_hash"]
        == (load_run(str(results / "normalisation"))[0]["weight_hash"])
    )


def test_equal_runs_and_runs_that_should_be_equal(results: Path) -> None:
    row, spec = load_run(str(results / "plain"))
    same = compare(row, row, spec, spec)
    assert not same.causes
    assert "equal, as they must be" in same.verdict
    odd = compare(row, {**row, "error_pct": row["error_pct"] + 1}, spec, spec)
    assert not odd.causes
    assert "it is a bug" in odd.verdict


def test_several_differences_are_ordered_by_weight(results: Path) -> None:
    found = named(results, "plain", "norm")
    assert [c.kind for c in found.causes] == ["method"]
    assert "logits from" in found.causes[0].says
    row, spec = load_run(str(results / "plain"))
    other, other_spec = load_run(str(results / "BN-mode"))
    other = {**other, "version_torch": "0", "dtype": "float64", "device": "cuda"}
    other |= {"num_examples": 10, "seed": 3, "provenance": "official"}
    other_spec = {**(other_spec or {}), "num_examples": 10}
    kinds = [c.kind for c in compare(row, other, spec, other_spec).causes]
    assert kinds == ["method", "subset size", "images", "dtype", "seed", "device", "versions"]
    assert kinds == [kind for kind in USUALLY if kind in kinds]


def test_rounding_alone_is_called_rounding(results: Path) -> None:
    row, spec = load_run(str(results / "plain"))
    other = {**row, "threads": 64, "version_torch": "0.0", "error_pct": row["error_pct"] + 0.1}
    found = compare(row, other, spec, spec)
    assert [c.kind for c in found.causes] == ["device", "versions"]
    assert "same work on another machine" in found.verdict


def test_other_differences(results: Path) -> None:
    row, spec = load_run(str(results / "plain"))

    def kinds(fields: dict[str, Any], changed: dict[str, Any] | None = None) -> list[str]:
        return [
            c.kind
            for c in compare(row, {**row, **fields}, spec, {**spec, **(changed or {})}).causes
        ]

    assert kinds({"stream": "cifar10-c", "provenance": "official", "stream_hash": "0"}) == [
        "stream"
    ]
    assert kinds({"setting": "mixed", "stream_hash": "0"}) == ["setting"]
    assert kinds({"stream_hash": "0"}, {"order": "rotta"}) == ["domains"]
    assert kinds({"stream_hash": "0"}, {"setting_options": {"delta": 1}}) == ["setting"]
    assert kinds({"stream_hash": "0"}) == ["images"]
    assert kinds({"stream_hash": "0", "provenance": "official"}) == ["images"]
    assert kinds({"predicts": "after the update"}) == ["logits"]
    assert kinds({"norm": "robust"}, {"norm": "robust"}) == ["BN mode"]
    assert kinds({"backbone": "b", "weight_hash": "0", "normalisation": "x"}) == ["backbone"]
    assert kinds({"source_data": "2000 images"}) == ["source data"]
    assert kinds({"open_set": "noise"}, {"open_set": "noise"}) == ["open set"]
    config = {**json.loads(row["config"]), "episodic": True}
    assert kinds({"config": json.dumps(config)}) == ["reset policy"]
    assert kinds({"num_examples": 31, "seed": 1, "stream_hash": "0"}) == ["seed"]


def test_a_chosen_normalisation_is_part_of_a_run_and_the_usual_one_is_not() -> None:
    plain = benchmarks.resolve("tent", STREAM)
    assert plain.identity() == plain.model_copy(update={"mean": None}).identity()
    assert plain.identity() != benchmarks.resolve("tent", STREAM, mean=(0.5, 0.5, 0.5)).identity()
    again = benchmarks.RunSpec(**json.loads(plain.model_dump_json()))
    assert again.identity() == plain.identity()


def test_the_command(results: Path) -> None:
    done = CliRunner().invoke(
        app, ["compare", str(results / "plain"), str(results / "reset-policy")]
    )
    assert done.exit_code == 0, done.output
    assert "1. reset policy: never against every domain" in done.stdout
    assert "One cause: reset policy" in done.stdout
    assert done.stdout.index("A  tent on") < done.stdout.index("B  tent on")
    start = load_run(str(results / "learning-rate"))[0]["run_id"][:10]
    done = CliRunner().invoke(
        app, ["compare", str(results / "plain" / "result.json"), f"{results}:{start}", "--json"]
    )
    assert [c["kind"] for c in json.loads(done.stdout)["causes"]] == ["learning rate"]


def test_a_run_that_cannot_be_found(results: Path, tmp_path: Path) -> None:
    unfinished = tmp_path / "tent-x"
    unfinished.mkdir()
    (unfinished / "spec.json").write_text("{}")
    wrong = {
        str(unfinished): "not finished",
        str(results): "several runs or none",
        f"{results}:zz": "starts with 'zz'",
        f"{results}:": "begins 10 run ids",
        "nowhere": "is no run",
        "nowhere:ab": "is no run",
    }
    for word, said in wrong.items():
        with pytest.raises(UsageError, match=said):
            load_run(word)
        done = CliRunner().invoke(app, ["compare", word, str(results / "plain")])
        assert done.exit_code == 2
        assert len(done.stderr.strip().splitlines()) == 1
