"""Where pixels and labels come from, and what is said when they are not as they must be."""

from __future__ import annotations

import contextlib
import io
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import streams
from streams.errors import StreamError
from streams.npy_corruptions import open_npy_folder
from streams.readers import npy, parquet
from streams.sources import cifar10_c, imagenet_c
from streams.types import CLEAN, Domain

FOG = Domain(name="fog", corruption="fog", severity=5)


def made(count: int, side: int = 8, channels: int = 3, seed: int = 0) -> np.ndarray:
    shape = (count, side, side, channels)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def message(error: pytest.ExceptionInfo[StreamError]) -> str:
    """The text, after the checks that hold for every message: one line, not a bare repr."""
    text = str(error.value)
    assert "\n" not in text
    assert len(text) > 20
    return text


def by_image(stream: streams.Stream) -> dict[tuple[str, int], torch.Tensor]:
    """Pixels by (domain, image id)."""
    return {
        (batch.domain, int(index)): x
        for batch in stream
        for index, x in zip(batch.index, batch.x, strict=True)
    }


# Embedded ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fashion():
    return streams.create("fashion-mnist-c", corruptions=("fog",)).source


def test_embedded_images_and_labels(fashion):
    labels = fashion.labels
    assert labels.shape == (10_000,)
    assert labels.dtype == np.int64
    assert np.bincount(labels).tolist() == [1000] * 10
    assert fashion.num_classes == 10
    images = fashion.images(np.arange(10_000), CLEAN)
    assert images.dtype == torch.uint8
    assert images.shape == (10_000, 3, 32, 32)
    assert torch.equal(images[:, 0], images[:, 1])
    assert torch.equal(images[:, 0], images[:, 2])
    inside = torch.zeros(32, 32, dtype=torch.bool)
    inside[2:30, 2:30] = True
    assert not images[:, :, ~inside].any()
    assert images[:, 0, inside].float().mean().item() == pytest.approx(73.1466, abs=1e-3)


def test_embedded_batches_are_what_the_contract_says():
    stream = streams.create("fashion-mnist-c", corruptions=("fog", "snow"), num_examples=7)
    batch = next(iter(stream))
    assert batch.x.shape == (7, 3, 32, 32)
    assert batch.x.dtype == torch.float32
    assert 0 <= batch.x.min() < batch.x.max() <= 1
    assert torch.equal((batch.x * 255).round() / 255, batch.x)
    assert batch.y.dtype == batch.index.dtype == batch.domain_ids.dtype == torch.int64
    assert np.array_equal(batch.y, stream.source.labels[batch.index])
    assert (batch.domain, batch.severity, batch.step) == ("fog", 5, 0)
    assert batch.domain_ids.tolist() == [0] * 7
    assert stream.batch(1).domain_ids.tolist() == [1] * 7


def test_pixels_do_not_depend_on_batches_order_number_or_seed():
    names = ("gaussian_noise", "glass_blur", "frost", "elastic_transform")
    base = by_image(streams.create("fashion-mnist-c", corruptions=names, num_examples=6))
    assert len(base) == 24
    for changes in (
        {"batch_size": 1},
        {"batch_size": 4},
        {"seed": 9},
        {"shuffle": False},
        {"setting": "reset"},
        {"num_examples": 11, "batch_size": 3, "seed": 4},
        {"corruptions": names[::-1]},
    ):
        asked = {"corruptions": names, "num_examples": 6, **changes}
        other = by_image(streams.create("fashion-mnist-c", **asked))
        assert all(torch.equal(other[key], x) for key, x in base.items()), changes


def test_severities_differ_and_the_dtype_is_exact():
    asked = {"corruptions": ("gaussian_noise",), "num_examples": 3}
    mild, strong = (
        by_image(streams.create("fashion-mnist-c", severity=s, **asked)) for s in (1, 5)
    )
    assert not any(torch.equal(mild[key], strong[key]) for key in mild)
    double = by_image(streams.create("fashion-mnist-c", dtype=torch.float64, **asked))
    for key, x in double.items():
        assert x.dtype == torch.float64
        assert torch.equal((x * 255).round() / 255, x)
        assert torch.equal(x.float(), strong[key])


def test_clean_batches_are_the_images_of_the_plan(fashion):
    stream = streams.create("fashion-mnist-c", corruptions=("fog",), num_examples=5, batch_size=2)
    x, y = (torch.cat(parts) for parts in zip(*stream.clean_batches(), strict=True))
    assert torch.equal((x * 255).to(torch.uint8), fashion.images(np.arange(5), CLEAN))
    assert y.tolist() == fashion.labels[:5].tolist()


def test_embedded_provenance_names_the_generator():
    said = str(streams.create("fashion-mnist-c", num_examples=1).provenance)
    assert said.startswith("generated (clean=Fashion-MNIST test, generator=tta-bench ")
    assert "seed=0" in said


def test_opening_the_embedded_stream_needs_no_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    stream = streams.create("fashion-mnist-c", num_examples=1, data_dir=tmp_path / "absent")
    assert len(stream) == 15


@pytest.mark.parametrize(
    ("name", "near"), [("fashion-mnits", "fashion-mnist"), ("cifar-10-c", "cifar10-c")]
)
def test_an_unknown_stream_is_answered_with_the_nearest(name, near):
    with pytest.raises(StreamError) as error:
        streams.create(name)
    assert f"did you mean {near!r}?" in message(error)


def test_readers_are_no_streams():
    names = streams.list_streams()
    assert names == sorted(names)
    assert {"cifar10-c", "fashion-mnist-c", "imagenet-c", "npy-folder"} <= set(names)
    assert not {"idx", "npy", "parquet", "clean"} & set(names)


def test_an_unknown_corruption_names_those_there_are():
    with pytest.raises(StreamError) as error:
        streams.create("fashion-mnist-c", corruptions=("fogg",))
    assert "unknown corruption 'fogg'" in message(error)
    assert "'fog'" in message(error)


def test_one_corruption_given_as_text():
    one = streams.create("fashion-mnist-c", corruptions="fog", num_examples=2)
    assert [domain.name for domain in one.domains] == ["fog"]


def test_an_empty_choice_of_corruptions_is_not_all_of_them():
    with pytest.raises(StreamError, match="at least one corruption"):
        streams.create("fashion-mnist-c", corruptions=())


# Arrays -----------------------------------------------------------------------------------------


def test_arrays_are_taken_as_they_are():
    images, labels = made(7), np.arange(7) % 4
    stream = streams.from_arrays(images, labels, batch_size=3, shuffle=False)
    batches = list(stream)
    assert [len(batch.y) for batch in batches] == [3, 3, 1]
    x = torch.cat([batch.x for batch in batches])
    assert torch.equal(x, torch.from_numpy(images).permute(0, 3, 1, 2) / 255)
    assert torch.cat([batch.y for batch in batches]).tolist() == labels.tolist()
    assert stream.num_classes == 4
    assert str(stream.provenance).startswith("arrays (digest=")
    with pytest.raises(StreamError):
        next(stream.clean_batches())


def test_one_channel_is_repeated():
    grey = made(4, channels=1)
    x = streams.from_arrays(grey, [0, 1, 2, 3], shuffle=False).batch(0).x
    assert x.shape == (4, 3, 8, 8)
    assert all(torch.equal(x[:, 0], x[:, c]) for c in (1, 2))
    assert torch.equal((x[:, 0] * 255).to(torch.uint8), torch.from_numpy(grey[..., 0]))


def test_an_array_per_domain():
    day, night = made(6), made(6, seed=1)
    stream = streams.from_arrays(
        {"day": day, "night": night}, np.arange(6), batch_size=4, setting="reset", shuffle=False
    )
    assert [domain.name for domain in stream.domains] == ["day", "night"]
    assert stream.reset_steps == (0, 2)
    assert [batch.domain for batch in stream] == ["day", "day", "night", "night"]
    x = torch.cat([batch.x for batch in stream])
    both = torch.from_numpy(np.concatenate([day, night])).permute(0, 3, 1, 2) / 255
    assert torch.equal(x, both)


def test_arrays_with_generated_corruptions():
    images, labels = made(5, side=16), np.arange(5)
    stream = streams.from_arrays(
        images, labels, corruptions=("brightness", "fog"), severity=(3, 5), batch_size=5
    )
    names = ["brightness_3", "fog_3", "brightness_5", "fog_5"]
    assert [domain.name for domain in stream.domains] == names
    assert [batch.severity for batch in stream] == [3, 3, 5, 5]
    x, y = next(stream.clean_batches())
    assert torch.equal(x, torch.from_numpy(images).permute(0, 3, 1, 2) / 255)
    assert y.tolist() == labels.tolist()
    assert str(stream.provenance).startswith("generated (clean=arrays")


def test_the_number_of_classes_may_be_larger_than_the_labels():
    assert streams.from_arrays(made(2), [0, 1], num_classes=10).num_classes == 10
    assert streams.from_arrays(made(2), np.array([0, 1], dtype=np.uint8)).num_classes == 2


WRONG_ARRAYS = {
    "float images": (made(4) / 255, [0] * 4, {}, ["uint8", "float64", "(4, 8, 8, 3)"]),
    "channels first": (
        made(4).transpose(0, 3, 1, 2),
        [0] * 4,
        {},
        ["channels last", "(4, 3, 8, 8)", "transpose"],
    ),
    "two channels": (made(4, channels=2), [0] * 4, {}, ["1 or 3 channels", "got 2"]),
    "four channels": (made(4, channels=4), [0] * 4, {}, ["1 or 3 channels", "got 4"]),
    "three axes": (made(4)[..., 0], [0] * 4, {}, ["(4, 8, 8)"]),
    "signed bytes": (made(4).view(np.int8), [0] * 4, {}, ["uint8", "int8"]),
    "fewer labels": (made(4), [0] * 3, {}, ["4 images but 3 labels"]),
    "label out of range": (
        made(3),
        [0, 5, 1],
        {"num_classes": 4},
        ["label 5 at index 1", "0 to 3"],
    ),
    "negative label": (made(3), [0, 1, -1], {}, ["label -1 at index 2"]),
    "float labels": (made(3), [0.0, 1.0, 2.0], {}, ["integers", "float64"]),
    "boolean labels": (made(2), [True, False], {}, ["integers", "bool"]),
    "one-hot labels": (made(2), np.eye(2, dtype=int), {}, ["(2, 2)"]),
    "empty": (made(0), [], {}, ["labels must be (N,) integers"]),
    "no domain": ({}, [0, 1], {}, ["at least one"]),
    "mapping and corruptions": (
        {"day": made(2)},
        [0, 1],
        {"corruptions": ("fog",)},
        ["either one array and corruptions, or an array per domain"],
    ),
    "one wrong domain": ({"a": made(2), "b": made(3)}, [0, 1], {}, ["b: 3 images but 2 labels"]),
    "ragged": ([[[1]], [[1, 2]]], [0, 1], {}, ["uint8 (N, H, W, 3)"]),
}


@pytest.mark.parametrize("case", WRONG_ARRAYS)
def test_wrong_arrays(case):
    images, labels, options, words = WRONG_ARRAYS[case]
    with pytest.raises(StreamError) as error:
        streams.from_arrays(images, labels, **options)
    assert all(word in message(error) for word in words), message(error)


@pytest.mark.filterwarnings("error")
def test_views_and_read_only_arrays_are_taken():
    images, labels = made(6, side=8), np.arange(6)
    frozen = images.copy()
    frozen.flags.writeable = False
    for view in (images[::-1], images[:, ::-1], frozen):
        wanted = view.copy()
        for corruptions in (None, ("brightness",)):
            asked = {"corruptions": corruptions, "shuffle": False}
            got = streams.from_arrays(view, labels, **asked)
            assert torch.equal(
                got.batch(0).x, streams.from_arrays(wanted, labels, **asked).batch(0).x
            )
    assert torch.equal(
        streams.from_arrays(images, labels[::-1], shuffle=False).batch(0).y,
        torch.arange(6).flip(0),
    )


# Folders of arrays ------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path) -> Path:
    """One severity: two corruptions of 12 images and their labels."""
    labels = np.array([2, 0, 1, 1, 0, 2, 2, 1, 0, 0, 1, 2])
    np.save(tmp_path / "labels.npy", labels)
    np.save(tmp_path / "fog.npy", made(12))
    np.save(tmp_path / "snow.npy", made(12, seed=1))
    return tmp_path


def open_folder(folder: Path, **options) -> streams.Stream:
    asked = {"corruptions": ("fog", "snow"), "batch_size": 5, "shuffle": False, **options}
    return streams.create("npy-folder", data_dir=folder, **asked)


def test_a_folder_of_one_severity(folder):
    stream = open_folder(folder)
    x = torch.cat([batch.x for batch in stream])
    both = np.concatenate([np.load(folder / f"{name}.npy") for name in ("fog", "snow")])
    assert torch.equal(x, torch.from_numpy(both).permute(0, 3, 1, 2) / 255)
    assert torch.cat([b.y for b in stream]).tolist() == 2 * np.load(folder / "labels.npy").tolist()
    assert stream.num_classes == 3
    assert str(stream.provenance).startswith(f"arrays (files={folder.name}/*.npy, digest=")
    with pytest.raises(StreamError) as error:
        open_folder(folder, severity=3)
    assert "one severity" in message(error)
    assert "severity 3" in message(error)


@pytest.mark.parametrize("periodic", [True, False])
def test_a_folder_of_five_severities(tmp_path, periodic):
    labels = np.array([2, 0, 1, 1])
    rows = made(20)
    np.save(tmp_path / "labels.npy", np.tile(labels, 5) if periodic else labels)
    np.save(tmp_path / "fog.npy", rows)
    for severity in range(1, 6):
        stream = open_folder(tmp_path, corruptions=("fog",), severity=severity)
        x, y = (torch.cat(part) for part in zip(*((b.x, b.y) for b in stream), strict=True))
        wanted = rows[4 * (severity - 1) : 4 * severity]
        assert torch.equal(x, torch.from_numpy(wanted).permute(0, 3, 1, 2) / 255)
        assert y.tolist() == labels.tolist()
    both = open_folder(tmp_path, corruptions=("fog",), severity=(5, 1))
    assert [batch.domain for batch in both] == ["fog_5", "fog_1"]


def test_clean_images_of_a_folder(folder):
    with pytest.raises(StreamError):
        next(open_folder(folder).clean_batches())
    np.save(folder / "clean.npy", made(12, seed=7))
    x, _ = next(open_folder(folder).clean_batches())
    assert torch.equal(x, torch.from_numpy(made(12, seed=7)[:5]).permute(0, 3, 1, 2) / 255)


def test_clean_images_have_no_severities(folder):
    np.save(folder / "clean.npy", made(60, seed=7))
    with pytest.raises(StreamError) as error:
        next(open_folder(folder).clean_batches())
    assert "clean.npy has 60 images" in message(error)


def test_opening_a_folder_reads_labels_alone(folder):
    opened = open_folder(folder)
    rows, _ = opened.source._rows(FOG)
    assert isinstance(rows, np.memmap)
    # Gigabytes of holes open at once: nothing but the header is touched.
    huge = np.lib.format.open_memmap(
        folder / "huge.npy", mode="w+", dtype=np.uint8, shape=(12, 10_000, 10_000, 3)
    )
    del huge
    stream = open_folder(folder, corruptions=("huge",))
    assert len(stream) == 3
    (folder / "huge.npy").unlink()


WRONG_FOLDERS = {
    "rows": ("fog", made(13), ["fog.npy has 13 images", "12 (one severity)", "60 (five)"]),
    "floats": ("fog", made(12) / 255, ["fog.npy: images must be uint8", "float64"]),
    "channels first": ("fog", made(12).transpose(0, 3, 1, 2), ["(12, 3, 8, 8)"]),
    "grey": ("fog", made(12, channels=1), ["(12, 8, 8, 1)"]),
    "float labels": ("labels", np.arange(12.0), ["labels.npy: labels must be (N,) integers"]),
    "one-hot labels": ("labels", np.eye(12, dtype=int), ["(12, 12)"]),
    "no labels": ("labels", np.zeros(0, dtype=int), ["labels.npy"]),
    "negative label": ("labels", np.arange(12) - 1, ["labels.npy: label -1 at index 0"]),
}


@pytest.mark.parametrize("case", WRONG_FOLDERS)
def test_wrong_folders(folder, case):
    stem, array, words = WRONG_FOLDERS[case]
    np.save(folder / f"{stem}.npy", array)
    with pytest.raises(StreamError) as error:
        open_folder(folder)
    assert all(word in message(error) for word in words), message(error)


def test_a_missing_corruption_lists_what_is_there(folder):
    with pytest.raises(StreamError) as error:
        open_folder(folder, corruptions=("fog", "frost"))
    assert "frost.npy is missing" in message(error)
    assert "fog, snow" in message(error)


def test_missing_labels_and_a_folder_that_is_not_named(tmp_path):
    with pytest.raises(StreamError) as error:
        open_folder(tmp_path)
    assert "labels.npy is missing" in message(error)
    with pytest.raises(StreamError) as error:
        streams.create("npy-folder")
    assert "--data-dir" in message(error)


class Trap:
    """Unpickling it would create a file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self):
        return Path.touch, (self.file,)


@pytest.mark.parametrize("form", ["object array", "raw pickle"])
@pytest.mark.parametrize("stem", ["fog", "labels"])
def test_a_pickle_is_refused_and_not_run(folder, form, stem):
    sign = folder / "executed"
    if form == "raw pickle":
        (folder / f"{stem}.npy").write_bytes(pickle.dumps(Trap(sign)))
    else:
        objects = np.empty(12, dtype=object)
        objects[:] = Trap(sign)
        np.save(folder / f"{stem}.npy", objects, allow_pickle=True)
    with pytest.raises(StreamError) as error:
        open_folder(folder)
    assert f"{stem}.npy cannot be read (it holds Python objects)" in message(error)
    assert not sign.exists()


def damaged(kind: str, path: Path) -> None:
    good = path.read_bytes()
    if kind == "archive":
        np.savez(path.with_suffix(".npz"), fog=made(2))
        path.with_suffix(".npz").rename(path)
        return
    path.write_bytes(
        {
            "truncated": good[:-100],
            "header alone": good[:128],
            "half a header": good[:40],
            "empty": b"",
            "web page": b"<!DOCTYPE html><html>not found</html>",
            "negative shape": good.replace(b"(12, 8", b"(-3, 8"),
            "open bracket": good.replace(b"3)", b"3("),
            "more rows than bytes": good.replace(b"(12, 8", b"(99, 8"),
        }[kind]
    )


@pytest.mark.parametrize(
    "kind",
    [
        "truncated",
        "header alone",
        "half a header",
        "empty",
        "web page",
        "archive",
        "negative shape",
        "open bracket",
        "more rows than bytes",
    ],
)
def test_a_damaged_npy_file(folder, kind):
    damaged(kind, folder / "fog.npy")
    with pytest.raises(StreamError) as error:
        open_folder(folder)
    assert "fog.npy cannot be read" in message(error)


def test_labels_are_memory_mapped_then_widened(folder):
    np.save(folder / "labels.npy", np.arange(12, dtype=np.uint8))
    assert npy.read_labels(folder / "labels.npy").dtype == np.int64


def test_a_file_that_was_replaced_is_read_again(folder):
    before = open_folder(folder).batch(0).x
    (folder / "fog.npy").unlink()
    np.save(folder / "fog.npy", made(12, seed=5))
    after = open_folder(folder).batch(0).x
    assert not torch.equal(before, after)


def test_cyclic_labels_are_not_taken_for_severities_in_silence(tmp_path):
    """Labels 0 to 3 over and over repeat in every fifth of a file that holds one severity."""
    np.save(tmp_path / "labels.npy", np.arange(40) % 4)
    np.save(tmp_path / "fog.npy", made(40))
    with contextlib.suppress(StreamError):
        stream = open_folder(tmp_path, corruptions=("fog",))
        assert stream.describe()["images"] == 40


def test_cyclic_labels_of_five_severities(tmp_path):
    np.save(tmp_path / "labels.npy", np.arange(40) % 4)
    np.save(tmp_path / "fog.npy", made(200))
    stream = open_folder(tmp_path, corruptions=("fog",), severity=2)
    assert stream.describe()["images"] == 40
    wanted = torch.from_numpy(made(200)[40:45]).permute(0, 3, 1, 2) / 255
    assert torch.equal(stream.batch(0).x, wanted)


# CIFAR-10-C -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cifar(tmp_path_factory) -> Path:
    """The official layout, nearly all of it holes: 50,000 rows with some that are not zero."""
    root = tmp_path_factory.mktemp("data")
    folder = root / "CIFAR-10-C"
    folder.mkdir()
    labels = np.random.default_rng(0).integers(0, 10, 10_000)
    np.save(folder / "labels.npy", np.tile(labels, 5).astype(np.uint8))
    for seed, name in enumerate(("fog", "snow")):
        rows = np.lib.format.open_memmap(
            folder / f"{name}.npy", mode="w+", dtype=np.uint8, shape=(50_000, 32, 32, 3)
        )
        for severity in range(5):
            rows[10_000 * severity : 10_000 * severity + 8] = made(8, 32, seed=10 * seed + severity)
        rows.flush()
    return root


@pytest.mark.parametrize("severity", [1, 5])
def test_official_cifar_equals_robustbench(cifar, severity):
    from streams.robustbench_bridge import robustbench_environment

    with robustbench_environment():
        from robustbench.data import load_cifar10c
    stream = streams.create(
        "cifar10-c",
        data_dir=cifar,
        corruptions=("fog", "snow"),
        severity=severity,
        num_examples=8,
        batch_size=3,
        shuffle=False,
    )
    theirs, labels = load_cifar10c(16, severity, str(cifar), False, ["fog", "snow"])
    # It takes the first n rows of each corruption's ten thousand, n / 2 of each.
    assert theirs.shape == (16, 3, 32, 32)
    assert torch.equal(torch.cat([batch.x for batch in stream]), theirs)
    assert torch.equal(torch.cat([batch.y for batch in stream]), labels.long())
    assert theirs.any()


def test_official_cifar_says_so(cifar):
    stream = streams.create("cifar10-c", data_dir=cifar, corruptions=("fog",))
    assert stream.describe()["images"] == 10_000
    assert stream.num_classes == 10
    assert str(stream.provenance).startswith("official (files=CIFAR-10-C/*.npy, digest=")
    with pytest.raises(StreamError, match=r"frost.npy is missing from .*it has fog, snow"):
        streams.create("cifar10-c", data_dir=cifar, corruptions=("frost",))


def png(image: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()


def write_parquet(path: Path, cells, labels, image="img", label="label") -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path.parent.mkdir(parents=True, exist_ok=True)
    wrapped = [{"bytes": cell, "path": None} if isinstance(cell, bytes) else cell for cell in cells]
    pq.write_table(pa.table({image: wrapped, label: labels}), path)
    return path


def test_cifar_prefers_the_official_arrays(tmp_path):
    images, labels = made(6, 32), np.array([1, 0, 2, 2, 9, 5])
    write_parquet(tmp_path / "cifar10" / cifar10_c.PARQUET, map(png, images), labels)
    generated = streams.create("cifar10-c", data_dir=tmp_path)
    assert generated.provenance.kind == "generated"
    assert generated.num_classes == 10
    clean, y = next(generated.clean_batches())
    assert torch.equal(clean, torch.from_numpy(images).permute(0, 3, 1, 2) / 255)
    assert y.tolist() == labels.tolist()

    (tmp_path / "CIFAR-10-C").mkdir()
    np.save(tmp_path / "CIFAR-10-C" / "labels.npy", labels)
    np.save(tmp_path / "CIFAR-10-C" / "fog.npy", images)
    official = streams.create("cifar10-c", data_dir=tmp_path, corruptions=("fog",))
    assert official.provenance.kind == "official"
    assert official.hash != generated.hash


def test_missing_cifar_names_files_origin_and_size(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for options, where in (({}, "data"), ({"data_dir": tmp_path / "mine"}, str(tmp_path / "mine"))):
        with pytest.raises(StreamError) as error:
            streams.create("cifar10-c", **options)
        text = message(error)
        assert f"no CIFAR-10-C in {where}" in text
        for word in ("labels.npy", "2535967", "2.9 GB", cifar10_c.PARQUET, "cifar10", "--data-dir"):
            assert word in text


def test_labels_of_cifar_are_checked(tmp_path):
    (tmp_path / "CIFAR-10-C").mkdir()
    np.save(tmp_path / "CIFAR-10-C" / "labels.npy", np.array([0, 3, 10]))
    with pytest.raises(StreamError, match=r"label 10 at index 2 .* 10 classes, 0 to 9"):
        streams.create("cifar10-c", data_dir=tmp_path)


# Parquet ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("columns", [("img", "label"), ("image", "labels"), ("img", "fine_label")])
def test_parquet_columns_and_plain_bytes(tmp_path, columns):
    images = made(3)
    cells = [png(images[0]), {"bytes": png(images[1]), "path": "b.png"}, png(images[2])]
    path = write_parquet(tmp_path / "a.parquet", cells, [4, 0, 1], *columns)
    pixels, labels, digest = parquet.read_images(path, (8, 8))
    assert np.array_equal(pixels, images)
    assert labels.tolist() == [4, 0, 1]
    assert labels.dtype == np.int64
    assert len(digest) == 64


def test_parquet_grey_images_become_rgb(tmp_path):
    grey = made(1)[..., 0]
    path = write_parquet(tmp_path / "a.parquet", [png(grey[0])], [0])
    pixels, _, _ = parquet.read_images(path, (8, 8))
    assert np.array_equal(pixels[0], np.repeat(grey[0][..., None], 3, axis=2))


def broken_png() -> bytes:
    """A chunk whose name is not ASCII: Pillow raises SyntaxError for it, after the header."""
    data = png(made(1)[0])
    at = data.index(b"IDAT")
    return data[:at] + b"\xb9\x0b\xf5\xe0" + data[at + 4 :]


WRONG_PARQUETS = {
    "no image column": (
        {"image": "pixels"},
        [png(made(1)[0])],
        [0],
        ["no column img or image", "pixels"],
    ),
    "no label column": ({"label": "y"}, [png(made(1)[0])], [0], ["no column label", "img, y"]),
    "not an image": ({}, [png(made(1)[0]), b"hello"], [0, 1], ["row 1", "does not decode"]),
    "half an image": ({}, [png(made(1)[0])[:150]], [0], ["row 0", "does not decode"]),
    "broken png": ({}, [png(made(1)[0]), broken_png()], [0, 1], ["row 1", "does not decode"]),
    "other size": (
        {},
        [png(made(1)[0]), png(made(1, 9)[0])],
        [0, 1],
        ["row 1", "(9, 9)", "8x8"],
    ),
    "no bytes": ({}, [{"bytes": None, "path": "a.png"}], [0], ["row 0", "no encoded bytes"]),
    "labels as words": ({}, [png(made(1)[0])], ["cat"], ["label", "integers"]),
    "labels as floats": ({}, [png(made(1)[0])], [0.5], ["label", "integers"]),
    "label missing": ({}, 2 * [png(made(1)[0])], [1, None], ["label", "row 1"]),
}


@pytest.mark.parametrize("case", WRONG_PARQUETS)
def test_wrong_parquet(tmp_path, case):
    columns, cells, labels, words = WRONG_PARQUETS[case]
    path = write_parquet(tmp_path / "a.parquet", cells, labels, **columns)
    with pytest.raises(StreamError) as error:
        parquet.read_images(path, (8, 8))
    assert "a.parquet" in message(error)
    assert all(word in message(error) for word in words), message(error)


@pytest.mark.parametrize("keep", [0, 3, 200, -1, -8])
def test_truncated_parquet(tmp_path, keep):
    path = write_parquet(tmp_path / "a.parquet", map(png, made(20)), list(range(20)))
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(StreamError, match=r"a\.parquet cannot be read as parquet"):
        parquet.read_images(path, (8, 8))


# ImageNet-C -------------------------------------------------------------------------------------

# Tench, goldfish, drake, toilet tissue: 0, 1, 97, 999 of the 1,000; numbered by folder 0, 1, 2, 3.
WNIDS = {"n01440764": 0, "n01443537": 1, "n01847000": 97, "n15075141": 999}


@pytest.fixture
def imagenet(tmp_path) -> Path:
    root = tmp_path / "ImageNet-C"
    for corruption in ("fog", "snow"):
        for number, wnid in enumerate(WNIDS):
            for extra in range(2):
                # Names interleave the classes, as those of the validation set do.
                name = f"ILSVRC2012_val_{4 * extra + 3 - number:08d}.JPEG"
                file = root / corruption / "5" / wnid / name
                file.parent.mkdir(parents=True, exist_ok=True)
                shade = 20 * number + (100 if corruption == "snow" else 0)
                Image.fromarray(np.full((224, 224, 3), shade, np.uint8)).save(file, quality=95)
    return tmp_path


def open_imagenet(root: Path, **options) -> streams.Stream:
    asked = {"corruptions": ("fog", "snow"), "batch_size": 5, "shuffle": False, **options}
    return streams.create("imagenet-c", data_dir=root, **asked)


@pytest.mark.parametrize("inside", [True, False])
def test_imagenet_labels_come_from_the_thousand_classes(imagenet, inside):
    stream = open_imagenet(imagenet / "ImageNet-C" if inside else imagenet)
    assert stream.num_classes == 1000
    assert [domain.name for domain in stream.domains] == ["fog", "snow"]
    x, y = (torch.cat(part) for part in zip(*((b.x, b.y) for b in stream), strict=True))
    classes = list(WNIDS.values())[::-1]
    assert y.tolist() == 4 * classes
    # The pixels belong to the labels: each class has its shade.
    shades = [60, 40, 20, 0]
    wanted = torch.tensor([*shades, *shades, *(s + 100 for s in shades + shades)]) / 255
    assert torch.allclose(x.mean((1, 2, 3)), wanted, atol=2 / 255)
    assert x.shape[1:] == (3, 224, 224)
    assert stream.provenance.kind == "official"
    with pytest.raises(StreamError):
        next(stream.clean_batches())


def test_imagenet_corruption_or_severity_that_is_not_there(imagenet):
    for options in ({"corruptions": ("frost",)}, {"severity": 3}):
        with pytest.raises(StreamError) as error:
            open_imagenet(imagenet, **options)
        assert "is missing: ImageNet-C has no" in message(error)


def test_imagenet_unknown_class_folder(imagenet):
    (imagenet / "ImageNet-C" / "fog" / "5" / "n99999999").mkdir()
    with pytest.raises(StreamError) as error:
        open_imagenet(imagenet)
    assert "n99999999 is not one of ImageNet's 1,000 classes" in message(error)


def test_imagenet_empty_class_folder(imagenet):
    (imagenet / "ImageNet-C" / "fog" / "5" / "n02123045").mkdir()
    with pytest.raises(StreamError) as error:
        open_imagenet(imagenet)
    assert "n02123045 is empty" in message(error)


def test_imagenet_folder_without_classes(tmp_path):
    (tmp_path / "ImageNet-C" / "fog" / "5").mkdir(parents=True)
    with pytest.raises(StreamError) as error:
        open_imagenet(tmp_path, corruptions=("fog",))
    assert str(Path("fog") / "5") in message(error)
    assert "unpack" in message(error)


def test_imagenet_images_of_another_size_damaged_or_missing(imagenet):
    file = imagenet / "ImageNet-C" / "fog" / "5" / "n01847000" / "ILSVRC2012_val_00000001.JPEG"
    good = file.read_bytes()
    Image.fromarray(made(1, 32)[0]).save(file)
    stream = open_imagenet(imagenet)
    with pytest.raises(StreamError) as error:
        list(stream)
    assert f"{file.name} is (32, 32), expected 224x224" in message(error)
    for data in (b"no image", good[: len(good) // 2], b"", broken_png()):
        file.write_bytes(data)
        with pytest.raises(StreamError) as error:
            list(stream)
        assert f"{file.name} does not decode" in message(error)
    file.unlink()
    with pytest.raises(StreamError) as error:
        list(stream)
    assert file.name in message(error)


def test_missing_imagenet_names_files_origin_and_size(tmp_path):
    with pytest.raises(StreamError) as error:
        open_imagenet(tmp_path)
    for word in ("<corruption>/<severity>/<wnid>", "2235448", "48 GB", "--data-dir"):
        assert word in message(error)


def test_every_source_file_opens_as_the_protocol_says(folder, cifar, imagenet):
    opened = [
        streams.create("fashion-mnist-c", num_examples=1).source,
        open_npy_folder(folder, name="mine"),
        cifar10_c.open_source(cifar),
        imagenet_c.open_source(imagenet),
        streams.from_arrays(made(2), [0, 1]).source,
    ]
    for source in opened:
        assert source.labels.dtype == np.int64
        assert 0 <= source.labels.min() <= source.labels.max() < source.num_classes
        assert len(source.digest) == 64
        assert source.name
        assert source.provenance.kind in ("official", "generated", "arrays")
