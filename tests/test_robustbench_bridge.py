from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from streams import robustbench_bridge as bridge
from streams.errors import StreamError

ROOT = Path(bridge.__file__).parents[1]


def run(code: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_class_map_has_the_thousand_classes_in_sorted_order():
    classes = bridge.imagenet_class_to_id()
    assert len(classes) == 1000
    assert classes == {wnid: index for index, wnid in enumerate(sorted(classes))}
    assert classes["n01440764"] == 0


def test_image_list_has_5000_distinct_images_of_997_classes():
    images = bridge.imagenet_5k_list()
    assert len(set(images)) == len(images) == 5000
    wnids = {image.partition("/")[0] for image in images}
    assert len(wnids) == 997
    assert wnids < bridge.imagenet_class_to_id().keys()


def test_data_files_are_read_without_importing_robustbench():
    loaded = run(
        "import sys; from streams import robustbench_bridge as b;"
        "b.imagenet_class_to_id(); b.imagenet_5k_list();"
        "print('robustbench' in sys.modules, 'autoattack' in sys.modules)"
    )
    assert loaded == "False False"


def test_robustbench_imports_inside_the_block_and_leaves_no_alias(tmp_path):
    # A folder with exactly the 5,000 images: robustbench numbers its 997 folders, we do not.
    for wnid in {image.partition("/")[0] for image in bridge.imagenet_5k_list()}:
        (tmp_path / wnid).mkdir()
    code = """
import sys
from streams import robustbench_bridge as b
with b.robustbench_environment():
    import robustbench
    from robustbench.loaders import CustomImageFolder
left = [n for n in ("autoattack", "autoattack.state", "pkg_resources") if n in sys.modules]
theirs = CustomImageFolder(sys.argv[1])
assert [p.partition(sys.argv[1] + "/")[2] for p, _ in theirs.samples] == b.imagenet_5k_list()
ours = b.imagenet_class_to_id()
image, label = theirs.samples[0]
wnid = b.imagenet_5k_list()[0].partition("/")[0]
shifted = sum(ours[p.split("/")[-2]] != y for p, y in theirs.samples)
print(robustbench.__name__, left, label, ours[wnid], shifted > 1000)
"""
    assert run(code, str(tmp_path)) == "robustbench [] 976 979 True"


def test_existing_modules_are_kept(monkeypatch):
    import types

    mine = types.ModuleType("autoattack")
    monkeypatch.setitem(sys.modules, "autoattack", mine)
    with bridge.robustbench_environment():
        assert sys.modules["autoattack"] is mine
    assert sys.modules["autoattack"] is mine


def test_aliases_go_away_when_the_block_fails():
    before = {"autoattack", "pkg_resources"} & set(sys.modules)
    with pytest.raises(RuntimeError), bridge.robustbench_environment():
        raise RuntimeError
    assert {"autoattack", "pkg_resources"} & set(sys.modules) == before


def test_without_robustbench_the_message_says_so(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    for call in (bridge.imagenet_class_to_id, bridge.imagenet_5k_list):
        with pytest.raises(StreamError, match="pip install robustbench"):
            call()


def test_a_changed_data_file_is_refused(monkeypatch, tmp_path):
    (tmp_path / "helper_files").mkdir()
    (tmp_path / "helper_files" / "imagenet_class_to_id_map.json").write_text("{}")
    monkeypatch.setattr(bridge, "_package_folder", lambda: tmp_path)
    with pytest.raises(StreamError, match="not the published file"):
        bridge.imagenet_class_to_id()
    with pytest.raises(StreamError, match="has no file imagenet_test_image_ids"):
        bridge.imagenet_5k_list()


def test_zoo_models_load_through_the_backbones(tmp_path):
    import torch

    from tta.backbones import load, weight_hash
    from tta.errors import BackboneError

    name = "Hendrycks2020AugMix_WRN"
    assert {"Standard", name} <= set(bridge.list_zoo_models("cifar10"))
    torch.manual_seed(0)
    model = bridge.build_zoo_model(name, "cifar10")
    state = {f"module.{key}": value for key, value in model.state_dict().items()}
    torch.save({"state_dict": state}, tmp_path / "w.pt")
    backbone = load(f"robustbench:{name}@cifar10", checkpoint=tmp_path / "w.pt")
    assert backbone.weight_hash == weight_hash(model)
    assert (backbone.mean, backbone.std) == ((0.0,) * 3, (1.0,) * 3)
    x = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(backbone.model(x), model.eval()(x))
    for spec, words in {
        "robustbench:Standart@cifar10": "did you mean 'Standard'?",
        "robustbench:Standard@cifar11": "did you mean 'cifar10",
    }.items():
        with pytest.raises(BackboneError) as caught:
            load(spec)
        assert words in str(caught.value)

    folder = tmp_path / "zoo" / "cifar10" / "corruptions"
    folder.mkdir(parents=True)
    torch.save({"state_dict": state}, folder / f"{name}.pt")
    zoo = bridge.load_zoo_model(name, "cifar10", tmp_path / "zoo")
    assert weight_hash(zoo) == weight_hash(model)
    (folder / f"{name}.pt").write_bytes(b"<!DOCTYPE html>")
    with pytest.raises(StreamError, match="cannot be read") as caught:
        bridge.load_zoo_model(name, "cifar10", tmp_path / "zoo")
    assert "\n" not in str(caught.value)
