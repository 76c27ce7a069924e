"""``run --export-diff`` and ``tta-bench diff``: what adaptation changed, and against what."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

import tta
from benchmarks.cli import app
from benchmarks.diff import compare, read_side
from benchmarks.errors import UsageError
from tta import export
from tta.backbones import load, weight_hash

RUN = ("run", "-s", "fashion-mnist-c", "--corruptions", "fog", "--num-examples", "20")


def cli(*words: object) -> str:
    done = CliRunner().invoke(app, [str(word) for word in words])
    assert done.exit_code == 0, done.output
    return done.output


def refused(*words: object) -> str:
    done = CliRunner().invoke(app, [str(word) for word in words])
    assert done.exit_code == 2, done.output
    [line] = done.stderr.strip().splitlines()
    return line


@pytest.fixture(scope="module")
def source():
    return load("fashion-resnet").model


@pytest.fixture(scope="module")
def files(source, tmp_path_factory):
    """Two diffs of tent, and the whole adapted model as a checkpoint."""
    folder = tmp_path_factory.mktemp("diffs")
    for steps in (1, 2):
        adapter = tta.wrap(source, "tent")
        for key in range(steps):
            x = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(key))
            adapter(x)
        export.save(adapter, source, folder / f"{steps}.safetensors")
    save_file(adapter.model.model.state_dict(), folder / "whole.safetensors")
    save_file(source.model.state_dict(), folder / "source.safetensors")
    return folder


def state(path: Path) -> dict[str, torch.Tensor]:
    return dict(read_side(str(path)).tensors)


def test_a_diff_against_its_source(files, source):
    found = compare(read_side(str(files / "2.safetensors")), read_side("fashion-resnet"))
    base = source.model.state_dict()
    own = state(files / "whole.safetensors")
    gaps = {k: float((own[k] - base[k]).double().norm()) for k in base if k in own}
    moved = {k for k, gap in gaps.items() if gap}
    assert {layer["name"] for layer in found["layers"]} == moved
    assert found["changed"] == len(moved)
    for layer in found["layers"]:
        assert layer["l2"] == pytest.approx(gaps[layer["name"]])
        norm = float(base[layer["name"]].double().norm())
        assert layer["relative"] == (pytest.approx(gaps[layer["name"]] / norm) if norm else None)
    sizes = [layer["l2"] for layer in found["layers"]]
    assert sizes == sorted(sizes, reverse=True)
    total = sum(gap**2 for gap in gaps.values()) ** 0.5
    whole = sum(float(v.double().square().sum()) for v in base.values()) ** 0.5
    assert found["l2"] == pytest.approx(total)
    assert found["relative"] == pytest.approx(total / whole)
    assert found["source"] == weight_hash(source)
    assert found["states"] == ["num_steps"]
    assert found["bytes_a"] == (files / "2.safetensors").stat().st_size < found["bytes_b"] / 10
    assert (found["only_a"], found["only_b"]) == ([], [])


def test_the_same_by_other_ways(files):
    said = compare(read_side(str(files / "2.safetensors")), read_side("fashion-resnet"))
    for a, b in (
        ("2.safetensors", "source.safetensors"),
        ("source.safetensors", "2.safetensors"),
        ("whole.safetensors", "source.safetensors"),
    ):
        found = compare(read_side(str(files / a)), read_side(str(files / b)))
        assert found["layers"] == said["layers"]
        assert found["l2"] == said["l2"]
    whole = compare(read_side(str(files / "whole.safetensors")), read_side("fashion-resnet"))
    assert whole["layers"] == said["layers"]


def test_two_diffs(files):
    one, two = (read_side(str(files / f"{n}.safetensors")) for n in (1, 2))
    found = compare(one, two)
    for layer in found["layers"]:
        gap = one.tensors[layer["name"]] - two.tensors[layer["name"]]
        assert layer["l2"] == pytest.approx(float(gap.double().norm()))
    assert found["changed"] > 0
    assert compare(one, one)["changed"] == 0
    assert found["states"] == ["num_steps"]


def test_a_tensor_that_one_diff_alone_has(files, source, tmp_path):
    export.save(tta.wrap(source, "tent"), source, tmp_path / "none")
    none, two = read_side(str(tmp_path / "none")), read_side(str(files / "2.safetensors"))
    against = compare(two, read_side("fashion-resnet"))
    for pair in ((none, two), (two, none)):
        found = compare(*pair)
        assert [x["name"] for x in found["layers"]] == [x["name"] for x in against["layers"]]
        assert found["l2"] == pytest.approx(against["l2"])
        assert found["relative"] == pytest.approx(against["relative"])


def test_another_source_is_refused(files, source, tmp_path):
    diff = str(files / "1.safetensors")
    assert "not against fashion-resnet-gn" in refused("diff", diff, "fashion-resnet-gn")
    other = {k: v.clone() for k, v in source.model.state_dict().items()}
    name = next(iter(read_side(diff).tensors))
    other[name] += 1
    save_file(other, tmp_path / "other.safetensors")
    assert "was made against the source" in refused("diff", diff, tmp_path / "other.safetensors")
    gn = load("fashion-resnet-gn").model
    adapter = tta.wrap(gn, "tent")
    adapter(torch.rand(2, 3, 32, 32))
    export.save(adapter, gn, tmp_path / "gn")
    assert "they cannot be compared" in refused("diff", diff, tmp_path / "gn")


def test_words_that_name_nothing(files, tmp_path):
    diff = files / "1.safetensors"
    assert "no such file" in refused("diff", tmp_path / "a.safetensors", diff)
    assert "did you mean 'fashion-resnet'" in refused("diff", diff, "fashion-resnt")
    (tmp_path / "bad.safetensors").write_bytes(diff.read_bytes()[:99])
    assert "truncated" in refused("diff", tmp_path / "bad.safetensors", diff)
    save_file({"x": torch.zeros(1)}, tmp_path / "x.safetensors")
    assert "no tensor in common" in refused("diff", tmp_path / "x.safetensors", "fashion-resnet")
    bent = {
        k: v.repeat(2) if v.ndim == 1 else v for k, v in state(files / "source.safetensors").items()
    }
    save_file(bent, tmp_path / "bent.safetensors")
    line = refused("diff", tmp_path / "bent.safetensors", files / "source.safetensors")
    assert "these are different models" in line


def test_from_a_run_to_an_audit(tmp_path, monkeypatch, source):
    monkeypatch.chdir(tmp_path)
    file = Path("out/fog.safetensors")
    cli(*RUN, "-m", "tent", "--export-diff", file)
    about = export.read(file).about
    assert (about.method, about.steps, about.source) == ("tent", 1, weight_hash(source))
    text = cli("diff", file, "fashion-resnet")
    assert f"{len(about.changes)} of {about.source_tensors} tensors differ" in text
    assert "largest changes" in text
    assert "states that differ: num_steps" in text
    said = json.loads(cli("diff", file, "fashion-resnet", "--json"))
    assert said["changed"] == len(about.changes)
    # Another run like it changes the same, bit for bit.
    cli(*RUN, "-m", "tent", "--overwrite", "--export-diff", "again")
    assert json.loads(cli("diff", file, "again", "--json"))["changed"] == 0
    assert "0 of" in cli("diff", file, "again")
    line = refused(*RUN, "-m", "tent", "--export-diff", "third")
    assert "--overwrite runs it again" in line
    assert not Path("third").exists()


def test_what_export_diff_refuses(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "these are 2 runs" in refused(*RUN, "-m", "source,tent", "--export-diff", "d")
    assert "these are 2 runs" in refused(*RUN, "-m", "tent", "--seed", "0,1", "--export-diff", "d")
    Path("file").write_text("")
    assert "cannot write" in refused(*RUN, "-m", "tent", "--export-diff", "file/d")
    words = ("run", "-m", "naive", "-s", "split-fashion-mnist", "--export-diff", "d")
    assert "has no effect on a learning stream" in refused(*words)
    assert not Path("d").exists()


def test_a_side_is_read_once_as_what_it_is(files):
    with pytest.raises(UsageError, match="no such file"):
        read_side(str(files))
    assert read_side(str(files / "whole.safetensors")).diff is None
    assert read_side(str(files / "1.safetensors")).diff is not None
