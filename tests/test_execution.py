import json

import pytest
import torch
from typer.testing import CliRunner

import tta
from benchmarks import layout as layouts
from benchmarks import steady
from benchmarks.cli import app
from benchmarks.runner import run
from benchmarks.spec import resolve
from benchmarks.steady import tiny_model
from tta import execution
from tta.backbones import Normalized, load


def spec(method="tent", **changes):
    given = {"num_examples": 40, "batch_size": 20, "corruptions": ("fog", "contrast")}
    return resolve(method, "fashion-mnist-c", **given | changes)


@pytest.fixture
def images():
    return torch.rand(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("layout", ["channels-last", "contiguous"])
def test_layout_changes_no_value(layout, images):
    model = load("fashion-resnet").model.double()
    before = model(images.double())
    execution.lay_out(model, layout)
    weight = next(p for p in model.parameters() if p.ndim == 4 and p.shape[1] > 1)
    assert weight.is_contiguous(memory_format=torch.channels_last) == (layout == "channels-last")
    assert execution.layout_of(model) == layout
    torch.testing.assert_close(model(images.double()), before, atol=1e-12, rtol=0)


@pytest.mark.parametrize(("last", "found"), [(0.9, "channels-last"), (0.97, "contiguous")])
def test_a_layout_must_be_clearly_faster(last, found, images, monkeypatch):
    def seconds(model, x):
        return last if execution.layout_of(model) == "channels-last" else 1.0

    monkeypatch.setattr(execution, "_seconds", seconds)
    model = load("fashion-resnet").model
    execution.lay_out(model, "contiguous")
    assert execution.faster_layout(model, images) == found
    assert execution.layout_of(model) == "contiguous"  # a copy was measured


def test_the_probe_is_made_once(images, monkeypatch, tmp_path):
    monkeypatch.setenv("TTA_BENCH_CACHE", str(tmp_path))
    model = load("fashion-resnet").model
    execution.lay_out(model, "contiguous")
    asked = []
    monkeypatch.setattr(
        execution, "faster_layout", lambda model, x: asked.append(len(x)) or "channels-last"
    )
    found = {layouts.resolved("auto", model, images, "net") for _ in range(3)}
    assert found == {"channels-last"}
    assert asked == [8]
    (file,) = (tmp_path / "layout").iterdir()
    file.write_text("{")  # damaged: asked again
    assert layouts.resolved("auto", model, images, "net") == "channels-last"
    assert len(asked) == 2
    assert json.loads(file.read_text())["layout"] == "channels-last"
    # Nothing is asked where it must not matter, or is known.
    assert layouts.resolved("auto", model.double(), images.double(), "net") == "own"
    assert layouts.resolved("contiguous", model, images, "other") == "contiguous"
    execution.lay_out(model, "channels-last")
    assert layouts.resolved("auto", model, images, "other") == "own"
    assert len(asked) == 2


def test_a_resumed_run_keeps_its_layout(tmp_path, monkeypatch):
    class StopError(Exception):
        pass

    def stop(done, total, error):
        if done == 2:
            raise StopError

    def asked(choice, model, x, name):
        return answers.pop(0)

    monkeypatch.setattr("benchmarks.runner.resolved", asked)
    answers = ["contiguous", "contiguous", "channels-last"]
    whole = run(spec(), tmp_path / "whole")
    with pytest.raises(StopError):
        run(spec(), tmp_path / "cut", checkpoint_seconds=0, progress=stop)
    resumed = run(spec(), tmp_path / "cut", resume=True)
    assert (whole["layout"], resumed["layout"]) == ("contiguous", "contiguous")
    assert resumed["nll"] == whole["nll"]


def test_layout_and_precision_in_the_row(tmp_path):
    plain = run(spec("source"), tmp_path)
    laid = run(spec("source", layout="contiguous"), tmp_path)
    half = run(spec("source", amp="bf16"), tmp_path)
    assert len({plain["run_id"], laid["run_id"], half["run_id"]}) == 3
    assert [row["layout"] for row in (plain, laid)] == ["channels-last", "contiguous"]
    assert [row["amp"] for row in (plain, half)] == [None, "bf16"]
    assert laid["nll"] == pytest.approx(plain["nll"], rel=1e-6)
    assert half["nll"] != plain["nll"]
    assert half["nll"] == pytest.approx(plain["nll"], rel=0.05)
    # The source model is measured in the precision of the run.
    assert half["source_error_pct"] == half["error_pct"]


@pytest.mark.parametrize("method", tta.list_adapters())
def test_every_method_under_autocast(method, images):
    model = load("fashion-resnet").model
    execution.set_precision(model, "bf16")
    if method == "foa":
        with pytest.raises(tta.AdapterError, match="VisionTransformer"):
            tta.wrap(model, method)
        return
    adapter = tta.wrap(model, method)
    if adapter.needs.source_data:
        labels = torch.arange(8) % 10
        adapter.fit_source([(images, labels) if adapter.needs.source_labels else images])
    for _ in range(2):
        logits = adapter(images)
    assert logits.dtype == torch.float32
    assert logits.isfinite().all()
    assert all(p.dtype == torch.float32 for p in adapter.parameters())


def test_learning_streams_refuse(tmp_path):
    words = ["run", "-m", "naive", "-s", "split-fashion-mnist", "--amp", "bf16"]
    ran = CliRunner().invoke(app, [*words, "--out", str(tmp_path)])
    assert ran.exit_code == 2
    assert "--amp has no effect on a learning stream" in ran.stderr


@pytest.mark.slow
@pytest.mark.parametrize("method", ["tent", "rotta"])
def test_compiled_equals_eager(method):
    torch.compiler.reset()
    options = {"capacity": 8} if method == "rotta" else {}
    model = Normalized(tiny_model(), (0.5,) * 3, (0.2,) * 3)
    eager, compiled = (tta.wrap(model, method, **options) for _ in "ab")
    execution.compile_(compiled)
    assert compiled.state_dict().keys() == eager.state_dict().keys()
    frames = torch._dynamo.utils.counters["frames"]
    for step in range(3):
        x = torch.rand(8, 3, 16, 16, generator=torch.Generator().manual_seed(step))
        torch.testing.assert_close(compiled(x), eager(x), atol=1e-4, rtol=1e-4)
    assert frames["ok"] > 0


def test_steady_keeps_what_is_measured(tmp_path, capsys):
    file = tmp_path / "steady.json"
    for names in (["source"], ["source", "tent"]):
        words = ["--steps", "110", "--json", str(file), "--method", *names]
        assert steady.main(words) == 0
    first, second = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert (first["method"], second["method"]) == ("source", "tent")
    assert json.loads(file.read_text()) == {"rows": [first, second]}
    assert second["late_ms"] > first["late_ms"] > 0
