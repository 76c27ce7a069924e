"""Unpacking of tar and zip archives from others: nothing outside the folder, nothing half done.

Every name, type and size of the index is checked before the first byte is written. The content
goes to a folder beside the destination and is moved there when it is complete.
"""

from __future__ import annotations

import bz2
import gzip
import hashlib
import lzma
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

from streams.errors import StreamError
from streams.jsonfiles import read_json, write_json
from streams.transfer import check_space, out_of_space

_CHUNK = 1 << 20
# An entry of a zip takes 76 bytes and more, one of a tar 512 before it is compressed.
_MEMBERS, _BYTES_A_MEMBER = 10_000, 8
# An archive of few files is checked file by file later, one of many folder by folder.
_FEW = 1000
_OPENERS: dict[bytes, Callable[[Path], Any]] = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ": lzma.open,
}
# Most that a tar reads at once; names and other headers beyond it are no names.
_MAX_READ = 1 << 21


@dataclass(frozen=True, kw_only=True, slots=True)
class Member:
    """A regular file of an archive; ``path`` is relative and stays inside."""

    path: PurePosixPath
    size: int
    key: Any


def manifest_name(archive: Path | str) -> str:
    """Name of the file, in the destination, that lists what an archive brought."""
    return f"fetched-{Path(archive).name}.json"


def unpack(
    archive: Path,
    target: Path,
    *,
    max_bytes: int | None = None,
    facts: dict[str, Any] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Unpack an archive into a folder; the same call after a kill goes on.

    Leading folders that all files share and that have the name of the target or of the archive are
    dropped. A target that does not exist appears in one step; one that does exist gets the new
    entries one by one, and an entry that is there already is never replaced.

    Args:
        archive: ``.tar`` (also compressed) or ``.zip``.
        target: Destination folder.
        max_bytes: Most bytes that the content may have; by default twenty times the archive.
        facts: Written into the list of contents beside the digests.
        progress: Told the bytes that are written and will be.

    Returns:
        The list of contents, as it stands in the target.

    Raises:
        StreamError: For a damaged archive, a name that leaves the folder, a link, a device, more
            bytes than allowed, an entry that exists already, or a full disk.
    """
    listed = target / manifest_name(archive)
    work = target.with_name(f".{target.name}.{archive.name}.unpacking")
    content = work / "content"
    if listed.is_file():
        shutil.rmtree(work, ignore_errors=True)
        return read_json(listed)
    try:
        if not (content / listed.name).is_file():  # not complete: from the beginning
            if work.exists():
                shutil.rmtree(work)
            content.mkdir(parents=True)
            try:
                made = _write_all(archive, target, content, max_bytes, progress)
                # Last and atomically: from here on only moves are left.
                write_json(content / listed.name, {**made, **(facts or {})})
            except BaseException:  # it would be started again anyway
                shutil.rmtree(work, ignore_errors=True)
                raise
        _move(content, target, last=listed.name)
        shutil.rmtree(work)
    except OSError as error:
        raise out_of_space(error, work) from error
    return read_json(listed)


def changed_groups(target: Path, manifest: dict[str, Any]) -> list[str]:
    """Files or folders of an unpacked archive that are not as it brought them."""
    wrong = []
    for name, entry in manifest["groups"].items():
        path = target / name
        files = sorted(p for p in path.iterdir() if p.is_file()) if path.is_dir() else [path]
        known = [p for p in files if not p.name.startswith("fetched-")]
        try:
            # Files first: a missing or cut one is found without reading the others.
            size = sum(p.stat().st_size for p in known)
            good = (len(known), size) == (entry["files"], entry["bytes"])
            total = 0
            for file in known if good else ():
                digest = hashlib.sha256()
                with file.open("rb") as opened:
                    while chunk := opened.read(_CHUNK):
                        digest.update(chunk)
                total = _add(total, file.relative_to(target).as_posix(), digest.digest())
            good = good and f"{total:064x}" == entry["sha256"]
        except OSError:
            good = False
        if not good:
            wrong.append(name)
    return wrong


def _write_all(
    archive: Path,
    target: Path,
    content: Path,
    max_bytes: int | None,
    progress: Callable[[int, int], None] | None,
) -> dict[str, Any]:
    limit = 20 * archive.stat().st_size + (1 << 20) if max_bytes is None else max_bytes
    try:
        with _open(archive) as (index, read):
            members = _checked(index, archive, limit)
            top = _top(members, target, archive)
            total = sum(member.size for member in members)
            check_space(content, total)
            groups: dict[str, dict[str, Any]] = {}
            done = 0
            for member in members:
                path = PurePosixPath(*member.path.parts[top:])
                digest = _write(member, read, content / path, archive)
                key = path if len(members) <= _FEW else path.parent
                entry = groups.setdefault(str(key), {"files": 0, "bytes": 0, "sha256": 0})
                entry["files"] += 1
                entry["bytes"] += member.size
                entry["sha256"] = _add(entry["sha256"], str(path), digest)
                done += member.size
                if progress is not None:
                    progress(done, total)
    except (StreamError, OSError):
        raise
    except Exception as error:  # a damaged archive raises nearly anything
        raise StreamError(
            f"{archive} is damaged or no tar or zip archive ({' '.join(str(error).split())}); "
            "delete it and fetch it again"
        ) from error
    for entry in groups.values():
        entry["sha256"] = f"{entry['sha256']:064x}"
    return {"archive": archive.name, "files": len(members), "bytes": total, "groups": groups}


def _add(total: int, path: str, digest: bytes) -> int:
    """Add a file to the digest of its group: a sum, as members come in any order."""
    made = hashlib.sha256(path.encode() + b"\0" + digest).digest()
    return (total + int.from_bytes(made, "big")) % (1 << 256)


@contextmanager
def _open(archive: Path) -> Iterator[tuple[Iterator[Any], Callable[[Any], IO[bytes]]]]:
    """The index of an archive, and how to read one entry of it."""
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as opened:
            yield iter(opened.infolist()), opened.open
        return
    opener = next((o for m, o in _OPENERS.items() if _starts_with(archive, m)), None)
    # The kinds are told apart here: tarfile would try each, and read headers of any length.
    with (
        opener(archive) if opener else archive.open("rb") as raw,
        tarfile.open(fileobj=_Bounded(raw), mode="r:") as tar,  # type: ignore[call-overload]
    ):

        def read(entry: Any) -> IO[bytes]:
            file: IO[bytes] | None = tar.extractfile(entry)
            assert file is not None  # only regular files come here
            return file

        def entries() -> Iterator[Any]:
            yield from tar
            # A tar ends with a block of zeros. Cut before it or broken in the middle, tarfile takes
            # what it could read for all there is.
            if tar.fileobj is not None:
                tar.fileobj.seek(tar.offset)
                if tar.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                    raise tarfile.ReadError("it breaks off before its end")
                # Compressed ones compare their own checksum at the end alone; bounded, as what
                # follows may expand to anything.
                for _ in range(64):
                    if not tar.fileobj.read(_CHUNK):
                        break

        yield entries(), read


class _Bounded:
    """A file that refuses to be read in pieces larger than any that an honest archive asks for."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.seek, self.tell = file.seek, file.tell

    def read(self, size: int = -1) -> bytes:
        """At most ``size`` bytes.

        Raises:
            tarfile.ReadError: If more are asked for than there may be, or the file is damaged.
        """
        if not 0 <= size <= _MAX_READ:
            raise tarfile.ReadError(f"a header of {size:,} bytes")
        try:
            data: bytes = self._file.read(size)
        except (OSError, zlib.error, lzma.LZMAError, EOFError) as error:
            raise tarfile.ReadError(str(error)) from error
        return data


def _starts_with(path: Path, magic: bytes) -> bool:
    with path.open("rb") as file:
        return file.read(len(magic)) == magic


def _checked(index: Iterator[Any], archive: Path, limit: int) -> list[Member]:
    """The regular files, once every entry has been found harmless."""
    most = max(_MEMBERS, archive.stat().st_size // _BYTES_A_MEMBER)
    members: dict[PurePosixPath, Member] = {}
    total = 0
    for count, entry in enumerate(index, 1):
        name, size, kind = _facts(entry)

        def refuse(why: str, name: str = name) -> StreamError:
            return StreamError(f"{archive} is refused: entry {name[:120]!r} {why}")

        path = PurePosixPath(name)
        if name.startswith("/") or "\\" in name or "\0" in name or name[1:2] == ":":
            raise refuse("has an absolute or foreign path")
        if ".." in path.parts:
            raise refuse("leads out of the folder")
        if kind not in ("file", "folder"):
            raise refuse(f"is a {kind}; only files and folders are unpacked")
        if path.name.startswith("fetched-"):
            raise refuse("has a name that is reserved")
        total += size
        if total > limit:
            raise refuse(f"brings the content above {limit:,} bytes")
        if count > most:
            raise refuse(f"is one of more than {most:,}")
        if kind == "folder":
            continue
        if path in members or not path.parts:
            raise refuse("is there twice" if path.parts else "has no name")
        members[path] = Member(path=path, size=size, key=entry)
    if not members:
        raise StreamError(f"{archive} is refused: it holds no file")
    for path in members:
        clash = next((parent for parent in path.parents if parent in members), None)
        if clash is not None:
            raise StreamError(f"{archive} is refused: {str(clash)!r} is a file and a folder")
    return list(members.values())


def _facts(entry: Any) -> tuple[str, int, str]:
    """Name, size and kind of an index entry."""
    if isinstance(entry, zipfile.ZipInfo):
        mode = entry.external_attr >> 16
        special = stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR)
        if entry.flag_bits & 1:
            kind = "encrypted file"
        elif special:
            kind = "link" if stat.S_ISLNK(mode) else "device"
        else:
            kind = "folder" if entry.is_dir() else "file"
        # orig_filename keeps what zipfile would quietly cut at a NUL or turn into a slash.
        return entry.orig_filename, entry.file_size, kind
    if entry.issym() or entry.islnk():
        kind = "link"
    elif entry.issparse():
        kind = "sparse file"
    elif entry.isdir():
        kind = "folder"
    else:
        kind = "file" if entry.isreg() else "device"
    return entry.name, entry.size, kind


def _top(members: list[Member], target: Path, archive: Path) -> int:
    """How many leading folders to drop: those that merely repeat target or archive."""
    drop, merely = 0, {target.name, archive.name.partition(".")[0]}
    while {p.parts[drop] if len(p.parts) > drop + 1 else "" for p in (m.path for m in members)} in (
        {name} for name in merely
    ):
        drop += 1
    return drop


def _write(member: Member, read: Callable[[Any], IO[bytes]], path: Path, archive: Path) -> bytes:
    """Write one file, never more than its size in the index; its SHA-256."""
    digest, left = hashlib.sha256(), member.size
    path.parent.mkdir(parents=True, exist_ok=True)
    with read(member.key) as source, path.open("xb") as file:
        while left and (chunk := source.read(min(_CHUNK, left))):
            file.write(chunk)
            digest.update(chunk)
            left -= len(chunk)
        if left or source.read(1):
            raise StreamError(
                f"{archive} is damaged: {member.path} has not the size that the index says; "
                "delete it and fetch it again"
            )
    return digest.digest()


def _move(content: Path, target: Path, last: str) -> None:
    if not target.exists():
        content.rename(target)
        return
    for path in sorted(content.iterdir(), key=lambda p: (p.name == last, p.name)):
        if (target / path.name).exists():
            raise StreamError(
                f"{target / path.name} exists and does not come from this archive; move it away "
                "and run the command again"
            )
        path.rename(target / path.name)
