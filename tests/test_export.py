"""Diffs: what arrives answers as what left; a wrong source is refused; damage is one line."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

import tta
from tta import export
from tta.adapter import Adapter
from tta.backbones import Normalized, load, weight_hash
from tta.errors import AdapterError
from tta.export_states import decode, encode, same_bits
from tta.factory import adapters


def make_model(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(3, 6, 3, padding=1),
            nn.BatchNorm2d(6),
            nn.ReLU(),
            nn.Conv2d(6, 8, 3, stride=2),
            nn.BatchNorm2d(8),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(8, 5),
        ).eval()


def make_vit() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return timm.create_model("test_vit", num_classes=5, img_size=32, depth=2).eval()


def images(key: int, count: int = 5, side: int = 32) -> Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(key))


def adapted(source: nn.Module, method: str, steps: int = 2, **options: Any) -> Adapter:
    adapter = tta.wrap(source, method, **options)
    if adapter.needs.source_data:
        batches = [images(100 + i) for i in range(4)]
        labels = torch.arange(5)
        adapter.fit_source(
            [(x, labels) for x in batches] if adapter.needs.source_labels else batches
        )
    for key in range(steps):
        adapter(images(key))
    return adapter


def same(left: Any, right: Any) -> bool:
    if isinstance(left, Tensor):
        return isinstance(right, Tensor) and same_bits(left, right)
    if isinstance(left, Mapping):
        return list(left) == list(right) and all(same(left[k], right[k]) for k in left)
    if isinstance(left, (list, tuple)):
        return type(left) is type(right) and len(left) == len(right) and all(map(same, left, right))
    return type(left) is type(right) and (left == right or (left != left and right != right))


def states(adapter: Adapter) -> dict[str, Any]:
    snapshot = adapter._snapshot()
    return {"tensors": snapshot["tensors"], "states": snapshot["states"]}


@pytest.mark.parametrize("method", tta.list_adapters())
def test_every_method_arrives_as_it_left(method, tmp_path):
    source = make_vit() if method == "foa" else make_model()
    options = dict(adapters.get(method).check_options[0])
    sent = adapted(source, method, **options)
    export.save(sent, source, tmp_path / "d.safetensors")
    got = export.load(tmp_path / "d.safetensors", source)
    assert same(states(got), states(sent))
    assert torch.equal(got.predict(images(9)), sent.predict(images(9)))
    # It adapts on from there, and goes back to where the sent one would.
    got.reset()
    sent.reset()
    assert same(states(got), states(sent))
    assert torch.equal(got(images(9)), sent(images(9)))
    export.undo(sent, source)
    assert same(states(sent), states(tta.wrap(source, method, **options)))


@pytest.mark.parametrize("norm", ["unmix-tns", "robust", "iabn"])
def test_replaced_layers_and_windows_travel(norm, tmp_path):
    source = make_model()
    options = {"components": 4} if norm == "unmix-tns" else {}
    sent = adapted(source, "tent", norm=norm, norm_options={"seed": 3, **options}, window=4)
    export.save(sent, source, tmp_path / "d")
    got = export.load(tmp_path / "d", source)
    assert same(states(got), states(sent))
    assert torch.equal(got(images(9, 3)), tta_step(sent, images(9, 3)))


def tta_step(adapter: Adapter, x: Tensor) -> Tensor:
    """The logits of a step from an optimiser without moments, as after a load."""
    adapter.optimizer.load_state_dict(adapter._initial["optimizers"]["optimizer"])
    return adapter(x)


def test_a_fresh_process_answers_bit_for_bit(tmp_path):
    """The shipped model adapted on fog, sent to a process that knows the source by name."""
    source = load("fashion-resnet").model
    sent = tta.wrap(source, "tent")
    for key in range(2):
        sent(images(key))
    file, out = tmp_path / "d.safetensors", tmp_path / "logits.safetensors"
    export.save(sent, source, file)
    code = (
        "import sys, torch\nfrom safetensors.torch import save_file\n"
        "from tta import export\nfrom tta.backbones import load\n"
        "torch.set_num_threads(1)\n"
        "adapter = export.load(sys.argv[1], load('fashion-resnet').model)\n"
        "x = torch.rand(5, 3, 32, 32, generator=torch.Generator().manual_seed(9))\n"
        "save_file({'logits': adapter.predict(x)}, sys.argv[2])\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, file, out],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(tta.__file__).parents[1],
    )
    assert done.returncode == 0, done.stderr
    with safe_open(out, "pt") as there:
        assert torch.equal(there.get_tensor("logits"), sent.predict(images(9)))
    # What tent moves is small: scale and shift of the normalisation layers.
    about = export.read(file).about
    assert file.stat().st_size < about.source_bytes / 10
    assert 0 < len(about.changes) < about.source_tensors


def test_the_description(tmp_path):
    source = Normalized(make_model(), (0.5,) * 3, (0.5,) * 3)
    sent = adapted(source, "tent", steps=3, lr=1e-2)
    export.save(sent, source, tmp_path / "d")
    about = export.read(tmp_path / "d").about
    assert about.source == weight_hash(source) == weight_hash(source.model)
    assert (about.method, about.steps, about.window) == ("tent", 3, 1)
    assert about.config["lr"] == 1e-2
    assert about.prefix == "model.model."
    own, base = sent.model.model.state_dict(), source.model.state_dict()
    assert set(about.changes) == {k for k in own if not torch.equal(own[k], base[k])}
    assert set(about.changes) == {"1.weight", "1.bias", "4.weight", "4.bias"}
    for name, (change, norm, _) in about.changes.items():
        assert change == pytest.approx(float((own[name] - base[name]).double().norm()))
        assert norm == pytest.approx(float(base[name].double().norm()))
    with safe_open(tmp_path / "d", "pt") as file:
        assert json.loads(file.metadata()["about"])["method"] == "tent"
    assert [p.name for p in tmp_path.iterdir()] == ["d"]


def test_nothing_adapted_is_an_empty_diff(tmp_path):
    source = make_model()
    export.save(tta.wrap(source, "tent"), source, tmp_path / "d")
    assert export.read(tmp_path / "d").tensors == {}
    got = export.load(tmp_path / "d", source)
    assert torch.equal(got.predict(images(0)), tta.wrap(source, "tent").predict(images(0)))


def test_a_state_put_around_the_method_stays_behind(tmp_path):
    source = make_model()
    sent = tta.wrap(source, "tent")
    sent.add_state("watch", [0])
    sent._initial = sent._snapshot()
    sent(images(0))
    sent.watch.append(1)
    export.save(sent, source, tmp_path / "d")
    got = export.load(tmp_path / "d", source)
    assert not hasattr(got, "watch")
    assert torch.equal(got.predict(images(9)), sent.predict(images(9)))
    export.undo(sent, source)
    assert sent.watch == [0]


def test_a_channels_last_teacher_keeps_its_layout(tmp_path):
    source = make_model().to(memory_format=torch.channels_last)
    sent = adapted(source, "cotta", num_views=2, lr=1e-2)
    export.save(sent, source, tmp_path / "d")
    got = export.load(tmp_path / "d", source)
    strides = {k: v.stride() for k, v in sent.teacher.items()}
    assert {k: v.stride() for k, v in got.teacher.items()} == strides
    assert torch.equal(got.predict(images(9)), sent.predict(images(9)))


def test_a_wrong_source_is_refused(tmp_path):
    source = make_model()
    sent = adapted(source, "tent")
    file = tmp_path / "d"
    export.save(sent, source, file)
    other = make_model(1)
    before = weight_hash(other)
    with pytest.raises(AdapterError, match=f"source weights {weight_hash(source)[:16]}, this"):
        export.load(file, other)
    assert weight_hash(other) == before
    almost = make_model()
    with torch.no_grad():
        almost[0].weight[0, 0, 0, 0] += 1e-7
    with pytest.raises(AdapterError, match="load it onto the model that was adapted"):
        export.load(file, almost)
    for call in (lambda: export.save(sent, other, file), lambda: export.undo(sent, other)):
        with pytest.raises(AdapterError, match=r"not made from this source model: 'model.0.bias'"):
            call()
    inplace = tta.wrap(other, "tent", inplace=True)
    with pytest.raises(AdapterError, match="the adapted one itself"):
        export.save(inplace, other, file)
    assert export.read(file).about.source == weight_hash(source)


def test_infinite_weights_are_not_shipped(tmp_path):
    source = make_model()
    sent = adapted(source, "tent")
    with torch.no_grad():
        sent.model[1].weight[0] = float("inf")
    with pytest.raises(AdapterError, match="holds NaN or infinite"):
        export.save(sent, source, tmp_path / "d")
    assert not list(tmp_path.iterdir())


def forge(path: Path, about: dict[str, Any] | None = None, **tensors: Tensor) -> Path:
    """A good diff with some of it replaced."""
    source = make_model()
    good = path.with_name("good")
    export.save(adapted(source, "t3a"), source, good)
    with safe_open(good, "pt") as file:
        said = file.metadata()
        kept = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    if about is not None:
        said["about"] = json.dumps(json.loads(said["about"]) | about)
    save_file(kept | {k.replace("__", "/"): v for k, v in tensors.items()}, path, said)
    return path


@pytest.mark.parametrize(
    ("about", "tensors", "words"),
    [
        ({"method": "no-such"}, {}, "unknown method 'no-such'"),
        ({"config": {"supports": -5}}, {}, "supports=-5 is out of range"),
        ({"config": {"inplace": True}}, {}, "unknown option 'inplace'"),
        ({"config": []}, {}, "description is damaged"),
        ({"window": "2"}, {}, "description is damaged"),
        ({"no_such_field": 1}, {}, "description is damaged"),
        ({"states": {"sums": {"tensor": "0" * 32}}}, {}, "state 'sums' is damaged"),
        ({"states": {"sums": {"pickle": [1]}}}, {}, "state 'sums' is damaged"),
        ({"states": {"no_such": 1}}, {}, "no state 'no_such'"),
        ({}, {"now__model.0.weight": torch.zeros(1)}, "does not fit t3a"),
        ({}, {"now__no.such": torch.zeros(1)}, "does not fit t3a"),
        ({}, {"other__x": torch.zeros(1)}, "holds 'other/x'"),
        ({"norm": "robust {}", "norm_layer": {}}, {}, "cannot be replaced"),
        (
            {},
            {"now__model.1.running_mean": torch.full((6,), float("nan"))},
            "'model.1.running_mean' holds NaN",
        ),
    ],
)
def test_a_forged_diff_is_one_line(about, tensors, words, tmp_path):
    path = forge(tmp_path / "d", about, **tensors)
    with pytest.raises(AdapterError, match=words) as caught:
        export.load(path, make_model())
    assert "\n" not in str(caught.value)


def test_files_that_are_no_diff(tmp_path):
    good = tmp_path / "good"
    source = make_model()
    export.save(adapted(source, "tent"), source, good)
    data = good.read_bytes()
    plain = tmp_path / "plain"
    save_file({"a": torch.zeros(1)}, plain)
    cases = {
        "missing": (None, "no such file"),
        "empty": (b"", "file is empty"),
        "cut": (data[:-4], "truncated or not a safetensors file"),
        "short": (data[:20], "truncated or not a safetensors file"),
        "text": (b"hello" * 10, "truncated or not a safetensors file"),
    }
    for name, (content, words) in cases.items():
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(AdapterError, match=words) as caught:
            export.read(tmp_path / name)
        assert "\n" not in str(caught.value)
    with pytest.raises(AdapterError, match="not a diff of this version"):
        export.read(plain)
    save_file({"a": torch.zeros(1)}, plain, {"format": export.FORMAT, "about": "{"})
    with pytest.raises(AdapterError, match="description is damaged"):
        export.read(plain)


def test_states_survive_and_pickles_do_not():
    value = {
        "a": [1, 2.5, float("inf"), None, True, "x", (1, [torch.arange(3)])],
        3: {"nan": torch.tensor([float("nan"), -0.0])},
        "twice": [torch.ones(2), torch.ones(2)],
    }
    stored: dict[str, Tensor] = {}
    written = json.loads(json.dumps(encode(value, stored)))
    assert len(stored) == 3
    assert same(decode(written, stored), value)
    with pytest.raises(TypeError, match="without pickling"):
        encode({"a": object()}, {})
