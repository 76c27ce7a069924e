"""Archives of others: what is refused, and what a kill in the middle leaves."""

from __future__ import annotations

import errno
import io
import os
import signal
import subprocess
import sys
import tarfile
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest

from streams import archives
from streams.archives import changed_groups, manifest_name, unpack
from streams.errors import StreamError

FILES = {
    f"Set/{part}/{i}.bin": np.random.default_rng(i).bytes(1000 + i)
    for part in "ab"
    for i in range(5)
}


def member(
    name: str, kind: bytes = tarfile.REGTYPE, size: int = 0, link: str = ""
) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.size, info.linkname = kind, size, link
    return info


def make_tar(path: Path, files: dict[str, bytes], *extra: tarfile.TarInfo, mode: str = "w") -> Path:
    with tarfile.open(path, mode) as tar:
        for name, data in files.items():
            tar.addfile(member(name, size=len(data)), io.BytesIO(data))
        for info in extra:
            tar.addfile(info, io.BytesIO(bytes(info.size)))
    return path


def make_zip(path: Path, files: dict[str, bytes], **attributes: int) -> Path:
    with zipfile.ZipFile(path, "w") as opened:
        for name, data in files.items():
            info = zipfile.ZipInfo(name)
            info.compress_type = zipfile.ZIP_DEFLATED
            for key, value in attributes.items():
                setattr(info, key, value)
            opened.writestr(info, data)
    return path


def content(folder: Path) -> dict[str, bytes]:
    return {
        p.relative_to(folder).as_posix(): p.read_bytes()
        for p in sorted(folder.rglob("*"))
        if p.is_file() and not p.name.startswith("fetched-")
    }


WANTED = {name.removeprefix("Set/"): data for name, data in FILES.items()}


@pytest.mark.parametrize("form", ["x.tar", "x.tar.gz", "x.zip"])
@pytest.mark.parametrize("prefix", ["Set/", "./Set/", "", "x/", "Set/x/"])
def test_a_plain_archive(tmp_path: Path, form: str, prefix: str) -> None:
    """With and without a folder at the top."""
    files = {prefix + name: data for name, data in WANTED.items()}
    if form == "x.zip":
        archive = make_zip(tmp_path / form, files)
    else:
        archive = make_tar(tmp_path / form, files, mode="w:gz" if "gz" in form else "w")
    told = []
    made = unpack(
        archive, tmp_path / "Set", facts={"md5": "m"}, progress=lambda d, t: told.append((d, t))
    )
    assert content(tmp_path / "Set") == WANTED
    assert (made["files"], made["bytes"], made["md5"]) == (10, sum(map(len, FILES.values())), "m")
    assert told[-1] == (made["bytes"], made["bytes"])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["Set", form]
    assert not changed_groups(tmp_path / "Set", made)
    archive.unlink()
    assert unpack(archive, tmp_path / "Set") == made  # done is done


EVIL = {
    "parent": (member("../evil"), "leads out of the folder"),
    "parent inside": (member("Set/../../evil"), "leads out of the folder"),
    "absolute": (member("/evil"), "has an absolute or foreign path"),
    "drive": (member("C:evil"), "has an absolute or foreign path"),
    "backslash": (member("..\\evil"), "has an absolute or foreign path"),
    "symlink": (member("Set/l", tarfile.SYMTYPE, link="/etc"), "is a link"),
    "symlink inside": (member("Set/l", tarfile.SYMTYPE, link="a"), "is a link"),
    "hard link": (member("Set/l", tarfile.LNKTYPE, link="../../x"), "is a link"),
    "device": (member("Set/d", tarfile.CHRTYPE), "is a device"),
    "block device": (member("Set/d", tarfile.BLKTYPE), "is a device"),
    "pipe": (member("Set/p", tarfile.FIFOTYPE), "is a device"),
    "folder": (member("../evil", tarfile.DIRTYPE), "leads out of the folder"),
    "twice": (member("Set/a/0.bin"), "is there twice"),
    "file and folder": (member("Set/a"), "is a file and a folder"),
    "list": (member(f"Set/{manifest_name('x.tar')}"), "has a name that is reserved"),
    "large": (member("Set/z", size=400_000), "above 300,000 bytes"),
}


@pytest.mark.parametrize("case", EVIL)
def test_what_is_refused(tmp_path: Path, case: str) -> None:
    info, message = EVIL[case]
    inner = tmp_path / "inner"
    inner.mkdir()
    for at, archive in enumerate(
        [
            make_tar(inner / "x.tar", FILES, info),
            make_tar(inner / "x.tgz", FILES, info, mode="w:gz"),
        ]
    ):
        with pytest.raises(StreamError, match="is refused") as caught:
            unpack(archive, inner / "Set", max_bytes=300_000)
        assert message in str(caught.value), at
        assert "\n" not in str(caught.value)
        assert not (inner / "Set").exists()
    # Nothing of the good files was written either, nor anything outside.
    assert [
        p for p in tmp_path.rglob("*") if p.is_file() and p.suffix not in (".tar", ".tgz")
    ] == []


def test_what_is_refused_of_zip(tmp_path: Path) -> None:
    cases = [
        ("../evil", {}, "leads out of the folder"),
        ("/evil", {}, "has an absolute or foreign path"),
        ("a\\..\\evil", {}, "has an absolute or foreign path"),
        ("link", {"external_attr": 0o120777 << 16}, "is a link"),
        ("pipe", {"external_attr": 0o010644 << 16}, "is a device"),
    ]
    for name, attributes, message in cases:
        archive = make_zip(tmp_path / "x.zip", {name: b"/etc"}, **attributes)
        with pytest.raises(StreamError, match="is refused") as caught:
            unpack(archive, tmp_path / "Set")
        assert message in str(caught.value)
        assert not (tmp_path / "Set").exists()
    assert not (tmp_path.parent / "evil").exists()


def test_bombs(tmp_path: Path) -> None:
    zeros = bytes(30_000_000)
    for archive in (
        make_tar(tmp_path / "x.tar.gz", {"z": zeros}, mode="w:gz"),
        make_zip(tmp_path / "x.zip", {"z": zeros}),
    ):
        with pytest.raises(StreamError, match="brings the content above"):
            unpack(archive, tmp_path / "Set")
    raw = bytearray(make_zip(tmp_path / "y.zip", {"z": zeros}).read_bytes())
    at = raw.rindex(b"PK\x01\x02") + 24  # the index claims ten bytes
    raw[at : at + 4] = (10).to_bytes(4, "little")
    (tmp_path / "y.zip").write_bytes(raw)
    with pytest.raises(StreamError, match="damaged"):
        unpack(tmp_path / "y.zip", tmp_path / "Set")
    assert not (tmp_path / "Set").exists()


def test_every_cut_is_seen(tmp_path: Path) -> None:
    for archive in (
        make_tar(tmp_path / "x.tar", FILES),
        make_tar(tmp_path / "y.tgz", FILES, mode="w:gz"),
        make_zip(tmp_path / "z.zip", FILES),
    ):
        whole = archive.read_bytes()
        end = len(whole)
        if archive.suffix == ".tar":
            end = 10 * 1536  # one of the blocks of zeros at the end is enough
            assert not any(whole[end:])
        for size in sorted({0, 1, *range(512, end, 1024), end - 1, end}):
            if size == len(whole):
                continue
            archive.write_bytes(whole[:size])
            with pytest.raises(StreamError, match=r"damaged|refused"):
                unpack(archive, tmp_path / "Set")
            assert not (tmp_path / "Set").exists()


def test_a_broken_header_in_the_middle_is_seen(tmp_path: Path) -> None:
    """tarfile itself takes it for the end."""
    archive = make_tar(tmp_path / "x.tar", FILES)
    raw = bytearray(archive.read_bytes())
    raw[3 * 1536 + 3] ^= 0xFF
    archive.write_bytes(raw)
    with tarfile.open(archive) as tar:
        assert len(tar.getnames()) == 3
    with pytest.raises(StreamError, match="breaks off before its end"):
        unpack(archive, tmp_path / "Set")


def test_a_page_is_no_archive(tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_text("<html>quota</html>")
    with pytest.raises(StreamError, match=r"damaged or no tar or zip archive .*; delete it"):
        unpack(tmp_path / "x.tar", tmp_path / "Set")
    with pytest.raises(StreamError, match="holds no file"):
        unpack(make_tar(tmp_path / "y.tar", {}), tmp_path / "Set")


def test_several_archives_into_one_folder(tmp_path: Path) -> None:
    first = make_tar(tmp_path / "noise.tar", {"noise/fog/1": b"1"})
    second = make_tar(tmp_path / "blur.tar", {"glass/1": b"2", "zoom/1": b"3"})
    made = [unpack(archive, tmp_path / "Set") for archive in (first, second)]
    assert content(tmp_path / "Set") == {"fog/1": b"1", "glass/1": b"2", "zoom/1": b"3"}
    third = make_tar(tmp_path / "other.tar", {"new/1": b"4", "zoom/2": b"5"})
    with pytest.raises(StreamError, match="zoom exists and does not come from this archive"):
        unpack(third, tmp_path / "Set")
    assert (tmp_path / "Set" / "zoom" / "1").read_bytes() == b"3"
    assert not (tmp_path / "Set" / manifest_name(third)).exists()
    assert not changed_groups(tmp_path / "Set", made[0])


def test_changes_are_found(tmp_path: Path, monkeypatch) -> None:
    for few in (1000, 1):  # file by file, and folder by folder
        monkeypatch.setattr(archives, "_FEW", few)
        folder = tmp_path / str(few) / "Set"
        folder.parent.mkdir()
        made = unpack(make_tar(folder.parent / "x.tar", FILES), folder)
        assert len(made["groups"]) == (10 if few == 1000 else 2)
        where = "a/2.bin" if few == 1000 else "a"
        whole = (folder / "a" / "2.bin").read_bytes()
        for data in (whole[:-1], bytes([whole[0] ^ 1]) + whole[1:]):
            (folder / "a" / "2.bin").write_bytes(data)
            assert changed_groups(folder, made) == [where]
        (folder / "a" / "2.bin").unlink()
        assert changed_groups(folder, made) == [where]
        (folder / "a" / "2.bin").write_bytes(whole)
        assert not changed_groups(folder, made)


def test_a_full_disk(tmp_path: Path, monkeypatch) -> None:
    def full(*args: object) -> bytes:
        raise OSError(errno.ENOSPC, "No space left on device")

    archive = make_tar(tmp_path / "x.tar", FILES)
    monkeypatch.setattr(archives, "_write", full)
    with pytest.raises(StreamError, match=r"is full; free some space and run the same command"):
        unpack(archive, tmp_path / "Set")
    assert [p.name for p in tmp_path.iterdir()] == ["x.tar"]  # it frees what it took


@pytest.mark.parametrize("point", ["_write", "rename"])
@pytest.mark.parametrize("exists", [False, True])
def test_stopped_and_run_again(tmp_path: Path, monkeypatch, point: str, exists: bool) -> None:
    """Wherever it stops, the next call ends with the same folder."""
    archive = make_tar(tmp_path / "x.tar", FILES)
    if exists:
        (tmp_path / "Set").mkdir()
    owner = archives if point == "_write" else Path
    for stop in range(1, 4):
        calls, real = [0], getattr(owner, point)

        def once(*args, calls=calls, real=real, stop=stop):
            calls[0] += 1
            if calls[0] == stop:
                raise KeyboardInterrupt
            return real(*args)

        monkeypatch.setattr(owner, point, once)
        try:
            unpack(archive, tmp_path / "Set")
        except KeyboardInterrupt:
            assert not (tmp_path / "Set" / manifest_name(archive)).exists()
        monkeypatch.undo()
    unpack(archive, tmp_path / "Set")
    assert content(tmp_path / "Set") == WANTED
    assert sorted(p.name for p in tmp_path.iterdir()) == ["Set", "x.tar"]


def test_kill_9_while_unpacking(tmp_path: Path) -> None:
    files = {f"Set/{i}.bin": np.random.default_rng(i).bytes(20_000) for i in range(900)}
    archive = make_tar(tmp_path / "x.tar", files)
    code = (
        "import sys; from pathlib import Path; from streams.archives import unpack\n"
        "unpack(Path(sys.argv[1]), Path(sys.argv[2]))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(archive), str(tmp_path / "Set")],
        cwd=Path(archives.__file__).parents[1],
    )
    work = tmp_path / ".Set.x.tar.unpacking" / "content"
    while process.poll() is None and not (work / "50.bin").exists():
        time.sleep(0.001)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (tmp_path / "Set").exists()
    unpack(archive, tmp_path / "Set")
    assert content(tmp_path / "Set") == {n.removeprefix("Set/"): d for n, d in files.items()}
    assert not work.parent.exists()
