"""The fuzzers for a moment each, inputs that once broke something, and bombs of every kind."""

from __future__ import annotations

import gzip
import io
import random
import struct
import sys
import tarfile
import zipfile
import zlib
from contextlib import suppress
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent / "fuzz"))

import mutate
import run as fuzz
import targets

from benchmarks.errors import UsageError
from streams.archives import unpack
from streams.errors import StreamError
from streams.readers import idx, images, npy, parquet

ROOT = Path(__file__).parent


@pytest.fixture
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TTA_BENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


# The files of the corpus, what was fixed among them, and some mutations.
INPUTS = {"text": 150, "arrays": 250, "archives": 120, "checkpoints": 150, "folder": 20}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("_elsewhere")
@pytest.mark.parametrize("name", targets.TARGETS)
def test_no_finding(name: str, tmp_path: Path) -> None:
    session = fuzz.Session(targets.TARGETS[name], tmp_path / "work")
    fuzz.own_mutations(session, seed=0, seconds=60, most=INPUTS[name])
    assert not session.findings
    assert session.count == INPUTS[name]
    assert session.refused


def test_a_fault_is_found_once_and_kept(tmp_path: Path) -> None:
    def reader(data: bytes, work: Path) -> None:
        if data == b"deep":
            (work.parent / "outside").touch()
        if len(data) > 3:
            raise KeyError(data)
        raise StreamError("short")

    session = fuzz.Session(targets.Target("t", {"a": reader}), tmp_path / "w", tmp_path / "found")
    for data in (b"a", b"bbbb", b"cccc", b"deep"):
        session.call("a", data)
    assert (session.count, session.refused) == (4, 1)
    assert [value for _, value in session.findings.values()] == [b"bbbb", b"deep"]
    assert sorted(p.suffix for p in (tmp_path / "found").iterdir()) == ["", "", "", ".txt", ".txt"]


def test_an_input_without_end_is_a_finding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def reader(data: bytes, work: Path) -> None:
        while True:
            pass

    monkeypatch.setattr(fuzz, "SECONDS", 1)
    session = fuzz.Session(targets.Target("t", {"a": reader}), tmp_path / "w")
    session.call("a", b"")
    assert "TimeoutError" in next(iter(session.findings))


def test_mutations_are_many_and_follow_from_the_seed() -> None:
    data = b"a = 1\nb = [2, 3]\n"
    once, again = (
        [mutate.mutated(data, [data], draw) for _ in range(200)]
        for draw in (random.Random(3), random.Random(3))
    )
    assert once == again
    assert len(set(once)) > 150
    assert mutate.mutated(b"", [b""], random.Random(0)) is not None


def test_the_corpus_is_small_and_whole() -> None:
    files = [path for path in targets.CORPUS.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 200_000
    for target in targets.TARGETS.values():
        assert {kind for kind, _ in target.seeds()} == set(target.readers)


WORDS = st.text(st.characters(exclude_characters="\n"), max_size=12)


@settings(
    max_examples=120, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(
                ["method", "stream", "setting", "order", "severity", "seed", "open-set"]
            )
            | st.sampled_from(["set", "setting-set", "source-set", "norm-set"]),
            WORDS
            | st.sampled_from(["tent", "recurring", "practical", "gradual", "lr=1e-3", "gamma=0.1"])
            | st.builds("{}={}".format, st.sampled_from(["lr", "steps", "visits", "base"]), WORDS),
        ),
        max_size=6,
    )
)
def test_any_words_are_a_run_or_one_clear_line(pairs: list[tuple[str, str]]) -> None:
    text = "\n".join(f"{key}={value}" for key, value in pairs)
    with suppress(*targets.CLEAN):
        targets._run_words(text)


# Bombs: small files that announce much -----------------------------------------------------------


def test_npy_bomb(tmp_path: Path) -> None:
    head = "{'descr': '|u1', 'fortran_order': False, 'shape': (99999999, 9999, 9999, 3), }\n"
    file = tmp_path / "a.npy"
    file.write_bytes(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head.encode())
    with pytest.raises(StreamError, match="cannot be read"):
        npy.open_images(file)


def test_idx_bomb(tmp_path: Path) -> None:
    file = tmp_path / "a.gz"
    head = bytes((0, 0, 8, 3)) + struct.pack(">III", 2**20, 2**10, 2**10)
    file.write_bytes(gzip.compress(head + bytes(1000)))
    with pytest.raises(StreamError, match="more than the"):
        idx.read_images(file)
    file.write_bytes(
        gzip.compress(bytes((0, 0, 8, 3)) + struct.pack(">III", 1, 2, 2) + bytes(10**7))
    )
    with pytest.raises(StreamError, match="more than 4"):
        idx.read_images(file)


def test_parquet_bomb(tmp_path: Path) -> None:
    """Run lengths: some kilobytes stand for millions of rows."""
    file, rows = tmp_path / "a.parquet", 3_000_000
    column = pa.DictionaryArray.from_arrays(
        pa.array(np.zeros(rows, dtype=np.int8)), pa.array([b"x" * 50_000])
    )
    pq.write_table(pa.table({"img": column, "label": np.zeros(rows, dtype=np.int64)}), file)
    assert file.stat().st_size < 100_000
    with pytest.raises(StreamError, match="cannot be read as parquet"):
        parquet.read_images(file, (8, 8))


def test_image_bomb(tmp_path: Path) -> None:
    def chunk(name: bytes, data: bytes) -> bytes:
        body = name + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 12_000, 12_000, 8, 2, 0, 0, 0))
    data = (
        b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(bytes(99))) + chunk(b"IEND", b"")
    )
    for prepare in (images.EVALUATION, None):
        with pytest.raises(StreamError, match="more than 100,000,000 pixels"):
            images.read_image(data, prepare, "image")
    small = images.Prepare(resize=None, height=8, width=8)
    with pytest.raises(StreamError, match="expected 8x8"):
        images.read_image(data, small, "image")
    # A sliver that a resize of the shorter side would make huge.
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 90_000, 1, 8, 2, 0, 0, 0))
    with pytest.raises(StreamError, match="pixels"):
        images.read_image(
            b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", b""), images.EVALUATION, "image"
        )


def test_a_postscript_file_is_no_image() -> None:
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n%%EOF\n"
    with pytest.raises(StreamError, match="does not decode"):
        images.read_image(eps, None, "image")


def test_tar_bombs(tmp_path: Path) -> None:
    """A header of 300 MB, and a file that expands to as much, in some hundred kilobytes."""
    info = tarfile.TarInfo("Set/a")
    info.size = 300_000_000
    for number, kind in enumerate((tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.REGTYPE)):
        info.type = kind
        file = tmp_path / f"{number}.tar.gz"
        with gzip.open(file, "wb", 1) as made:
            made.write(info.tobuf(tarfile.GNU_FORMAT))
            for _ in range(300):
                made.write(bytes(1_000_000))
        with pytest.raises(StreamError, match=r"damaged|above"):
            unpack(file, tmp_path / "Set")
        assert not (tmp_path / "Set").exists()


def test_zip_bomb_and_too_many_entries(tmp_path: Path) -> None:
    file = tmp_path / "a.zip"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as zipped:
        zipped.writestr("Set/a", bytes(60_000_000))
    with pytest.raises(StreamError, match="above"):
        unpack(file, tmp_path / "Set")
    file = tmp_path / "b.tar.gz"
    body = io.BytesIO()
    with tarfile.open(fileobj=body, mode="w") as tar:
        for number in range(10_100):
            tar.addfile(tarfile.TarInfo(f"Set/{number}"))
    file.write_bytes(gzip.compress(body.getvalue(), 9))
    with pytest.raises(StreamError, match="one of more than"):
        unpack(file, tmp_path / "Set")


def test_json_and_toml_bombs(tmp_path: Path) -> None:
    from benchmarks.results import read_result
    from benchmarks.sweep.plan import parse
    from streams.jsonfiles import load_json

    file = tmp_path / "result.json"
    file.write_text("[" * 200_000, "utf-8")
    with pytest.raises(UsageError, match="not a result"):
        read_result(file)
    with file.open("wb") as made:
        made.truncate(1 << 33)  # sparse: 8 GB that take no room
    with pytest.raises(ValueError, match="more than"):
        load_json(file)
    with pytest.raises(UsageError, match="nested too deeply"):
        parse("a.toml", f"methods = {'[' * 5000}")


def test_a_view_in_place_of_the_table(tmp_path: Path) -> None:
    import sqlite3

    from benchmarks.store import FILE, Store

    with sqlite3.connect(tmp_path / FILE) as connection:
        connection.execute(
            "CREATE VIEW runs AS WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c) "
            "SELECT x AS run_id FROM c"
        )
        connection.execute("PRAGMA user_version = 1")
    with pytest.raises(UsageError, match="is damaged"):
        Store(tmp_path).records()
