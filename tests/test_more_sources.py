"""Data sets in their published layouts: labels, order, domains, and what damage is answered."""

from __future__ import annotations

import io
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import streams
from streams import corruptions, membership
from streams.corruptions.names import CORRUPTIONS
from streams.errors import StreamError
from streams.imagenet import Validation
from streams.readers.cifar_pickle import read_batch
from streams.readers.images import EVALUATION, DecodedImages, Prepare, read_image
from streams.robustbench_bridge import imagenet_5k_list, imagenet_class_to_id
from streams.sources import cifar100_c, imagenet_3dcc, imagenet_c, permuted_mnist
from streams.types import CLEAN


def made(count: int, side: int = 8, seed: int = 0) -> np.ndarray:
    shape = (count, side, side, 3)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def encoded(image: np.ndarray, form: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, form)
    return file.getvalue()


def write(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def smooth(height: int, width: int, seed: int = 0) -> np.ndarray:
    small = Image.fromarray(made(1, 9, seed)[0])
    return np.asarray(small.resize((width, height), Image.Resampling.BICUBIC))


def error_of(name: str, **options) -> str:
    """The message: one line."""
    with pytest.raises(StreamError) as error:
        list(streams.create(name, **options))
    text = str(error.value)
    assert "\n" not in text
    return text


def tensors(stream: streams.Stream) -> tuple[torch.Tensor, torch.Tensor]:
    x, y = zip(*((batch.x, batch.y) for batch in stream), strict=True)
    return torch.cat(x), torch.cat(y)


def unit(images: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2) / 255


# CIFAR ------------------------------------------------------------------------------------------


def batch_file(images: np.ndarray, labels: list[int], key: str, protocol: int, **more) -> bytes:
    rows = images.transpose(0, 3, 1, 2).reshape(len(images), -1)
    content = {b"data": np.ascontiguousarray(rows), key.encode(): labels, b"batch_label": b"t"}
    return pickle.dumps(content | more, protocol=protocol)


CIFARS = {
    "cifar10": ("cifar-10-batches-py/test_batch", "labels", [3, 9, 0]),
    "cifar100": ("cifar-100-python/test", "fine_labels", [3, 99, 0]),
}


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("name", CIFARS)
def test_torchvision_batches(tmp_path, name, protocol):
    place, key, labels = CIFARS[name]
    images = made(3, 32)
    write(tmp_path / place, batch_file(images, labels, key, protocol, coarse_labels=[1, 2, 3]))
    stream = streams.create(name, data_dir=tmp_path, shuffle=False)
    x, y = tensors(stream)
    assert torch.equal(x, unit(images))
    assert y.tolist() == labels
    assert stream.num_classes == int(name.removeprefix("cifar"))
    assert [domain.name for domain in stream.domains] == ["clean"]
    assert stream.provenance.kind == "official"
    corrupted = streams.create(f"{name}-c", data_dir=tmp_path, corruptions=("fog",)).source
    assert corrupted.provenance.kind == "generated"
    assert torch.equal(corrupted.images(np.arange(3), CLEAN) / 255, x)


def python_two_batch(pixels: bytes, labels: list[int]) -> bytes:
    """The opcodes that Python 2 wrote: byte strings, names of numpy 1, protocol 2."""

    def text(value: bytes) -> bytes:
        return b"T" + len(value).to_bytes(4, "little") + value

    array = (
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R(K\x01K"
        + bytes([len(pixels) // 3072])
        + b"M\x00\x0c\x86cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ"
        + b"\xff\xff\xff\xffK\x00tb\x89"
        + text(pixels)
        + b"tb"
    )
    numbers = b"](" + b"".join(b"K" + bytes([label]) for label in labels) + b"e"
    return b"\x80\x02}(" + text(b"data") + array + text(b"labels") + numbers + b"u."


def test_a_batch_as_python_two_wrote_it(tmp_path):
    images = made(2, 32)
    pixels = np.ascontiguousarray(images.transpose(0, 3, 1, 2)).tobytes()
    data = python_two_batch(pixels, [4, 7])
    assert (pickle.loads(data, encoding="bytes")[b"data"].reshape(-1).tobytes()) == pixels
    found, labels, digest = read_batch(write(tmp_path / "test_batch", data), "labels")
    assert np.array_equal(found, images)
    assert labels.tolist() == [4, 7]
    assert len(digest) == 64


class Trap:
    def __init__(self, function, *arguments) -> None:
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def test_a_batch_that_names_code_is_refused_and_not_run(tmp_path):
    sign = tmp_path / "executed"
    traps = [
        Trap(os.system, f"touch {sign}"),
        Trap(Path.touch, sign),
        Trap(eval, f"open({str(sign)!r}, 'w')"),
        Trap(getattr, Path, "touch"),
    ]
    for trap in traps:
        data = batch_file(made(1, 32), [1], "labels", 2, trap=trap)
        path = write(tmp_path / "cifar-10-batches-py" / "test_batch", data)
        text = error_of("cifar10", data_dir=tmp_path)
        assert f"{path} cannot be read as a CIFAR batch (it names " in text
        assert not sign.exists()


WRONG_BATCHES = {
    "truncated": (lambda d: d[:-40], ["cannot be read as a CIFAR batch"]),
    "empty": (lambda _: b"", ["cannot be read as a CIFAR batch"]),
    "web page": (lambda _: b"<!DOCTYPE html>", ["cannot be read as a CIFAR batch"]),
    "a list": (lambda _: pickle.dumps([1, 2]), ["cannot be read as a CIFAR batch"]),
    "no data": (lambda _: pickle.dumps({b"labels": [1]}), ["has no 'data'"]),
    "no labels": (lambda _: batch_file(made(2, 32), [1], "fine_labels", 2), ["has no 'labels'"]),
    "fewer labels": (
        lambda _: batch_file(made(2, 32), [1], "labels", 2),
        ["2 images but 1 labels"],
    ),
    "other size": (lambda _: batch_file(made(2, 16), [1, 2], "labels", 2), ["(N, 3072)", "768"]),
    "floats": (
        lambda _: pickle.dumps({b"data": np.zeros((1, 3072)), b"labels": [1]}, 2),
        ["an array of 'f8'"],
    ),
    "label 10": (
        lambda _: batch_file(made(2, 32), [1, 10], "labels", 2),
        ["label 10 at index 1", "0 to 9"],
    ),
    "text labels": (
        lambda _: batch_file(made(1, 32), ["cat"], "labels", 2),
        ["labels must be a list of integers"],
    ),
}


@pytest.mark.parametrize("case", WRONG_BATCHES)
def test_a_damaged_batch(tmp_path, case):
    change, words = WRONG_BATCHES[case]
    good = batch_file(made(2, 32), [1, 2], "labels", 2)
    write(tmp_path / "cifar-10-batches-py" / "test_batch", change(good))
    text = error_of("cifar10", data_dir=tmp_path)
    assert "test_batch" in text or "CIFAR-10 test" in text
    assert all(word in text for word in words), text


def test_cifar100_parquet_takes_the_fine_labels(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    images = made(3, 32)
    cells = [{"bytes": encoded(image), "path": None} for image in images]
    table = pa.table({"img": cells, "fine_label": [99, 5, 0], "coarse_label": [1, 2, 3]})
    (tmp_path / "cifar100").mkdir()
    pq.write_table(table, tmp_path / "cifar100" / "test-00000-of-00001.parquet")
    x, y = tensors(streams.create("cifar100", data_dir=tmp_path, shuffle=False))
    assert y.tolist() == [99, 5, 0]
    assert torch.equal(x, unit(images))
    assert cifar100_c.open_source(tmp_path).num_classes == 100


def test_official_cifar100_equals_robustbench(tmp_path):
    from streams.robustbench_bridge import robustbench_environment

    with robustbench_environment():
        from robustbench.data import load_cifar100c
    folder = tmp_path / "CIFAR-100-C"
    folder.mkdir()
    labels = np.random.default_rng(0).integers(0, 100, 10_000)
    np.save(folder / "labels.npy", np.tile(labels, 5).astype(np.uint8))
    rows = np.lib.format.open_memmap(
        folder / "fog.npy", mode="w+", dtype=np.uint8, shape=(50_000, 32, 32, 3)
    )
    rows[20_000:20_004] = made(4, 32)
    del rows
    theirs, wanted = load_cifar100c(4, 3, str(tmp_path), False, ["fog"])
    x, y = tensors(
        streams.create(
            "cifar100-c",
            data_dir=tmp_path,
            corruptions="fog",
            severity=3,
            num_examples=4,
            shuffle=False,
        )
    )
    assert torch.equal(x, theirs)
    assert torch.equal(y, wanted.long())


@pytest.mark.skipif(sys.platform != "linux", reason="reads the size of the process from /proc")
def test_opening_cifar10_c_of_full_size_needs_little_memory(tmp_path):
    folder = tmp_path / "CIFAR-10-C"
    folder.mkdir()
    np.save(folder / "labels.npy", np.tile(np.arange(10_000) % 10, 5).astype(np.uint8))
    for name in CORRUPTIONS:  # 15 files of 154 MB, all of it holes
        np.lib.format.open_memmap(
            folder / f"{name}.npy", mode="w+", dtype=np.uint8, shape=(50_000, 32, 32, 3)
        )
    # Not getrusage: its peak is inherited from the process that starts this one.
    code = f"""
import re, torch, streams.factory, streams.sources.cifar10_c
def size(key):
    return int(re.search(key + r":\\s+(\\d+) kB", open("/proc/self/status").read())[1]) / 1024
peak, own = size("VmHWM"), size("RssAnon")
stream = streams.create("cifar10-c", data_dir={str(tmp_path)!r})
stream.hash
print(size("VmHWM") - peak)
for step in range(0, len(stream), 50): stream.batch(step)
print(size("RssAnon") - own)  # pages of the mapped files are not the process's own
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    opened, read = map(float, done.stdout.split())
    assert 0 < opened < 50
    assert read < 50


# Decoding ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(256, 256), (300, 500), (500, 301), (333, 256), (120, 90)])
def test_resize_and_crop_are_those_of_torchvision(size):
    from torchvision import transforms

    image = smooth(*size)
    theirs = transforms.Compose([transforms.Resize(256), transforms.CenterCrop(224)])(
        Image.fromarray(image)
    )
    ours = read_image(encoded(image), EVALUATION, "image")
    assert np.array_equal(ours, np.asarray(theirs))


def test_decoded_images_are_bounded_and_reused():
    cache, decoded = DecodedImages(limit=3 * 192), []

    def get(key: int) -> np.ndarray:
        return cache.get(key, lambda: decoded.append(key) or made(1, seed=key)[0])

    for key in (0, 1, 2, 0, 3, 0, 1):
        assert np.array_equal(get(key), made(1, seed=key)[0])
    assert decoded == [0, 1, 2, 3, 1]
    assert cache.held == 3 * 192
    assert pickle.loads(pickle.dumps(cache)).held == 0


# ImageNet, official layouts -----------------------------------------------------------------------

PICTURES = 6


@pytest.fixture(scope="module")
def official(tmp_path_factory) -> Path:
    """ImageNet-C and -3DCC: every class, all images of the list of 5,000, six pictures in all."""
    root = tmp_path_factory.mktemp("data")
    pictures = [
        write(root / "pictures" / f"{i}.JPEG", encoded(smooth(224, 224, i), "JPEG"))
        for i in range(PICTURES)
    ]
    first = root / "ImageNet-C" / "fog" / "5"
    for wnid in imagenet_class_to_id():
        (first / wnid).mkdir(parents=True)
    for number, entry in enumerate(imagenet_5k_list()):
        (first / entry).hardlink_to(pictures[number % PICTURES])
    for wnid in first.iterdir():  # the three classes that the list does not have
        if not any(wnid.iterdir()):
            (wnid / "ILSVRC2012_val_00050001.JPEG").hardlink_to(pictures[0])
    (root / "ImageNet-3DCC" / "fog_3d").mkdir(parents=True)
    (root / "ImageNet-3DCC" / "fog_3d" / "5").symlink_to(first)
    return root


@pytest.mark.parametrize("name", ["imagenet-c", "imagenet-3dcc"])
def test_official_imagenet_equals_robustbench(official, name):
    from streams.robustbench_bridge import robustbench_environment

    with robustbench_environment():
        from robustbench import data
    load = {"imagenet-c": data.load_imagenetc, "imagenet-3dcc": data.load_imagenet3dcc}[name]
    corruption = {"imagenet-c": "fog", "imagenet-3dcc": "fog_3d"}[name]
    module = {"imagenet-c": imagenet_c, "imagenet-3dcc": imagenet_3dcc}[name]
    theirs, labels = load(12, 5, str(official), False, [corruption])
    source = module.open_source(official, subset="robustbench-5k")
    assert len(source.labels) == 5000
    domain = streams.Domain(name=corruption, corruption=corruption, severity=5)
    assert torch.equal(source.images(np.arange(12), domain) / 255, theirs)
    assert source.labels[:12].tolist() == labels.tolist()
    assert len(np.unique(source.labels)) == 997


def test_a_part_of_imagenet_keeps_its_labels_where_robustbench_shifts_them(official, tmp_path):
    """Without the three classes that the 5,000 lack, folder numbers are off by up to three."""
    from streams.robustbench_bridge import robustbench_environment

    with robustbench_environment():
        from robustbench.data import load_imagenetc
    folder = tmp_path / "ImageNet-C" / "fog" / "5"
    folder.mkdir(parents=True)
    for wnid in {entry.partition("/")[0] for entry in imagenet_5k_list()}:
        (folder / wnid).symlink_to(official / "ImageNet-C" / "fog" / "5" / wnid)
    _, shifted = load_imagenetc(40, 5, str(tmp_path), False, ["fog"])
    ours = imagenet_c.open_source(tmp_path, subset="robustbench-5k").labels[:40]
    whole = imagenet_c.open_source(official, subset="robustbench-5k").labels[:40]
    assert ours.tolist() == whole.tolist()
    assert shifted.tolist() != ours.tolist()


def test_an_image_of_the_list_that_is_missing_or_in_another_class(official, tmp_path):
    source = official / "ImageNet-C" / "fog" / "5"
    folder = tmp_path / "ImageNet-C" / "fog" / "5"
    entry = imagenet_5k_list()[7]
    wnid, _, file = entry.partition("/")
    folder.mkdir(parents=True)
    for other in source.iterdir():
        if other.name != wnid:
            (folder / other.name).symlink_to(other)
    with pytest.raises(StreamError, match=f"has no {wnid}/.*robustbench-5k"):
        imagenet_c.open_source(tmp_path, subset="robustbench-5k")
    assert len(imagenet_c.open_source(tmp_path).labels) < 5003
    moved = folder / wnid / "ILSVRC2012_val_00050002.JPEG"
    write(moved, b"")
    (folder / "n01440764").unlink(missing_ok=True)
    (folder / "n01440764").mkdir()
    for path in (source / wnid).iterdir():
        (folder / "n01440764" / path.name).hardlink_to(path)
    for path in (source / "n01440764").iterdir():
        (folder / "n01440764" / path.name).hardlink_to(path)
    with pytest.raises(StreamError, match=r"the list of the 5,000 says .* mixed up"):
        imagenet_c.open_source(tmp_path, subset="robustbench-5k")
    with pytest.raises(StreamError, match="subset='5k' is unknown; write one of full, robustbench"):
        imagenet_c.open_source(tmp_path, subset="5k")
    assert file.startswith("ILSVRC2012_val_")


def test_opening_imagenet_c_lists_one_image_set(official, monkeypatch):
    for corruption in ("snow", "frost"):
        for severity in "12345":
            (official / "ImageNet-C" / corruption / severity).mkdir(parents=True, exist_ok=True)
    listed, real = [], os.scandir

    def scandir(path):
        listed.append(Path(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    imagenet_c.open_source(official)
    sets = {path.parents[0] for path in listed if path.name.startswith("n0")}
    assert sets == {official / "ImageNet-C" / "fog" / "5"}
    assert len(listed) < 1010


def test_archives_that_are_not_joined_into_one_folder(tmp_path):
    picture = encoded(smooth(224, 224), "JPEG")
    write(tmp_path / "ImageNet-C/weather/fog/5/n01440764/ILSVRC2012_val_00000293.JPEG", picture)
    write(
        tmp_path / "ImageNet-C/noise/shot_noise/5/n01440764/ILSVRC2012_val_00000293.JPEG", picture
    )
    stream = streams.create("imagenet-c", data_dir=tmp_path, corruptions=("fog", "shot_noise"))
    assert [batch.y.tolist() for batch in stream] == [[0], [0]]


def test_3dcc_visits_its_own_corruptions(official, tmp_path):
    assert "near_focus" in error_of("imagenet-3dcc", data_dir=official)
    stream = streams.create("imagenet-3dcc", data_dir=official, corruptions="fog_3d")
    assert [(d.name, d.severity) for d in stream.domains] == [("fog_3d", 5)]
    for corruption in imagenet_3dcc.CORRUPTIONS:
        for severity in (4, 5):
            write(tmp_path / "ImageNet-3DCC" / corruption / str(severity) / "n01440764/a.JPEG", b"")
    asked = {"data_dir": tmp_path, "severity": (4, 5), "corruptions": CORRUPTIONS}
    stream = streams.create("imagenet-3dcc", **asked)
    assert len(stream.domains) == 24
    assert stream.domains[-1].name == "z_motion_blur_5"


# ImageNet, clean images ---------------------------------------------------------------------------

CLASSES = {"n01440764": 0, "n01443537": 1, "n01847000": 97, "n15075141": 999}
VALIDATION = {
    f"ILSVRC2012_val_{number:08d}": wnid
    for number, wnid in zip((293, 7, 4000, 12, 50_000), [*CLASSES, "n01847000"], strict=True)
}


@pytest.fixture
def flat(tmp_path) -> Path:
    """Clean images of different sizes, by their names alone."""
    for seed, name in enumerate(VALIDATION):
        write(tmp_path / "val" / f"{name}.JPEG", encoded(smooth(260 + 9 * seed, 300), "JPEG"))
    return tmp_path


def rows() -> list[tuple[str, int]]:
    return [(name, CLASSES[wnid]) for name, wnid in sorted(VALIDATION.items())]


def clean_of(root: Path) -> Validation:
    source = imagenet_c.open_source(root)
    assert source.provenance.kind == "generated"
    return source.clean


def test_class_folders_flat_folder_and_shards_give_the_same(flat, tmp_path_factory):
    import pyarrow as pa
    import pyarrow.parquet as pq

    lines = ["ImageId,PredictionString", *(f"{n},{w} 1 2 3 4" for n, w in VALIDATION.items())]
    (flat / "LOC_val_solution.csv").write_text("\n".join(lines))
    folders, shards = (tmp_path_factory.mktemp(name) for name in ("folders", "shards"))
    files = {name: (flat / "val" / f"{name}.JPEG").read_bytes() for name in VALIDATION}
    for name, wnid in VALIDATION.items():
        write(folders / "imagenet" / "val" / wnid / f"{name}.JPEG", files[name])
    (shards / "imagenet").mkdir()
    for shard, part in enumerate((rows()[:2], rows()[2:])):
        cells = [{"bytes": files[n], "path": f"{n}_{VALIDATION[n]}.JPEG"} for n, _ in part]
        table = pa.table({"image": cells, "label": [label for _, label in part]})
        name = f"validation-0000{shard}-of-00002.parquet"
        pq.write_table(table, shards / "imagenet" / name, row_group_size=2)
    one, two, three = map(clean_of, (folders, flat, shards))
    everything = np.array([4, 0, 3, 1, 2])
    for found in (one, two, three):
        assert found.labels.tolist() == [label for _, label in rows()]
        assert found.ids.tolist() == [7, 12, 293, 4000, 50_000]
        assert torch.equal(found.read(everything), one.read(everything))
        copied = pickle.loads(pickle.dumps(found))
        assert torch.equal(copied.read(everything), one.read(everything))
    wanted = read_image(files["ILSVRC2012_val_00050000"], EVALUATION, "")
    assert np.array_equal(one.read(everything)[0].permute(1, 2, 0), wanted)


LABEL_FILES = {
    "index": ("val.txt", [f"{n}.JPEG {label}" for n, label in rows()]),
    "wnid": ("labels.txt", [f"{n}.JPEG {VALIDATION[n]}" for n, _ in rows()]),
}


@pytest.mark.parametrize("form", LABEL_FILES)
def test_label_files(flat, form):
    name, lines = LABEL_FILES[form]
    (flat / name).write_text("\n".join(lines))
    assert clean_of(flat).labels.tolist() == [label for _, label in rows()]


def test_a_line_per_image_in_order_of_their_numbers(tmp_path):
    for number in (1, 3):
        write(tmp_path / "val" / f"ILSVRC2012_val_{number:08d}.JPEG", b"")
    text = "n01440764\nn01443537\nn15075141\n"
    (tmp_path / "imagenet_2012_validation_synset_labels.txt").write_text(text)
    assert clean_of(tmp_path).labels.tolist() == [0, 999]


WRONG_LABELS = {
    "none": (None, ["has images but no labels", "LOC_val_solution.csv"]),
    "development kit": (["490", "361"], ["line 1", "bare number", "another order"]),
    "unknown class": (["ILSVRC2012_val_00000007.JPEG n99999999"], ["line 1 names no class"]),
    "index 1000": (["ILSVRC2012_val_00000007.JPEG 1000"], ["line 1 names no class"]),
    "twice": (["ILSVRC2012_val_00000007.JPEG 1"] * 2, ["line 2", "comes twice"]),
    "incomplete": (["ILSVRC2012_val_00000007.JPEG 1"], ["no label for", "val_00000012.JPEG"]),
    "empty": ([], ["val.txt is empty"]),
}


@pytest.mark.parametrize("case", WRONG_LABELS)
def test_a_mixed_up_label_file(flat, case):
    lines, words = WRONG_LABELS[case]
    if lines is not None:
        (flat / "val.txt").write_text("\n".join(lines))
    text = error_of("imagenet-c", data_dir=flat)
    assert all(word in text for word in words), text


def test_shards_whose_labels_count_in_another_order(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    cells = [{"bytes": b"", "path": "ILSVRC2012_val_00000001_n15075141.JPEG"}]
    table = pa.table({"image": cells, "label": [1]})
    pq.write_table(table, tmp_path / "validation-00000-of-00001.parquet")
    text = error_of("imagenet-c", data_dir=tmp_path)
    assert "validation-00000-of-00001.parquet row 0: label 1, but" in text
    assert "of class 999" in text


def test_a_clean_image_that_does_not_decode(flat):
    (flat / "val.txt").write_text("\n".join(LABEL_FILES["index"][1]))
    path = write(flat / "val" / "ILSVRC2012_val_00000293.JPEG", b"no image")
    with pytest.raises(StreamError) as error:
        clean_of(flat).read(np.arange(5))
    assert f"{path} (image 2) does not decode" in str(error.value)
    path.unlink()
    # It was listed when the source was opened, then went.
    write(path, encoded(smooth(224, 224), "JPEG"))
    clean = clean_of(flat)
    path.unlink()
    with pytest.raises(StreamError, match=r"00000293.JPEG \(image 2\) is missing"):
        clean.read(np.arange(5))


def test_clean_imagenet(flat):
    (flat / "val.txt").write_text("\n".join(LABEL_FILES["index"][1]))
    stream = streams.create("imagenet", data_dir=flat, shuffle=False, batch_size=2)
    assert [batch.domain for batch in stream] == ["clean"] * 3
    x, y = tensors(stream)
    assert y.tolist() == [label for _, label in rows()]
    assert torch.equal(x * 255, clean_of(flat).read(np.arange(5)).float())
    assert stream.num_classes == 1000


def test_generated_imagenet_c(flat):
    (flat / "val.txt").write_text("\n".join(LABEL_FILES["index"][1]))
    asked = {"data_dir": flat, "corruptions": ("fog", "gaussian_noise"), "shuffle": False}
    stream = streams.create("imagenet-c", **asked)
    said = str(stream.provenance)
    assert said.startswith("generated (clean=ImageNet validation, images=5, subset=full")
    assert "prepared=resize 256, crop 224x224" in said
    assert "encoded=JPEG 85" in said
    clean = imagenet_c.open_source(flat, jpeg_quality=None)
    assert "encoded" not in str(clean.provenance)
    fog, noise = stream.domains
    for domain in (fog, noise):
        plain = clean.images(np.array([3, 1]), domain)
        ids = clean.clean.ids[[3, 1]].tolist()
        wanted = corruptions.corrupt(
            clean.images(np.array([3, 1]), CLEAN), domain.name, 5, ids=ids, profile="imagenet"
        )
        assert torch.equal(plain, wanted)
        again = stream.source.images(np.array([3, 1]), domain)
        assert torch.equal(again, corruptions.recompress(plain, quality=85))
        change = (again.float() - plain.float()).abs().mean()
        assert 0 < change < (5 if domain == fog else 60)  # coloured noise loses half its colour
    # The corruption belongs to the image: another folder with fewer of them has the same pixels.
    before = stream.source.images(np.array([4]), noise)
    (flat / "val" / "ILSVRC2012_val_00000007.JPEG").unlink()
    assert torch.equal(imagenet_c.open_source(flat).images(np.array([3]), noise), before)


@pytest.mark.shared
def test_generated_imagenet_c_on_real_images(shared):
    stream = streams.create(
        "imagenet-c", data_dir=shared / "data", corruptions="fog", num_examples=2, shuffle=False
    )
    batch = stream.batch(0)
    assert batch.x.shape == (2, 3, 224, 224)
    assert batch.y.tolist() == [0, 1]
    assert stream.describe()["labels"][:3] == [1, 1, 0]
    assert len(stream.source.labels) == 1000


# Subsets of ImageNet ------------------------------------------------------------------------------


def test_a_subset_numbers_its_classes_within_it(tmp_path):
    from streams.imagenet_classes import subset

    chosen = subset("imagenet_r")
    assert len(chosen) == 200
    some = sorted(chosen)[50:53]  # a part of the archive must not be numbered 0, 1, 2
    for number, wnid in enumerate(some):
        write(tmp_path / "imagenet-r" / wnid / f"art_{number}.jpg", encoded(smooth(260, 300)))
    stream = streams.create("imagenet-r", data_dir=tmp_path, shuffle=False)
    assert stream.num_classes == 200
    assert tensors(stream)[1].tolist() == [50, 51, 52]
    class_ids = stream.source.class_ids
    assert class_ids == tuple(sorted(class_ids))
    assert [class_ids[label] for label in (50, 51, 52)] == [chosen[wnid] for wnid in some]
    assert [domain.name for domain in stream.domains] == ["imagenet-r"]
    assert stream.batch(0).x.shape == (3, 3, 224, 224)
    with pytest.raises(StreamError):
        next(stream.clean_batches())
    foreign = next(wnid for wnid in imagenet_class_to_id() if wnid not in chosen)
    write(tmp_path / "imagenet-r" / foreign / "a.jpg", b"")
    text = error_of("imagenet-r", data_dir=tmp_path)
    assert f"{foreign} is not one of the 200 classes of imagenet-r" in text


def test_imagenet_v2_folders_are_numbers_not_text(tmp_path):
    root = tmp_path / "imagenetv2-matched-frequency-format-val"
    for number in (0, 2, 10, 100):
        write(root / str(number) / f"{number}.jpeg", encoded(smooth(230, 230)))
    stream = streams.create("imagenet-v2", data_dir=tmp_path, shuffle=False)
    assert sorted(tensors(stream)[1].tolist()) == [0, 2, 10, 100]
    assert stream.source.class_ids is None
    assert stream.num_classes == 1000
    (root / "1000").mkdir()
    assert "1000 is not one of" in error_of("imagenet-v2", data_dir=tmp_path)
    # Folders named 1 to 5 are not taken for severities of a corruption.
    write(root / "3" / "3.jpeg", b"")
    assert "no ImageNet-C in" in error_of("imagenet-c", data_dir=tmp_path)


def test_imagenet_sketch_and_a_damaged_image(tmp_path):
    path = write(tmp_path / "sketch" / "n15075141" / "sketch_3.JPEG", b"GIF89a")
    stream = streams.create("imagenet-sketch", data_dir=tmp_path)
    assert stream.describe()["labels"][999] == 1
    text = error_of("imagenet-sketch", data_dir=tmp_path)
    assert f"{path} (image 0) does not decode" in text
    (tmp_path / "sketch" / "n01440764").mkdir()
    assert "n01440764 is empty" in error_of("imagenet-sketch", data_dir=tmp_path)


MISSING = {
    "cifar10": ["cifar10/test-", "24 MB", "cifar-10-batches-py/test_batch", "170 MB"],
    "cifar10-c": ["CIFAR-10-C/<corruption>.npy", "2535967", "2.9 GB", "cifar-10-batches-py"],
    "cifar100": ["cifar-100-python/test", "cifar-100-python.tar.gz", "170 MB"],
    "cifar100-c": ["CIFAR-100-C/<corruption>.npy", "3555552", "2.9 GB"],
    "imagenet": ["imagenet/val/<wnid>", "validation-*.parquet", "6.7 GB"],
    "imagenet-c": ["<corruption>/<severity>/<wnid>", "2235448", "48 GB", "imagenet/val", "6.7 GB"],
    "imagenet-3dcc": ["ImageNet-3DCC/<corruption>/<severity>", "epfl", "GB"],
    "imagenet-r": ["imagenet-r/<wnid>", "imagenet-r.tar", "2.2 GB"],
    "imagenet-a": ["imagenet-a/<wnid>", "imagenet-a.tar", "690 MB"],
    "imagenet-v2": ["imagenetv2-matched-frequency-format-val", "1.3 GB"],
    "imagenet-sketch": ["sketch/<wnid>", "ImageNet-Sketch.zip", "8 GB"],
    "domainnet-126": ["<domain>_list.txt", "real.zip 5.6 GB", "M3SDA"],
}


@pytest.mark.parametrize("name", MISSING)
def test_missing_data_is_named_with_origin_and_size(name, tmp_path):
    text = error_of(name, data_dir=tmp_path)
    assert f"in {tmp_path}: put there " in text
    assert "--data-dir names another folder" in text
    assert all(word in text for word in MISSING[name]), text


# Domains of their own -----------------------------------------------------------------------------


@pytest.fixture
def domainnet(tmp_path) -> Path:
    """Two domains of different size: class and number of an image are its shade."""
    for domain, counts in {"real": {"axe": 3, "bee": 2}, "sketch": {"axe": 1, "bee": 3}}.items():
        lines = []
        for label, (name, count) in enumerate(counts.items()):
            for number in range(count):
                file = f"{domain}/{name}/{domain}_{label}_{number}.png"
                shade = 100 * label + 20 * number + (10 if domain == "sketch" else 0)
                picture = np.full((224, 224, 3), shade, np.uint8)
                write(tmp_path / "domainnet-126" / file, encoded(picture))
                lines.append(f"{file} {label}")
        (tmp_path / "domainnet-126" / f"{domain}_list.txt").write_text("\n".join(lines))
    return tmp_path


@pytest.mark.parametrize("setting", ["continual", "reset"])
def test_domains_have_images_of_their_own(domainnet, setting):
    stream = streams.create(
        "domainnet-126", data_dir=domainnet, setting=setting, batch_size=2, shuffle=False
    )
    assert stream.num_classes == 126
    batches = list(stream)
    assert [len(batch.y) for batch in batches] == [2, 2, 1, 2, 2]
    assert [batch.domain for batch in batches] == ["real"] * 3 + ["sketch"] * 2
    assert stream.reset_steps == ((0, 3) if setting == "reset" else ())
    # One of each class, then the next of each class.
    x, y = tensors(stream)
    assert y.tolist() == [0, 1, 0, 1, 0, 0, 1, 1, 1]
    shades = (x[:, 0, 0, 0] * 255).round().int().tolist()
    assert shades == [0, 100, 20, 120, 40, 10, 110, 130, 150]
    table = stream.describe()["domains"]
    assert [(row["name"], row["samples"], row["first_step"]) for row in table] == [
        ("real", 5, 0),
        ("sketch", 4, 3),
    ]


def test_shuffled_domains_have_each_image_once(domainnet):
    stream = streams.create("domainnet-126", data_dir=domainnet, batch_size=2, seed=3)
    index = torch.cat([batch.index for batch in stream]).tolist()
    assert sorted(index[:5]) == [0, 1, 2, 3, 4]
    assert sorted(index[5:]) == [5, 6, 7, 8]
    other = streams.create("domainnet-126", data_dir=domainnet, batch_size=2, seed=4)
    assert stream.hash != other.hash
    resumed = list(stream.start_at(3))
    assert torch.equal(resumed[0].x, list(stream)[3].x)


def test_domains_are_chosen_by_name_and_images_counted_in_each(domainnet):
    asked = {"data_dir": domainnet, "shuffle": False}
    one = streams.create("domainnet-126", corruptions="sketch", **asked)
    assert [batch.domain for batch in one] == ["sketch"]
    both = streams.create("domainnet-126", corruptions=("sketch", "real"), num_examples=2, **asked)
    assert [(b.domain, b.y.tolist()) for b in both] == [("sketch", [0, 1]), ("real", [0, 1])]
    # As many as the largest has: the smaller one gives what it has.
    most = streams.create("domainnet-126", num_examples=5, **asked)
    assert [len(batch.y) for batch in most] == [5, 4]
    assert "num_examples=6 is out of range" in error_of("domainnet-126", num_examples=6, **asked)
    text = error_of("domainnet-126", corruptions="sketches", **asked)
    assert "no domain 'sketches' (did you mean 'sketch'?); it has real, sketch" in text
    assert "has no severities" in error_of("domainnet-126", severity=3, **asked)


def test_a_restricted_plan_keeps_order_borders_and_resets(domainnet):
    source = streams.create("domainnet-126", data_dir=domainnet).source
    domains = source.domains(CORRUPTIONS, 5)
    from streams.order import Plan

    mixture = Plan(
        domains=tuple(domains),
        positions=np.array([0, 5, 1, 6, 7, 2, 8, 0]),
        domain_ids=np.array([0, 0, 1, 1, 1, 0, 1, 1]),
        offsets=np.array([0, 3, 6, 8]),
        reset_steps=(0, 2),
    )
    kept = membership.restrict(mixture, source, 3)
    assert kept.positions.tolist() == [0, 6, 7, 2, 8]
    assert kept.domain_ids.tolist() == [0, 1, 1, 0, 1]
    assert kept.offsets.tolist() == [0, 3, 4, 5]
    assert kept.reset_steps == (0, 2)


@pytest.mark.parametrize("setting", streams.list_settings())
def test_every_setting_gives_a_domain_its_own_images_or_says_why_not(domainnet, setting):
    asked = {"data_dir": domainnet, "setting": setting, "batch_size": 2}
    if setting in ("gradual", "label-shift", "unitta"):
        text = error_of("domainnet-126", **asked)
        assert "of their own" in text or "has none" in text
        return
    plan = streams.create("domainnet-126", **asked).plan
    assert ((plan.positions < 5) == (plan.domain_ids == 0)).all()
    sizes = np.diff(plan.offsets)
    assert 1 <= sizes.min() <= sizes.max() <= 2
    assert plan.offsets[-1] == len(plan.positions)
    assert set(plan.reset_steps) <= set(range(len(plan)))
    if setting in ("mixed", "correlated", "mixed-correlated"):
        assert sorted(plan.positions) == list(range(9))
    if setting == "recurring":
        assert np.bincount(plan.positions).tolist() == [20] * 9
        assert len(plan.visit_starts) == 40


WRONG_LISTS = {
    "no label": ("real/axe/a.png", ["line 1", "expected 'path label'"]),
    "label 126": ("real/axe/a.png 126", ["line 1", "label 126 is out of range: 0 to 125"]),
    "twice": ("real/axe/real_0_0.png 0\nreal/axe/real_0_0.png 0", ["line 2", "comes twice"]),
    "two labels": ("real/axe/a.png 0\nreal/axe/b.png 1", ["line 2", "label 1, and 0 before"]),
    "other list": ("real/axe/real_0_0.png 1", ["class axe has label 0, but 1 in real_list.txt"]),
    "no image": ("real/axe/gone.png 0", ["gone.png is missing, the first image of real_list.txt"]),
    "empty": ("", ["real_list.txt is empty"]),
}


@pytest.mark.parametrize("case", WRONG_LISTS)
def test_a_mixed_up_list(domainnet, case):
    text, words = WRONG_LISTS[case]
    (domainnet / "domainnet-126" / "real_list.txt").write_text(text)
    said = error_of("domainnet-126", data_dir=domainnet)
    assert all(word in said for word in words), said


def test_a_folder_of_classes(tmp_path):
    images = made(4, 24)
    for name, image in zip(("cat/a", "cat/b", "dog/a", "dog/b"), images, strict=True):
        write(tmp_path / f"{name}.png", encoded(image))
    (tmp_path / "cat" / "notes.txt").write_text("not an image")
    stream = streams.create("folder", data_dir=tmp_path, shuffle=False)
    x, y = tensors(stream)
    assert y.tolist() == [0, 1, 0, 1]
    # All of one size: taken as they are.
    assert torch.equal(x, unit(images[[0, 2, 1, 3]]))
    assert [domain.name for domain in stream.domains] == ["images"]
    assert stream.provenance.kind == "arrays"
    assert stream.source.class_ids is None
    path = write(tmp_path / "dog" / "b.png", encoded(made(1, 25)[0]))
    text = error_of("folder", data_dir=tmp_path)
    assert f"{path} (image 3) is (25, 25), expected 24x24" in text


def test_a_folder_of_domains(tmp_path):
    for name, size in {"day/cat/1": 230, "day/dog/1": 250, "night/dog/2": 300}.items():
        write(tmp_path / f"{name}.jpg", encoded(smooth(size, size), "JPEG"))
    stream = streams.create("folder", data_dir=tmp_path)
    assert [(batch.domain, sorted(batch.y.tolist())) for batch in stream] == [
        ("day", [0, 1]),
        ("night", [1]),
    ]
    assert stream.batch(0).x.shape == (2, 3, 224, 224)
    (tmp_path / "night" / "cow").mkdir()
    assert f"{tmp_path / 'night' / 'cow'} is empty" in error_of("folder", data_dir=tmp_path)


def test_a_folder_of_wnids_knows_their_classes(tmp_path):
    for domain in ("clipart", "real"):
        for wnid in ("n01847000", "n15075141"):
            write(tmp_path / domain / wnid / "a.png", encoded(made(1, 16)[0]))
    source = streams.create("folder", data_dir=tmp_path).source
    assert source.class_ids == (97, 999)
    assert source.num_classes == 2


def test_a_folder_that_is_not_named_or_empty(tmp_path):
    assert "--data-dir" in error_of("folder")
    assert "holds no folders" in error_of("folder", data_dir=tmp_path)


# Embedded -----------------------------------------------------------------------------------------


def test_clean_fashion_mnist():
    stream = streams.create("fashion-mnist", num_examples=6, shuffle=False)
    corrupted = streams.create("fashion-mnist-c", corruptions="fog", num_examples=6)
    x, y = tensors(stream)
    wanted, labels = next(corrupted.clean_batches())
    assert torch.equal(x, wanted)
    assert torch.equal(y, labels)
    # The runner asks for the 15 corruptions where nobody chose any.
    same = streams.create("fashion-mnist", num_examples=6, shuffle=False, corruptions=CORRUPTIONS)
    assert same.hash == stream.hash
    assert "no domain 'fog'" in error_of("fashion-mnist", corruptions="fog")


def test_permutations_are_fixed_and_lose_no_pixel():
    stream = streams.create("permuted-mnist", num_examples=3, shuffle=False)
    assert [domain.name for domain in stream.domains] == [f"permutation_{k}" for k in range(1, 11)]
    clean, _ = next(stream.clean_batches())
    x, _ = tensors(stream)
    x = x.view(10, 3, 3, 32, 32)
    inside = torch.zeros(32, 32, dtype=torch.bool)
    inside[2:30, 2:30] = True
    for first in range(10):
        assert torch.equal(x[first].flatten(2).sort(-1)[0], clean.flatten(2).sort(-1)[0])
        assert not x[first][..., ~inside].any()
        assert not any(torch.equal(x[first], x[second]) for second in range(first))
    assert torch.equal(x[:, :, 0], x[:, :, 1])
    # The order is the same in every run: its first entries.
    assert permuted_mnist._order(0, 1)[:5] == permuted_mnist._order.__wrapped__(0, 1)[:5]
    chosen = streams.create("permuted-mnist", corruptions=("permutation_12",), num_examples=3)
    assert [domain.name for domain in chosen.domains] == ["permutation_12"]
    for name in ("permutation_0", "permutation_01", "permutation_1001", "permutation_x", "fog"):
        assert "no domain" in error_of("permuted-mnist", corruptions=name)


def test_images_of_one_size_are_prepared_as_they_are():
    image = made(1, 16)[0]
    as_is = Prepare(resize=None, height=16, width=16)
    assert np.array_equal(read_image(encoded(image), as_is, ""), image)
    assert str(as_is) == "16x16 as they are"
