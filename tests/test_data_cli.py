"""``tta-bench data``: fetch, status, verify and generate as a user runs them."""

from __future__ import annotations

import hashlib
import io
import json
import signal
import subprocess
import sys
import tarfile
import threading
import time
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import streams
from benchmarks.cli import app
from streams import datasets
from streams.archives import manifest_name
from streams.corruptions.names import CORRUPTIONS
from streams.dataset_files import DATASETS, PLACES, Dataset, RemoteFile
from streams.errors import StreamError
from streams.factory import list_streams
from streams.generate import generate
from streams.sources import cifar10_c

GENERATE = ("data", "generate", "fashion-mnist", "--num-examples", "30", "--corruptions")


def call(*arguments: str | Path):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def good(*arguments: str | Path) -> str:
    result = call(*arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


def refused(*arguments: str | Path) -> str:
    result = call(*arguments)
    assert result.exit_code == 2, result.output
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, result.stderr
    return lines[0]


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def remote(tmp_path: Path, monkeypatch):
    """Two small data sets behind a local server; what is served lies in ``served``."""
    served = tmp_path / "served"
    served.mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    array = io.BytesIO()
    np.save(array, np.arange(10, dtype=np.uint8).repeat(5).reshape(5, 10).T.copy().ravel())
    files = {"CIFAR-10-C/labels.npy": array.getvalue(), "CIFAR-10-C/fog.npy": bytes(3000)}
    with tarfile.open(served / "CIFAR-10-C.tar", "w") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    (served / "test.parquet").write_bytes(b"PAR1" + bytes(500))
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=served))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    base = f"http://127.0.0.1:{server.server_port}"
    md5 = hashlib.md5((served / "CIFAR-10-C.tar").read_bytes()).hexdigest()
    tar_file = RemoteFile(
        name="CIFAR-10-C.tar", urls=(f"{base}/CIFAR-10-C.tar",), md5=md5, unpack=True
    )
    clean = RemoteFile(name="test.parquet", urls=(f"{base}/test.parquet",), about="1 kB")
    page = "https://example.org"
    known = (
        Dataset(name="cifar10-c", title="t", folder="CIFAR-10-C", files=(tar_file,), page=page),
        Dataset(name="cifar10", title="t", folder="cifar10", files=(clean,), page=page),
    )
    monkeypatch.setattr(datasets, "DATASETS", known)
    yield served
    server.shutdown()
    thread.join()
    server.server_close()


def states(*arguments: str | Path) -> dict[str, str]:
    files = json.loads(good("data", "status", "--json", *arguments))["files"]
    return {row["file"]: row["state"] for row in files}


def test_fetch_unpack_status_verify(remote: Path) -> None:
    assert states() == {"CIFAR-10-C.tar": "missing", "test.parquet": "missing"}
    assert "nothing to check" in good("data", "verify")
    out = good("data", "fetch", "cifar10-c", "cifar10")
    assert "CIFAR-10-C.tar: unpacked, data/CIFAR-10-C (md5:" in out
    assert "test.parquet: fetched, data/cifar10/test.parquet (no published checksum)" in out
    assert not list(Path("data").glob("[!.]*.tar*"))
    assert states() == {"CIFAR-10-C.tar": "ready", "test.parquet": "ready"}
    rows = json.loads(good("data", "verify", "--json"))
    assert [row["state"] for row in rows] == ["ok", "unchanged"]
    again = json.loads(good("data", "fetch", "cifar10-c", "cifar10", "--offline", "--json"))
    assert [row["state"] for row in again] == ["present", "present"]
    assert "ready" in good("data", "status")

    (Path("data") / "CIFAR-10-C" / "fog.npy").write_bytes(bytes(2999) + b"x")
    (Path("data") / "cifar10" / "test.parquet").write_bytes(b"PAR1")
    line = refused("data", "verify")
    assert "2 of 2 damaged: data/CIFAR-10-C, data/cifar10/test.parquet" in line
    assert "missing or changed: fog.npy" in call("data", "verify").stdout
    assert "move it away and fetch again" in refused("data", "fetch", "cifar10")


def test_the_first_fetch_is_remembered(remote: Path) -> None:
    good("data", "fetch", "cifar10")
    record = Path("data/cifar10/test.parquet.fetched.json")
    digest = hashlib.sha256((remote / "test.parquet").read_bytes()).hexdigest()
    assert json.loads(record.read_text())["sha256"] == digest
    Path("data/cifar10/test.parquet").unlink()
    (remote / "test.parquet").write_bytes(b"PAR1 another")
    line = refused("data", "fetch", "cifar10", "--retries", "0")
    assert f"expected is {digest}" in line
    assert f"delete {record} to accept" in line
    record.unlink()
    good("data", "fetch", "cifar10")


def test_a_file_placed_by_hand(remote: Path) -> None:
    Path("data").mkdir()
    (Path("data") / "CIFAR-10-C.tar").write_bytes((remote / "CIFAR-10-C.tar").read_bytes())
    assert states()["CIFAR-10-C.tar"] == "not unpacked"
    good("data", "fetch", "cifar10-c", "--offline", "--keep-archive")
    assert (Path("data") / "CIFAR-10-C.tar").exists()
    rows = json.loads(good("data", "verify", "cifar10-c", "--json"))
    assert [(row["state"], row["path"]) for row in rows] == [
        ("ok", "data/CIFAR-10-C.tar"),
        ("ok", "data/CIFAR-10-C"),
    ]


def test_a_folder_unpacked_by_hand_is_left_alone(remote: Path) -> None:
    folder = Path("data/CIFAR-10-C")
    folder.mkdir(parents=True)
    (folder / "labels.npy").write_bytes(b"mine")
    assert states()["CIFAR-10-C.tar"] == "by hand"
    assert "it is left as it is" in refused("data", "fetch", "cifar10-c")
    assert json.loads(good("data", "verify", "--json"))[0]["state"] == "unknown"
    assert not list(Path("data").glob("[!.]*.tar*"))


def test_mirror_first(remote: Path, monkeypatch) -> None:
    (remote / "m").mkdir()
    (remote / "CIFAR-10-C.tar").rename(remote / "m" / "CIFAR-10-C.tar")
    base = datasets.DATASETS[0].files[0].urls[0].rpartition("/")[0]
    row = json.loads(good("data", "fetch", "cifar10-c", "--mirror", f"{base}/m/", "--json"))[0]
    assert (row["url"], row["state"]) == (f"{base}/m/CIFAR-10-C.tar", "unpacked")
    monkeypatch.setenv("TTA_BENCH_MIRROR", f"{base}/none")
    line = refused("data", "fetch", "cifar10", "--data-dir", "e", "--file", "test.parquets")
    assert "has no file 'test.parquets'; it has test.parquet" in line
    good("data", "fetch", "cifar10", "--data-dir", "e")


def test_a_killed_download_is_seen(remote: Path) -> None:
    Path("data/cifar10").mkdir(parents=True)
    Path("data/cifar10/test.parquet.part").write_bytes(b"PAR")
    assert states()["test.parquet"] == "part"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("fetch", "cifar10c"), "did you mean 'cifar10-c'"),
        (
            ("fetch", "cifar10-c", "--offline"),
            "by hand: download https://zenodo.org/records/2535967",
        ),
        (("fetch", "cifar10", "cifar100", "--file", "x"), "name one data set only"),
        (("verify", "cifar"), "unknown data set 'cifar'"),
        (("generate", "cifar-10"), "did you mean 'cifar10'"),
        (("generate", "cifar10"), "tta-bench data fetch cifar10"),
        (("generate", "fashion-mnist", "--corruptions", "fogg"), "did you mean 'fog'"),
        (("generate", "fashion-mnist", "--corruptions", ","), "name at least one"),
        (("generate", "fashion-mnist", "--num-examples", "0"), "num_examples=0"),
        (("generate", "fashion-mnist", "--seed", "-1"), "seed=-1"),
    ],
)
def test_wrong_input(tmp_path: Path, monkeypatch, arguments, words: str) -> None:
    monkeypatch.chdir(tmp_path)
    assert words in refused("data", *arguments)
    assert not list(tmp_path.rglob("*.npy"))


def test_status_and_help_import_nothing_heavy(tmp_path: Path) -> None:
    code = """
import sys
from benchmarks.cli import app
for words in (["data", "--help"], ["data", "fetch", "--help"], ["data", "status"]):
    try: app(words)
    except SystemExit as done: assert not done.code
heavy = {"torch", "numpy", "requests", "pyarrow", "filelock", "tqdm"} & set(sys.modules)
assert not heavy, heavy
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert "ImageNet-C/*/[1-5]" in done.stdout


def test_known_files_are_plausible() -> None:
    for dataset in DATASETS:
        assert set(dataset.optional) < {file.name for file in dataset.files}
        for file in dataset.files:
            assert all(url.startswith("https://") and file.name in url for url in file.urls)
            assert file.md5 is None or (len(file.md5) == 32 and int(file.md5, 16))
            assert file.size or file.about
    files = [file for dataset in DATASETS for file in dataset.files]
    assert len({file.md5 for file in files if file.md5}) == sum(bool(f.md5) for f in files)
    assert set(PLACES) <= set(list_streams())


def test_the_page_lists_every_known_file() -> None:
    page = (Path(streams.__file__).parents[1] / "docs" / "data.md").read_text("utf-8")
    for dataset in DATASETS:
        assert f"`{dataset.name}`" in page
        for file in dataset.files:
            assert f"`{file.name}`" in page
            assert file.md5 is None or file.md5 in page
            assert file.size is None or f"{file.size:,}" in page


@pytest.mark.parametrize("name", ["cifar10-c", "cifar100-c"])
def test_places_are_where_the_stream_looks(tmp_path: Path, name: str) -> None:
    for at, place in enumerate(PLACES[name]):
        folder = tmp_path / str(at)
        (folder / place.pattern).parent.mkdir(parents=True)
        with pytest.raises(StreamError, match=r"no CIFAR-100?-C in"):
            streams.create(name, data_dir=folder)
        (folder / place.pattern).write_bytes(b"x")
        with pytest.raises(StreamError) as caught:
            streams.create(name, data_dir=folder)
        assert str(folder / place.pattern) in str(caught.value)
        assert "no CIFAR-10" not in str(caught.value)


def test_the_list_of_an_archive_does_not_disturb_imagenet_c(tmp_path: Path) -> None:
    image = tmp_path / "ImageNet-C" / "fog" / "5" / "n01440764" / "ILSVRC2012_val_00000293.JPEG"
    image.parent.mkdir(parents=True)
    image.touch()
    for name in ("noise.tar", "blur.tar"):
        (tmp_path / "ImageNet-C" / manifest_name(name)).write_text("{}")
    stream = streams.create("imagenet-c", data_dir=tmp_path, corruptions=("fog",))
    assert (len(stream), stream.provenance.kind) == (1, "official")


def test_generated_equals_on_the_fly(tmp_path: Path) -> None:
    out = tmp_path / "CIFAR-10-C"
    made = json.loads(good(*GENERATE, "fog,shot_noise", "--out", out, "--json"))
    assert set(made["files"]) == {"labels.npy", "clean.npy", "fog.npy", "shot_noise.npy"}
    labels, fog = np.load(out / "labels.npy"), np.load(out / "fog.npy")
    assert (labels.shape, labels.dtype) == ((150,), np.uint8)
    assert (fog.shape, fog.dtype) == ((150, 32, 32, 3), np.uint8)
    options = {"num_examples": 30, "batch_size": 7, "severity": (5, 2)}
    chosen = {"corruptions": ("fog", "shot_noise"), **options}
    fly = streams.create("fashion-mnist-c", **chosen)
    for name, folder in {"npy-folder": out, "cifar10-c": tmp_path}.items():
        read = streams.create(name, data_dir=folder, **chosen)
        assert read.num_classes == 10
        assert read.provenance.kind == "generated"
        assert read.provenance.detail.items() >= fly.provenance.detail.items()
        for one, other in zip(fly, read, strict=True):
            assert one.x.equal(other.x)
            assert one.y.equal(other.y)
        for (one, _), (other, _) in zip(fly.clean_batches(), read.clean_batches(), strict=True):
            assert one.equal(other)
    assert states("--data-dir", tmp_path)["CIFAR-10-C.tar"] == "generated"
    line = refused("data", "fetch", "cifar10-c", "--data-dir", tmp_path)
    assert "holds a generated set" in line


def test_a_mark_that_cannot_be_read_is_not_official(tmp_path: Path) -> None:
    out = tmp_path / "CIFAR-10-C"
    good(*GENERATE, "fog", "--out", out)
    for text in ("{", "[]", '{"kind": "official"}'):
        (out / "provenance.json").write_text(text)
        with pytest.raises(StreamError, match=r"provenance\.json"):
            cifar10_c.open_source(tmp_path)


def test_generate_goes_on_and_refuses_another_set(tmp_path: Path) -> None:
    out = tmp_path / "set"
    good(*GENERATE, "fog", "--out", out)
    before = {p.name: p.stat().st_mtime_ns for p in out.glob("*.npy")}
    good(*GENERATE, "fog,contrast", "--out", out)
    after = {p.name: p.stat().st_mtime_ns for p in out.glob("*.npy")}
    assert after.items() > before.items()
    assert "contrast.npy" in after
    assert "seed is '0' there and '1' here" in refused(
        *GENERATE, "fog", "--out", out, "--seed", "1"
    )
    (out / "fog.npy").write_bytes((out / "fog.npy").read_bytes()[:-1] + b"\x01")
    assert "1 of 4 damaged" in refused("data", "verify", "--data-dir", tmp_path)
    (out / "fog.npy").unlink()
    good(*GENERATE, "fog", "--out", out)
    good("data", "verify", "--data-dir", tmp_path)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "labels.npy").touch()
    assert "not a generated set" in refused(*GENERATE, "fog", "--out", tmp_path / "other")


def test_kill_9_while_generating(tmp_path: Path) -> None:
    names = CORRUPTIONS[:3]
    generate("fashion-mnist", tmp_path / "whole", corruptions=names, num_examples=200)
    code = (
        "import sys; from pathlib import Path; from streams.generate import generate\n"
        f"generate('fashion-mnist', Path(sys.argv[1]), corruptions={names}, num_examples=200)"
    )
    out = tmp_path / "killed"
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(out)], cwd=Path(streams.__file__).parents[1]
    )
    while process.poll() is None and not (out / f"{names[0]}.npy").exists():
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert (out / "provenance.json").is_file()
    for path in out.glob("*.npy"):  # what has its name is whole
        assert path.read_bytes() == (tmp_path / "whole" / path.name).read_bytes()
    generate("fashion-mnist", out, corruptions=names, num_examples=200)
    for path in (tmp_path / "whole").iterdir():
        assert path.read_bytes() == (out / path.name).read_bytes()
    assert not list(out.glob(".*.unfinished"))


@pytest.mark.shared
def test_generate_from_real_cifar10(shared: Path, tmp_path: Path) -> None:
    data = shared / "data"
    good(
        *("data", "generate", "cifar10", "--data-dir", data, "--out", tmp_path / "set"),
        *("--num-examples", "20", "--corruptions", "frost"),
    )
    chosen = {"corruptions": ("frost",), "num_examples": 20}
    read = streams.create("cifar10-c", data_dir=tmp_path / "set", **chosen)
    fly = streams.create("cifar10-c", data_dir=data, **chosen)
    assert read.batch(0).x.equal(fly.batch(0).x)
    assert read.provenance.detail.items() >= fly.provenance.detail.items()
