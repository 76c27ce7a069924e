from __future__ import annotations

import os
import pickle
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from streams.readers import idx
from tta import backbone_timm, backbones
from tta.architectures import CifarResNet
from tta.backbones import Normalized, load, read_checkpoint, weight_hash
from tta.embedded import EMBEDDED
from tta.errors import BackboneError

DATA = Path(idx.__file__).parents[1] / "sources" / "data" / "fashion_mnist"


@pytest.fixture(scope="module")
def cifar_state():
    torch.manual_seed(0)
    return CifarResNet(20).state_dict()


@pytest.fixture
def cifar_file(tmp_path, cifar_state):
    path = tmp_path / "resnet20-public.th"
    public = {f"module.{k}".replace("fc.", "linear."): v for k, v in cifar_state.items()}
    torch.save({"state_dict": public, "best_prec1": 91.7}, path)
    return path


def refusal(call, *args, **kwargs) -> str:
    with pytest.raises(BackboneError) as caught:
        call(*args, **kwargs)
    message = str(caught.value)
    assert "\n" not in message
    assert message
    return message


# --- the shipped models -------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(EMBEDDED))
def test_shipped_model_is_as_good_as_its_entry_says(name):
    backbone = load(name)
    entry = EMBEDDED[name]
    assert backbone.weights == f"shipped {entry.file}, trained on Fashion-MNIST"
    assert not backbone.model.training
    assert sum(p.numel() for p in backbone.model.parameters()) < 500_000
    assert (Path(backbones.__file__).parent / "weights" / entry.file).stat().st_size <= 2_000_000

    images = idx.read_images(DATA / "t10k-images-idx3-ubyte.gz")[:2000]
    labels = idx.read_labels(DATA / "t10k-labels-idx1-ubyte.gz")[:2000]
    x = torch.from_numpy(np.pad(images, ((0, 0), (2, 2), (2, 2))))[:, None].expand(-1, 3, -1, -1)
    with torch.no_grad():
        logits = torch.cat([backbone.model(part / 255.0) for part in x.split(500)])
    error = float((logits.argmax(1).numpy() != labels).mean())
    assert error < 0.09
    assert entry.source_error_pct <= 8.0
    assert logits.shape == (2000, backbone.num_classes)


def test_shipped_models_have_the_two_kinds_of_norm_and_timm_groups():
    from timm.models import group_parameters

    kinds = {"fashion-resnet": nn.BatchNorm2d, "fashion-resnet-gn": nn.GroupNorm}
    for name, kind in kinds.items():
        inner = load(name).model.model
        norms = [m for m in inner.modules() if isinstance(m, nn.BatchNorm2d | nn.GroupNorm)]
        assert norms
        assert all(isinstance(m, kind) for m in norms)
        groups = group_parameters(inner, inner.group_matcher(coarse=True))
        assert len(groups) >= 5  # stem, four stages, head
        assert inner.pretrained_cfg["mean"] == EMBEDDED[name].mean


def test_catalogue_lists_names_without_torch():
    code = (
        "import sys; from tta.embedded import names; print(*names());"
        "sys.exit('torch' in sys.modules or 'timm' in sys.modules)"
    )
    root = Path(backbones.__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=root, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == backbones.list_backbones() == sorted(EMBEDDED)


def test_new_classifier_is_drawn_from_the_seed_alone():
    before = torch.random.get_rng_state()
    one, same, other = (load("fashion-resnet", num_classes=7, seed=s) for s in (1, 1, 2))
    assert torch.equal(before, torch.random.get_rng_state())
    assert one.num_classes == 7
    assert one.weights.endswith("new random classifier of 7 classes")
    assert one.weight_hash == same.weight_hash != other.weight_hash
    stem = "model.stem.conv.weight"
    assert torch.equal(one.model.state_dict()[stem], other.model.state_dict()[stem])


# --- normalisation and hash ---------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_normalisation_uses_the_literals_in_the_dtype_of_the_input(dtype):
    model = Normalized(nn.Identity(), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)).to(dtype)
    x = torch.rand(2, 3, 4, 4, dtype=dtype)
    mean = torch.tensor([0.485, 0.456, 0.406], dtype=dtype)[:, None, None]
    std = torch.tensor([0.229, 0.224, 0.225], dtype=dtype)[:, None, None]
    assert torch.equal(model(x), (x - mean) / std)
    assert not model.state_dict()


def test_normalisation_first_used_in_inference_mode_still_trains_later():
    model = Normalized(nn.Conv2d(3, 2, 1), (0.5,) * 3, (0.5,) * 3)
    x = torch.rand(1, 3, 4, 4)
    with torch.inference_mode():
        model(x)
    x.requires_grad_()
    model(x).sum().backward()
    assert x.grad is not None


def test_channels_last_changes_the_layout_and_not_the_numbers():
    backbone = load("fashion-resnet")
    model = backbone.model.double()
    x = torch.rand(3, 3, 32, 32, dtype=torch.float64)
    with torch.no_grad():
        fast = model(x)
        model.channels_last = False
        torch.testing.assert_close(model(x), fast, rtol=1e-10, atol=1e-10)
    assert all(p.is_contiguous() for p in model.parameters())


def test_hash_is_stable_and_sees_every_tensor():
    def build() -> nn.Sequential:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))

    model = build()
    expected = weight_hash(model)
    assert len(expected) == 64
    assert weight_hash(build()) == expected
    assert weight_hash(Normalized(model, (0.0,) * 3, (1.0,) * 3)) == expected
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        changed = build()
        with torch.no_grad():
            changed.state_dict()[name].add_(1)
        assert weight_hash(changed) != expected, f"{name} {tuple(tensor.shape)}"
    assert weight_hash(model.to(torch.bfloat16)) != expected


# --- files --------------------------------------------------------------------------------------


def test_cifar_resnet_from_a_public_checkpoint(cifar_file, cifar_state):
    backbone = load("cifar-resnet20", checkpoint=cifar_file)
    assert backbone.weights == "file resnet20-public.th"
    assert backbone.mean == (0.485, 0.456, 0.406)
    assert backbone.input_size == (32, 32)
    model = CifarResNet(20)
    model.load_state_dict(cifar_state)
    assert backbone.weight_hash == weight_hash(model)
    other = load("cifar-resnet20", checkpoint=cifar_file, mean=(0.5,) * 3, std=(0.25,) * 3)
    assert (other.mean, other.std) == ((0.5,) * 3, (0.25,) * 3)
    assert other.weight_hash == backbone.weight_hash


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".th", ".bin", ".tar", ".safetensors"])
@pytest.mark.parametrize("envelope", [None, "state_dict", "model", "model_state_dict"])
def test_read_checkpoint_unwraps_and_strips(tmp_path, suffix, envelope):
    state = {"module._orig_mod.a.weight": torch.ones(2), "module._orig_mod.b": torch.zeros(1)}
    path = tmp_path / f"weights{suffix}"
    if suffix == ".safetensors":
        from safetensors.torch import save_file

        save_file(state, path)
    else:
        torch.save(state if envelope is None else {envelope: state, "epoch": 3}, path)
    assert set(read_checkpoint(path)) == {"a.weight", "b"}


def test_a_prefix_that_only_some_keys_have_is_part_of_the_name(tmp_path):
    torch.save({"module.a": torch.ones(1), "b": torch.ones(1)}, tmp_path / "w.pt")
    assert set(read_checkpoint(tmp_path / "w.pt")) == {"module.a", "b"}


class Malicious:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("protocol", ["zip", "legacy", "pickle"])
def test_a_checkpoint_that_would_run_code_is_refused(tmp_path, protocol):
    target, path = tmp_path / "executed", tmp_path / "evil.pt"
    content = {"state_dict": {"w": torch.ones(1)}, "extra": Malicious(target)}
    if protocol == "pickle":
        path.write_bytes(pickle.dumps({"extra": Malicious(target)}))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=protocol == "zip")
    message = refusal(read_checkpoint, path)
    assert "refused" in message
    assert "state_dict" in message
    assert not target.exists()
    refusal(load, "cifar-resnet20", checkpoint=path)
    assert not target.exists()


def test_broken_files_are_named_for_what_they_are(tmp_path, cifar_file, cifar_state):
    from safetensors.torch import save_file

    def file(name: str, content: bytes) -> Path:
        path = tmp_path / name
        path.write_bytes(content)
        return path

    assert "no such file" in refusal(read_checkpoint, tmp_path / "absent.pt")
    assert "a folder" in refusal(read_checkpoint, tmp_path)
    assert "empty" in refusal(read_checkpoint, file("a.pt", b""))
    assert "web page" in refusal(read_checkpoint, file("b.pt", b"\n<!DOCTYPE html><html>"))
    assert "web page" in refusal(read_checkpoint, file("b.safetensors", b"<html><body>no"))
    lfs = b"version https://git-lfs.github.com/spec/v1\n"
    assert "git lfs pull" in refusal(read_checkpoint, file("c.bin", lfs))
    assert ".safetensors" in refusal(read_checkpoint, file("d.ckpt2", b"abc"))
    whole = cifar_file.read_bytes()
    for cut in (3, 40, len(whole) // 2, len(whole) - 10):
        assert "truncated" in refusal(read_checkpoint, file("e.pt", whole[:cut]))
    save_file(cifar_state, tmp_path / "f.safetensors")
    whole = (tmp_path / "f.safetensors").read_bytes()
    for cut in (3, 40, len(whole) // 2, len(whole) - 10):
        assert "truncated" in refusal(read_checkpoint, file("g.safetensors", whole[:cut]))
    assert "truncated or not" in refusal(read_checkpoint, file("h.pt", b"hello world"))
    torch.save({"epoch": 1}, tmp_path / "i.pt")
    assert "holds no tensors ('epoch')" in refusal(read_checkpoint, tmp_path / "i.pt")
    torch.save([1, 2], tmp_path / "j.pt")
    assert "holds no tensors (list)" in refusal(read_checkpoint, tmp_path / "j.pt")


def test_a_file_of_another_model_is_told_by_its_keys(tmp_path, cifar_state):
    def message(state, **options) -> str:
        torch.save(state, tmp_path / "w.pt")
        return refusal(load, "cifar-resnet20", checkpoint=tmp_path / "w.pt", **options)

    text = message(cifar_state, num_classes=100)
    assert "'fc.weight' is (10, 64) in the file, (100, 64) in the model" in text
    short = {k: v for k, v in cifar_state.items() if k != "conv1.weight"}
    assert "'conv1.weight' (16, 3, 3, 3) is missing" in message(short)
    text = message(CifarResNet(32).state_dict())
    assert "'layer1.3.conv1.weight' (16, 16, 3, 3) is not in the model" in text
    assert " more;" in text
    broken = {**cifar_state, "conv1.weight": cifar_state["conv1.weight"] * float("nan")}
    assert "NaN" in message(broken)


def test_old_checkpoints_without_batch_counters_load(tmp_path, cifar_state):
    old = {k: v for k, v in cifar_state.items() if not k.endswith("num_batches_tracked")}
    torch.save(old, tmp_path / "old.pt")
    assert load("cifar-resnet20", checkpoint=tmp_path / "old.pt").num_classes == 10


# --- timm and torchvision -----------------------------------------------------------------------


@pytest.mark.parametrize("name", ["test_vit", "test_efficientnet", "test_byobnet.r160_in1k"])
def test_timm_from_a_file(tmp_path, name):
    import timm

    torch.manual_seed(3)
    model = timm.create_model(name, pretrained=False, num_classes=5).eval()
    torch.save({"model": model.state_dict()}, tmp_path / "w.pth")
    backbone = load(f"timm:{name}", checkpoint=tmp_path / "w.pth")
    data = timm.data.resolve_model_data_config(model)
    assert (backbone.mean, backbone.std) == (data["mean"], data["std"])
    assert backbone.num_classes == 5
    assert backbone.input_size == (160, 160)
    assert backbone.interpolation == data["interpolation"]
    assert backbone.weight_hash == weight_hash(model)
    x = torch.rand(2, 3, 160, 160)
    mean, std = (torch.tensor(data[key])[:, None, None] for key in ("mean", "std"))
    with torch.no_grad():
        torch.testing.assert_close(backbone.model(x), model((x - mean) / std))


def test_timm_renames_an_older_layout(tmp_path):
    import timm

    model = timm.create_model("convnext_atto", pretrained=False, num_classes=4)
    # Only the stem and the head carry their old names: enough to need timm's filter.
    state = {
        key.replace("stem.", "downsample_layers.0.")
        .replace("head.norm.", "norm.")
        .replace("head.fc.", "head."): value
        for key, value in model.state_dict().items()
    }
    torch.save(state, tmp_path / "old.pth")
    backbone = load("timm:convnext_atto", checkpoint=tmp_path / "old.pth", num_classes=4)
    assert backbone.weight_hash == weight_hash(model)


def test_timm_takes_the_hub_cache_before_the_network(tmp_path, monkeypatch):
    import huggingface_hub
    import timm

    model = timm.create_model("test_byobnet", pretrained=False)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")

    def cached(repo: str, file_name: str) -> str | None:
        path = tmp_path / file_name
        return str(path) if repo == "timm/test_byobnet.r160_in1k" and path.is_file() else None

    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", cached)
    backbone = load("timm:test_byobnet")
    assert backbone.weights == "timm test_byobnet: timm/test_byobnet.r160_in1k"
    assert backbone.weight_hash == weight_hash(model)
    small = load("timm:test_byobnet", num_classes=3)
    assert small.num_classes == 3
    assert "new random classifier of 3 classes" in small.weights


@pytest.mark.parametrize("failing", ["probe", "download"])
def test_timm_without_network_says_what_to_fetch(monkeypatch, failing):
    import huggingface_hub
    import timm

    def fail(*_args, **_kwargs):
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_: None)
    if failing == "probe":
        monkeypatch.setattr(huggingface_hub.HfApi, "model_info", fail)
    else:
        monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda *_, **__: None)
        monkeypatch.setattr(timm, "create_model", fail)
    message = refusal(load, "timm:test_vit")
    assert "timm/test_vit.r160_in1k" in message
    assert "--checkpoint FILE" in message


def test_timm_model_without_published_weights(monkeypatch):
    config = types.SimpleNamespace(has_weights=False)
    request = types.SimpleNamespace(name="resnet18")
    assert "no weights" in refusal(backbone_timm._hub_file, request, config)


def test_torchvision_from_a_file(tmp_path):
    import torchvision

    model = torchvision.models.squeezenet1_1(weights=None).eval()
    torch.save(model.state_dict(), tmp_path / "s.pth")
    squeeze = load("torchvision:squeezenet1_1", checkpoint=tmp_path / "s.pth")
    assert squeeze.weight_hash == weight_hash(model)
    model = torchvision.models.mobilenet_v3_small(weights=None, num_classes=12).eval()
    torch.save(model.state_dict(), tmp_path / "m.pth")
    mobile = load("torchvision:mobilenet_v3_small@IMAGENET1K_V1", checkpoint=tmp_path / "m.pth")
    assert mobile.num_classes == 12
    assert mobile.input_size == (224, 224)
    assert mobile.mean == (0.485, 0.456, 0.406)
    assert mobile.interpolation == "bilinear"


def test_torchvision_without_network_says_what_to_fetch(monkeypatch):
    def fail(*_args, **_kwargs):
        raise OSError("Name or service not known")

    monkeypatch.setattr(torch.hub, "download_url_to_file", fail)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: "/nonexistent")
    monkeypatch.setattr(os, "makedirs", lambda *_args, **_kwargs: None)
    message = refusal(load, "torchvision:resnet18")
    assert "https://download.pytorch.org/models/resnet18" in message


# --- names --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "options", "words"),
    [
        ("fashion-resent", {}, "did you mean 'fashion-resnet'?"),
        ("cifar-resnet-20", {}, "did you mean 'cifar-resnet20'?"),
        ("efficientnet_b0", {}, "did you mean 'timm:efficientnet_b0'?"),
        ("tim:resnet50", {}, "did you mean 'timm'?"),
        ("timm:", {}, "names no model"),
        ("timm:resnet5O", {}, "did you mean 'resnet50'?"),
        ("timm:test_vit.r160_in1", {}, "did you mean 'test_vit.r160_in1k'?"),
        ("torchvision:resnet5O", {}, "did you mean 'resnet50'?"),
        ("torchvision:resnet50@IMAGENET1K_V3", {}, "IMAGENET1K_V1, IMAGENET1K_V2"),
        ("robustbench:Standard", {}, "robustbench:Standard@cifar10"),
        ("cifar-resnet20", {}, "--checkpoint FILE"),
        ("fashion-resnet", {"num_classes": 0}, "at least 1"),
        ("fashion-resnet", {"mean": (0.5,)}, "three finite numbers"),
        ("fashion-resnet", {"std": (1.0, 0.0, 1.0)}, "three finite positive numbers"),
        ("fashion-resnet", {"mean": (0.5, float("nan"), 0.5)}, "three finite numbers"),
    ],
)
def test_wrong_requests_get_one_helpful_line(spec, options, words):
    assert words in refusal(load, spec, **options)


@pytest.mark.parametrize("package", ["timm", "torchvision"])
def test_absent_library_is_named(monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    assert f"pip install {package}" in refusal(load, f"{package}:resnet18")


# --- reference data -----------------------------------------------------------------------------


@pytest.mark.shared
def test_public_cifar_weights_reach_their_accuracy(shared):
    path = next((shared / "data" / "weights").glob("resnet20-*.th"))
    backbone = load("cifar-resnet20", checkpoint=path)
    images = np.load(shared / "data" / "cifar10c" / "clean.npy")
    labels = np.load(shared / "data" / "cifar10c" / "labels.npy")
    x = torch.from_numpy(images).permute(0, 3, 1, 2)
    with torch.no_grad():
        predicted = torch.cat([backbone.model(part / 255.0).argmax(1) for part in x.split(250)])
    # The reference images are JPEG-compressed, which costs these weights ten points.
    assert 0.79 < float((predicted.numpy() == labels).mean()) < 0.84


def test_imagenet_weights_from_the_package_index() -> None:
    """Matched by position: the tensors are the file's own, and the images are understood."""
    backbone = load("efficientnet-lite0")
    assert (backbone.num_classes, backbone.mean, backbone.std) == (1000, (0.5,) * 3, (0.5,) * 3)
    assert backbone.weight_hash.startswith("4c6ab284")
    with pytest.raises(BackboneError, match="1000 classes"):
        load("efficientnet-lite0", num_classes=10)


@pytest.mark.shared
def test_imagenet_weights_are_as_good_as_published(shared: Path) -> None:
    from PIL import Image

    files = sorted((shared / "data" / "imagenet" / "val").glob("*/*"))[:60]
    correct = 0
    model = load("efficientnet-lite0").model
    for label, file in enumerate(files):
        image = Image.open(file).convert("RGB")
        left, top = (image.width - 224) // 2, (image.height - 224) // 2
        pixels = np.asarray(image.crop((left, top, left + 224, top + 224)))
        x = torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255
        with torch.no_grad():
            correct += int(model(x).argmax(1)) == label
    assert correct >= 48


def test_a_file_that_does_not_match_by_position(tmp_path: Path) -> None:
    torch.save({"x": torch.zeros(3)}, tmp_path / "other.pth")
    with pytest.raises(BackboneError, match="has 1 tensors"):
        load("efficientnet-lite0", checkpoint=tmp_path / "other.pth")
