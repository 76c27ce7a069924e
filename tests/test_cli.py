"""The command line: help, lists, and one clear line for each wrong input."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

from benchmarks.cli import app

RUN = ("run", "--method", "tent", "--stream", "fashion-mnist-c", "--num-examples", "20")


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TTA_BENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


def call(*arguments: str | Path):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def refused(*arguments: str | Path) -> str:
    """The one line of a refusal; nothing may be left behind in the results folder."""
    result = call(*arguments)
    assert result.exit_code == 2, result.output
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, result.stderr
    assert not list(Path().rglob("spec.json")), "something was half written"
    assert not list(Path().rglob("result.json"))
    return lines[0]


WRONG = {
    "method": ((*RUN[:2], "deyoo", *RUN[3:]), "did you mean 'deyo'"),
    "second method": ((*RUN, "--method", "tentt"), "did you mean 'tent'"),
    "stream": ((*RUN[:4], "fashion-mnst-c", *RUN[5:]), "did you mean 'fashion-mnist-c'"),
    "setting": ((*RUN, "--setting", "continuous"), "did you mean 'continual'"),
    "protocol": ((*RUN, "--protocol", "fashion-mnist-c-reset-v2"), "fashion-mnist-c-reset-v1"),
    "severity": ((*RUN, "--severity", "9"), "it must be 1, 2, 3, 4 or 5"),
    "severity text": ((*RUN, "--severity", "high"), "expected integers"),
    "corruption": ((*RUN, "--corruptions", "fogg"), "did you mean 'fog'"),
    "corruption twice": ((*RUN, "--corruptions", "fog", "--severity", "5,5"), "named twice"),
    "option": ((*RUN, "--set", "learning_rat=1"), "unknown option 'learning_rat'"),
    "option range": ((*RUN, "--set", "lr=-1"), "must be above 0"),
    "option type": ((*RUN, "--set", "lr=fast"), "lr='fast'"),
    "option form": ((*RUN, "--set", "lr"), "expected key=value"),
    "option owner": ((*RUN, "--set", "deyo.lr=1"), "not among the methods"),
    "backbone": ((*RUN, "--backbone", "timm:resnet9999"), "did you mean"),
    "backbone kind": ((*RUN, "--backbone", "tim:resnet18"), "did you mean 'timm'"),
    "backbone weights": ((*RUN, "--backbone", "cifar-resnet20"), "--checkpoint"),
    "too many images": ((*RUN, "--num-examples", "20000"), "has 10000 images"),
    "no images": ((*RUN, "--num-examples", "0"), "num_examples"),
    "batch size": ((*RUN, "--batch-size", "0"), "batch_size"),
    "seed": ((*RUN, "--seed", "-1"), "seed"),
    "dtype": ((*RUN, "--dtype", "float16"), "dtype"),
    "device": ((*RUN, "--device", "cuda:99"), "not available"),
    "device name": ((*RUN, "--device", "gpu"), "not available"),
    "missing cifar": (
        ("run", "-m", "tent", "-s", "cifar10-c", "--backbone", "fashion-resnet"),
        "Zenodo record 2535967, CIFAR-10-C.tar, 2.9 GB",
    ),
    "missing imagenet": (
        ("run", "-m", "tent", "-s", "imagenet-c", "--data-dir", "none", "--backbone", "timm:x"),
        "Zenodo record 2235448",
    ),
    "folder unnamed": (
        ("run", "-m", "tent", "-s", "npy-folder", "--backbone", "fashion-resnet"),
        "--data-dir",
    ),
    "leaderboard": (("leaderboard", "none"), "does not exist"),
    "leaderboard empty": (("leaderboard", "."), "no finished run"),
    "list": (("list", "method"), "did you mean 'methods'"),
    "describe": (("describe",), "either --stream or --method"),
    "describe method": (("describe", "--method", "tentt"), "did you mean 'tent'"),
    "pretrain": (("pretrain", "resnet", "--out", "x.safetensors"), "fashion-resnet"),
    "pretrain data": (
        ("pretrain", "fashion-resnet", "--out", "x.safetensors", "--data-dir", "none"),
        "train-images-idx3-ubyte.gz",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_input(case: str) -> None:
    arguments, words = WRONG[case]
    assert words in refused(*arguments)


def npy_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "arrays"
    folder.mkdir()
    generator = np.random.default_rng(0)
    np.save(folder / "labels.npy", generator.integers(0, 10, 30))
    np.save(folder / "fog.npy", generator.integers(0, 256, (30, 32, 32, 3), dtype=np.uint8))
    return folder


def run_folder(folder: Path) -> tuple[str | Path, ...]:
    return (
        *("run", "-m", "tent", "-s", "npy-folder", "--data-dir", folder),
        *("--corruptions", "fog", "--backbone", "fashion-resnet", "--out", "out"),
    )


def test_npy_folder_runs(tmp_path: Path) -> None:
    result = call(*run_folder(npy_folder(tmp_path)), "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)[0]["num_samples"] == 30


def test_truncated_npy(tmp_path: Path) -> None:
    folder = npy_folder(tmp_path)
    (folder / "fog.npy").write_bytes((folder / "fog.npy").read_bytes()[:-10])
    assert "fog.npy cannot be read (truncated" in refused(*run_folder(folder))


def test_label_out_of_range(tmp_path: Path) -> None:
    folder = npy_folder(tmp_path)
    labels = np.load(folder / "labels.npy")
    labels[7] = -3
    np.save(folder / "labels.npy", labels)
    line = refused(*run_folder(folder))
    assert "label -3 at index 7 is out of range" in line


def test_classes_do_not_match(tmp_path: Path) -> None:
    folder = npy_folder(tmp_path)
    np.save(folder / "labels.npy", np.arange(30))
    assert "has 10 classes, stream npy-folder has 30" in refused(*run_folder(folder))


def test_wrong_channel_count(tmp_path: Path) -> None:
    folder = npy_folder(tmp_path)
    np.save(folder / "fog.npy", np.zeros((30, 32, 32, 4), dtype=np.uint8))
    assert "images must be uint8 (N, H, W, 3)" in refused(*run_folder(folder))


def test_missing_corruption(tmp_path: Path) -> None:
    folder = npy_folder(tmp_path)
    arguments = [str(a).replace("fog", "snow") for a in run_folder(folder)]
    assert "snow.npy is missing" in refused(*arguments)


def test_unreadable_checkpoints(tmp_path: Path) -> None:
    (tmp_path / "page.pth").write_text("<!DOCTYPE html><html>quota exceeded</html>")
    (tmp_path / "empty.safetensors").touch()
    save_file({"x": torch.zeros(3)}, tmp_path / "other.safetensors")
    torch.save({"model": Evil(tmp_path / "ran")}, tmp_path / "evil.pth")
    expected = {
        "page.pth": "web page saved as weights",
        "empty.safetensors": "empty",
        "other.safetensors": "does not fit",
        "evil.pth": "would run code",
        "absent.pth": "no such file",
    }
    for name, words in expected.items():
        assert words in refused(*RUN, "--checkpoint", tmp_path / name)
    assert not (tmp_path / "ran").exists()


class Evil:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def test_output_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for out in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/results")):
        assert "name another --out" in refused(*RUN, "--out", out)


def test_export_that_cannot_be_written(tmp_path: Path) -> None:
    assert call(*RUN, "--corruptions", "fog", "--out", "ok").exit_code == 0
    for name, words in {
        "x.xls": "use .csv, .md, .tex or .html",
        "ok/none.csv/x.csv": "cannot write",
    }.items():
        if "none" in name:
            (tmp_path / "ok" / "none.csv").touch()
        result = call("leaderboard", "ok", "--export", name)
        assert result.exit_code == 2
        assert words in result.stderr


def test_foreign_result_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "result.json").write_text('{"schema_version": 99}')
    result = call("leaderboard", tmp_path)
    assert result.exit_code == 2
    assert "schema 99" in result.stderr
    (tmp_path / "result.json").write_text("[1, 2")
    assert "not a result of tta-bench" in call("leaderboard", tmp_path).stderr


def test_run_prints_a_table_and_leaderboard_exports(tmp_path: Path) -> None:
    first = call(*RUN, "--method", "source", "--corruptions", "fog,snow", "--out", "r")
    assert first.exit_code == 0, first.output
    assert "finished before" not in first.stderr
    for words in ("tent", "source", "fog", "snow", "mean", "results: r"):
        assert words in first.stdout
    result = call("leaderboard", "r", "--export", "l.csv", "--export", "l.md", "--json")
    rows = json.loads(result.stdout)
    assert {row["method"] for row in rows} == {"tent", "source"}
    assert (tmp_path / "l.csv").read_text().startswith("rank,method,error_pct")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cache", "l.csv", "l.md", "r"]
    again = call(*RUN, "--method", "source", "--corruptions", "fog,snow", "--out", "r")
    assert again.stderr.count("finished before and reused") == 2
    assert again.stdout == first.stdout


def test_set_for_one_method() -> None:
    result = call(
        *("run", "-m", "source,tent", "-s", "fashion-mnist-c", "--num-examples", "20"),
        *("--corruptions", "fog", "--set", "tent.lr=0.5", "--json"),
    )
    configs = [json.loads(row["config"]) for row in json.loads(result.stdout)]
    assert "lr" not in configs[0]
    assert configs[1]["lr"] == 0.5


def test_describe() -> None:
    result = call("describe", "-s", "fashion-mnist-c", "--setting", "reset", "--json")
    plan = json.loads(result.stdout)
    assert plan["samples"] == 150_000
    assert plan["resets"] == 15
    assert [d["first_step"] for d in plan["domains"]][:3] == [0, 50, 100]
    options = json.loads(call("describe", "-m", "deyo", "--json").stdout)
    assert {
        key: next(o for o in options if o["option"] == "plpd_threshold")[key]
        for key in ("option", "default")
    } == {"option": "plpd_threshold", "default": 0.2}


@pytest.mark.parametrize("arguments", [["--help"], ["list"], ["run", "--help"]])
def test_help_and_list_import_nothing_heavy(arguments: list[str]) -> None:
    code = (
        "import sys\n"
        "from benchmarks.cli import app\n"
        f"try: app({arguments!r})\n"
        "except SystemExit as done: assert not done.code\n"
        "heavy = {'torch', 'numpy', 'timm', 'avalanche', 'robustbench', 'pandas', 'pyarrow'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.shared
def test_cifar10_c_on_real_images(shared: Path, tmp_path: Path) -> None:
    result = call(
        *("run", "-m", "source,deyo", "-s", "cifar10-c", "--data-dir", shared / "data" / "cifar10"),
        *("--backbone", "cifar-resnet20", "--num-examples", "200", "--json"),
        *("--corruptions", "gaussian_noise,contrast"),
        *("--checkpoint", shared / "data" / "weights" / "resnet20-12fca82f.th"),
    )
    assert result.exit_code == 0, result.output
    source, deyo = json.loads(result.stdout)
    assert source["provenance"].startswith("generated")
    assert deyo["error_pct"] < source["error_pct"] - 5


def test_the_module_runs_as_a_script() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.cli", "list", "settings"],
        capture_output=True,
        text=True,
        env=os.environ,
    )
    assert done.returncode == 0
    assert "continual" in done.stdout
