from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.pretrain import pretrain, schedule
from benchmarks.pretrain_data import FILES, augment, pad_to, to_input
from streams.errors import StreamError
from streams.readers import idx
from tta.backbones import load, weight_hash
from tta.errors import BackboneError


def idx_bytes(array: np.ndarray) -> bytes:
    header = bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape)
    return header + array.astype(np.uint8).tobytes()


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("idx")
    rng = np.random.default_rng(0)
    for split, count in (("train", 96), ("t10k", 20)):
        labels = rng.integers(0, 10, count)
        images = rng.integers(0, 60, (count, 28, 28)) + 15 * labels[:, None, None]
        for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
            (folder / f"{split}-{kind}-ubyte.gz").write_bytes(gzip.compress(idx_bytes(array)))
    return folder


# --- idx files ----------------------------------------------------------------------------------


@pytest.mark.parametrize("compressed", [True, False])
def test_idx_round_trip(tmp_path, compressed):
    images = np.arange(24).reshape(2, 3, 4)
    content = [idx_bytes(images), idx_bytes(np.array([3, 250]))]
    paths = [tmp_path / "images", tmp_path / "labels"]
    for path, data in zip(paths, content, strict=True):
        path.write_bytes(gzip.compress(data) if compressed else data)
    read = idx.read_images(paths[0])
    assert read.dtype == np.uint8
    assert read.flags.writeable
    np.testing.assert_array_equal(read, images)
    labels = idx.read_labels(paths[1])
    assert labels.dtype == np.int64
    np.testing.assert_array_equal(labels, [3, 250])


def test_damaged_idx_files_are_named(tmp_path):
    path = tmp_path / "some-images"
    good = idx_bytes(np.zeros((2, 3, 4)))
    huge = bytes((0, 0, 8, 3)) + struct.pack(">3I", 2**31, 2**20, 2**20)
    cases = [
        (good[:-1], "found 23"),
        (good + b"x", "more than 24"),
        (good[:3], "expected 0x00000803"),
        (b"", "(empty)"),
        (good[:9], "inside its header"),
        (idx_bytes(np.zeros(5)), "swapped"),
        (gzip.compress(good)[:-9], "truncated or damaged"),
        (gzip.compress(good)[:20] + b"garbage" * 9, "truncated or damaged"),
        (huge, "more than the"),
    ]
    for content, words in cases:
        path.write_bytes(content)
        with pytest.raises(StreamError) as caught:
            idx.read_images(path)
        message = str(caught.value)
        assert words in message
        assert "some-images" in message
        assert "\n" not in message
    with pytest.raises(StreamError, match="no such file"):
        idx.read_labels(tmp_path / "absent")
    with pytest.raises(StreamError, match="cannot be read"):
        idx.read_labels(tmp_path)


# --- augmentation and schedule ------------------------------------------------------------------


def test_padding_centres_and_input_repeats():
    padded = pad_to(torch.full((1, 28, 28), 255, dtype=torch.uint8))
    assert padded.shape == (1, 32, 32)
    assert int(padded[0, :2].sum() + padded[0, -2:].sum() + padded[0, :, :2].sum()) == 0
    x = to_input(padded)
    assert x.shape == (1, 3, 32, 32)
    assert x.dtype == torch.float32
    assert float(x.max()) == 1.0
    with pytest.raises(StreamError, match="do not fit"):
        pad_to(torch.zeros(1, 40, 40, dtype=torch.uint8))


def test_augmentation_only_flips_and_shifts():
    image = torch.zeros(1, 8, 8, dtype=torch.uint8)
    image[0, 3, 3] = 200
    images = image.expand(500, -1, -1)
    out = augment(images, 2, torch.Generator().manual_seed(0))
    assert torch.equal(out.sum(dim=(1, 2)), images.sum(dim=(1, 2)))
    rows, columns = out.flatten(1).argmax(1) // 8, out.flatten(1).argmax(1) % 8
    assert set(rows.tolist()) == {1, 2, 3, 4, 5}
    assert set(columns.tolist()) == {1, 2, 3, 4, 5, 6}  # 3 +- 2 and, flipped, 4 +- 2
    assert torch.equal(out, augment(images, 2, torch.Generator().manual_seed(0)))


def test_schedule_rises_then_falls_to_zero():
    values = [schedule(step / 100, 0.25) for step in range(100)]
    assert max(values) == values[25] == 1.0
    assert values[:26] == sorted(values[:26])
    assert values[25:] == sorted(values[25:], reverse=True)
    assert values[-1] < 0.01


# --- training -----------------------------------------------------------------------------------


@pytest.mark.parametrize("arch", ["fashion-resnet", "fashion-resnet-gn"])
def test_training_twice_gives_the_same_weights(data_dir, tmp_path, arch):
    state = torch.random.get_rng_state()
    options = {"epochs": 1, "batch_size": 32, "progress": False}
    one = pretrain(arch, data_dir, tmp_path / "a.safetensors", **options)
    two = pretrain(arch, data_dir, tmp_path / "b.safetensors", **options)
    other = pretrain(arch, data_dir, tmp_path / "c.safetensors", seed=1, **options)
    assert torch.equal(state, torch.random.get_rng_state())
    assert one["weight_hash"] == two["weight_hash"] != other["weight_hash"]
    assert (tmp_path / "a.safetensors").stat().st_size <= 2_000_000
    assert not list(tmp_path.glob("*.tmp"))

    from safetensors import safe_open

    with safe_open(tmp_path / "a.safetensors", "pt") as file:
        metadata = file.metadata()
    assert {"arch", "seed", "epochs", "test_error_pct", "torch", "timm"} <= metadata.keys()
    assert metadata["arch"] == arch
    backbone = load(arch, checkpoint=tmp_path / "a.safetensors")
    assert backbone.weight_hash == one["weight_hash"] == weight_hash(backbone.model)


def test_missing_data_say_where_to_get_them(tmp_path):
    with pytest.raises(StreamError) as caught:
        pretrain("fashion-resnet", tmp_path, tmp_path / "w.safetensors", progress=False)
    message = str(caught.value)
    assert all(name in message for name in FILES)
    assert "dataset-fashion-mnist" in message
    assert "github.com/zalandoresearch" in message
    assert "\n" not in message


def test_unusable_requests(data_dir, tmp_path):
    out = tmp_path / "w.safetensors"
    for options, words in (
        ({"epochs": 0}, "epochs must be positive"),
        ({"lr": float("nan")}, "lr must be positive"),
        ({"seed": -1}, "start at 0"),
    ):
        with pytest.raises(StreamError, match=words):
            pretrain("fashion-resnet", data_dir, out, progress=False, **options)
    with pytest.raises(StreamError, match="does not exist"):
        pretrain("fashion-resnet", data_dir, tmp_path / "no" / "w.safetensors")
    with pytest.raises(StreamError, match="that ending"):
        pretrain("fashion-resnet", data_dir, tmp_path / "w.pt")
    with pytest.raises(BackboneError, match="fashion-resnet-gn"):
        pretrain("resnet", data_dir, out)
    with pytest.raises(StreamError, match="diverged"):
        pretrain("fashion-resnet", data_dir, out, epochs=4, lr=1e38, progress=False)
    assert not out.exists()


def test_mismatched_counts_and_labels(data_dir, tmp_path):
    for name in FILES:
        (tmp_path / name).write_bytes((data_dir / name).read_bytes())
    labels = tmp_path / "train-labels-idx1-ubyte.gz"
    labels.write_bytes(gzip.compress(idx_bytes(np.zeros(95))))
    with pytest.raises(StreamError, match="96 images"):
        pretrain("fashion-resnet", tmp_path, tmp_path / "w.safetensors", progress=False)
    labels.write_bytes(gzip.compress(idx_bytes(np.full(96, 10))))
    with pytest.raises(StreamError, match="label 10"):
        pretrain("fashion-resnet", tmp_path, tmp_path / "w.safetensors", progress=False)
