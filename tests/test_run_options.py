"""What a run takes beside the stream: source images, layers in place of BatchNorm, a window."""

from __future__ import annotations

import json
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import streams
import tta
from benchmarks import methods_page, resolve, run
from benchmarks.cli import app
from benchmarks.console import progress_bar
from benchmarks.errors import UsageError
from benchmarks.source_data import find_source
from streams.types import CLEAN

SMALL = {"num_examples": 24, "batch_size": 8, "corruptions": ("fog",)}
ROOT = Path(__file__).parents[1]
# All images pass the filters of eata.
LEARNING = {"fisher_weight": 1e5, "entropy_margin": 5.0, "redundancy_margin": 1.0, "lr": 1e-2}


def invoke(*words: str) -> tuple[int, str, str]:
    done = CliRunner().invoke(app, list(words))
    return done.exit_code, done.stdout, done.stderr


def small(*words: str) -> list[str]:
    return ["-s", "fashion-mnist-c", "--num-examples", "24", "--corruptions", "fog", *words]


def test_source_images_are_given_and_said(tmp_path: Path) -> None:
    """A method that needs source images gets the clean ones, and their number moves its result."""
    rows = [
        run(
            resolve("eata", "fashion-mnist-c", source_images=n, options=LEARNING, **SMALL), tmp_path
        )
        for n in (8, 16)
    ]
    said = [row["source_data"] for row in rows]
    assert said == [f"{n} clean test images that are not shown" for n in (8, 16)]
    assert rows[0]["run_id"] != rows[1]["run_id"]
    assert rows[0]["nll"] != rows[1]["nll"]
    assert run(resolve("tent", "fashion-mnist-c", **SMALL), tmp_path)["source_data"] is None


def test_a_stream_without_clean_images_has_none_to_give(tmp_path: Path) -> None:
    images = np.zeros((10, 32, 32, 3), np.uint8)
    np.save(tmp_path / "fog.npy", np.tile(images, (5, 1, 1, 1)))
    np.save(tmp_path / "labels.npy", np.tile(np.arange(10) % 10, 5))
    status, _, err = invoke(
        *("run", "-m", "eata", "-s", "npy-folder", "--data-dir", str(tmp_path), "--severity", "5"),
        *("--backbone", "fashion-resnet", "--corruptions", "fog", "--out", str(tmp_path / "out")),
    )
    assert status == 2
    assert "eata needs source images" in err


def test_source_images_are_not_those_that_are_evaluated(tmp_path: Path) -> None:
    """Hidden images first, or training images where a folder holds them."""
    stream = streams.create("fashion-mnist-c", num_examples=40, corruptions=["fog"])
    spec = resolve("rmt", "fashion-mnist-c", num_examples=40, source_images=500)
    found = find_source(spec, stream, True)
    assert len(found.positions) == 500
    assert not set(found.positions) & set(stream.plan.positions)
    assert found.words == "500 labelled clean test images that are not shown"
    x, y = next(found.batches(8, torch.float32, "cpu"))
    assert y.tolist() == stream.source.labels[found.positions[:8]].tolist()
    assert torch.equal(x, stream.source.images(found.positions[:8], CLEAN) / 255)

    whole = streams.create("fashion-mnist-c", corruptions=["fog"])
    with pytest.raises(tta.AdapterError, match=r"shows all but 0 of its own: .*--source-dir"):
        find_source(spec, whole, True)
    unlabelled = find_source(spec, whole, False)
    assert unlabelled.words == "500 images of the stream, clean"

    idx(tmp_path / "train-images-idx3-ubyte", np.arange(600 * 784) % 251, (600, 28, 28))
    idx(tmp_path / "train-labels-idx1-ubyte", np.arange(600) % 10, (600,))
    spec = resolve("rmt", "fashion-mnist-c", source_dir=str(tmp_path), source_images=50)
    training = find_source(spec, whole, True)
    assert training.words == "50 labelled images of Fashion-MNIST train"
    _, y = next(training.batches(50, torch.float32, "cpu"))
    assert y.tolist() == (training.positions % 10).tolist()
    with pytest.raises(UsageError, match="no training images for fashion-mnist-c in"):
        find_source(spec.model_copy(update={"source_dir": str(tmp_path / "no")}), whole, True)


def idx(path: Path, values: np.ndarray, shape: tuple[int, ...]) -> None:
    head = struct.pack(">BBBB", 0, 0, 8, len(shape)) + struct.pack(f">{len(shape)}I", *shape)
    path.write_bytes(head + values.astype(np.uint8).tobytes())


def test_another_norm_is_another_run(tmp_path: Path) -> None:
    plain, other = (
        run(resolve("tent", "fashion-mnist-c", norm=norm, **SMALL), tmp_path)
        for norm in (None, "unmix-tns")
    )
    assert (plain["norm"], other["norm"]) == (None, "unmix-tns")
    assert plain["run_id"] != other["run_id"]
    assert plain["nll"] != other["nll"]
    # The reference is the unadapted model with its own layers in both.
    assert plain["source_error_pct"] == other["source_error_pct"]


def test_options_of_the_layer_and_the_window(tmp_path: Path) -> None:
    status, out, err = invoke(
        *("run", "-m", "tent", *small("--batch-size", "1", "--window", "8")),
        *("--norm", "unmix-tns", "--norm-set", "components=4", "--json", "--out", str(tmp_path)),
    )
    assert status == 0, err
    row = json.loads(out)[0]
    assert (row["window"], row["norm"]) == (8, "unmix-tns")
    # One update of eight images for every eight images.
    assert row["backwards_per_image"] == 1.0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--norm", "unmix"), "unmix"),
        (("--norm", "unmix-tns", "--norm-set", "K"), "key=value"),
        (("--norm-set", "components=3"), "norm"),
        (("--norm", "unmix-tns", "--norm-set", "componets=3"), "componets"),
        (("--norm", "unmix-tns", "--backbone", "fashion-resnet-gn"), "BatchNorm"),
        (("--source-images", "0"), "source-images"),
        (("--window", "0"), "window"),
    ],
)
def test_bad_options_are_one_line(words: tuple[str, ...], said: str, tmp_path: Path) -> None:
    status, _, err = invoke("run", "-m", "tent", *small(*words), "--out", str(tmp_path / "out"))
    assert status == 2
    assert said in err
    assert not (tmp_path / "out").exists()


def test_a_pattern_leaves_out_what_does_not_fit(tmp_path: Path) -> None:
    status, out, err = invoke(
        *("run", "-m", "nor*,so*", *small("--backbone", "fashion-resnet-gn")),
        *("--json", "--out", str(tmp_path)),
    )
    assert status == 0
    assert [row["method"] for row in json.loads(out)] == ["source"]
    assert "left out norm" in err


def test_a_named_method_must_fit(tmp_path: Path) -> None:
    words = small("--backbone", "fashion-resnet-gn", "--out", str(tmp_path))
    assert invoke("run", "-m", "nor*,norm", *words)[0] == 2
    assert invoke("run", "-m", "nothing*", *words)[0] == 2
    assert "can adapt" in invoke("run", "-m", "nor*", *words)[2]


def test_the_page_of_the_methods_is_up_to_date() -> None:
    written = (ROOT / "docs" / "methods.md").read_text("utf-8")
    assert written == methods_page.page(), "run: python -m benchmarks.methods_page docs/methods.md"
    assert all(f"\n## {name}\n" in written for name in tta.list_adapters())


@pytest.mark.parametrize("method", ["eata", "rmt", "petta", "adanpc"])
def test_what_was_taken_from_the_source_is_kept(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second run reads it from the cache, and ends with the same numbers."""
    monkeypatch.setenv("TTA_BENCH_CACHE", str(tmp_path / "cache"))
    spec = resolve(method, "fashion-mnist-c", source_images=16, **SMALL)
    first = run(spec, tmp_path / "first")
    (file,) = (tmp_path / "cache" / "fitted").iterdir()
    stamp = file.stat().st_mtime_ns
    with monkeypatch.context() as patched:
        patched.setattr(tta.Adapter, "fit_source", None)
        second = run(spec, tmp_path / "second")
    assert second["nll"] == first["nll"]
    assert second["run_id"] == first["run_id"]
    file.write_bytes(b"damaged")
    assert run(spec, tmp_path / "third")["nll"] == first["nll"]
    assert file.stat().st_mtime_ns > stamp


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no pseudo-terminals")
def test_a_bar_moves_in_a_terminal_of_any_size(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A pseudo-terminal that says 0 x 0, as in some containers, gets a bar as well."""
    import fcntl
    import os
    import select
    import termios

    for rows, columns in ((0, 0), (24, 60)):
        ours, theirs = os.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("4H", rows, columns, 0, 0))
        with os.fdopen(theirs, "w") as terminal:
            monkeypatch.setattr(sys, "stderr", terminal)
            with progress_bar("tent s0") as advance:
                advance(1, 2, 12.5)
            terminal.flush()
            monkeypatch.undo()
            # The kernel hands on what was written in pieces, and in its own time.
            shown = ""
            while "1/2" not in shown and select.select([ours], [], [], 10)[0]:
                shown += os.read(ours, 10_000).decode()
        os.close(ours)
        assert "tent s0:  50%" in shown
        assert "1/2" in shown
