"""The known data sets on this disk: fetch them, say what is there, check it."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from streams.archives import changed_groups, manifest_name, unpack
from streams.dataset_files import DATASETS, PLACES, Dataset, RemoteFile
from streams.errors import StreamError
from streams.fetch import Options, Progress, alone, fetch, hashes
from streams.jsonfiles import read_json, write_json
from streams.provenance import MARKER

Report = dict[str, Any]
Watch = Callable[[str], Progress]
"""Given a title, the function to tell the progress to."""


def find(name: str) -> Dataset:
    """The data set of that name.

    Raises:
        StreamError: If there is none, with the nearest name.
    """
    names = {dataset.name: dataset for dataset in DATASETS}
    if name not in names:
        near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise StreamError(f"unknown data set {name!r}{hint}; known: {', '.join(names)}")
    return names[name]


def choose(dataset: Dataset, names: Sequence[str]) -> list[RemoteFile]:
    """Files to work on: the named ones, by default all that are not optional.

    Raises:
        StreamError: For a file that the data set does not have.
    """
    known = {file.name: file for file in dataset.files}
    for name in names:
        if name not in known:
            raise StreamError(f"{dataset.name} has no file {name!r}; it has {', '.join(known)}")
    return [file for file in dataset.files if file.name in names] or [
        file for file in dataset.files if file.name not in dataset.optional
    ]


def fetch_dataset(
    dataset: Dataset,
    data_dir: Path,
    *,
    names: Sequence[str] = (),
    mirrors: Sequence[str] = (),
    keep_archive: bool = False,
    options: Options | None = None,
    watch: Watch | None = None,
) -> list[Report]:
    """Fetch the files of a data set and unpack its archives.

    Args:
        dataset: What to fetch.
        data_dir: Folder of all data.
        names: Names of files; by default all that are not optional.
        mirrors: Addresses of folders that are tried first; the file name is appended.
        keep_archive: Keep an archive after it is unpacked.
        options: Of the download.
        watch: Gets a title, gives back the function to tell the progress to.

    Returns:
        A row a file: its path, address, sizes and checksums.

    Raises:
        StreamError: As ``fetch`` and ``unpack``, and where the folder of an archive holds files
            that were not fetched.
    """
    watch = watch or (lambda title: lambda done, total: None)
    rows = []
    for file in choose(dataset, names):
        urls = [f"{mirror.rstrip('/')}/{file.name}" for mirror in mirrors] + list(file.urls)
        file = replace(file, urls=tuple(urls))
        if file.unpack:
            row = _fetch_archive(dataset, file, data_dir, keep_archive, options, watch)
        else:
            row = _fetch_file(dataset, file, data_dir, options, watch)
        rows.append({"dataset": dataset.name, "file": file.name, **row})
    return rows


def status(data_dir: Path) -> tuple[list[Report], list[Report]]:
    """What is there: a row for each file, and a row for each stream with where it looks."""
    files = [_state(dataset, file, data_dir) for dataset in DATASETS for file in dataset.files]
    streams = []
    for name, places in PLACES.items():
        row: Report = {"stream": name, "looks": [str(data_dir / p.pattern) for p in places]}
        row |= {"finds": None, "gives": None if places else "embedded images"}
        for place in places:
            found = next(iter(sorted(data_dir.glob(place.pattern))), None)
            if found is not None:
                marked = (found.parent / MARKER).is_file()
                row |= {"finds": str(found), "gives": "generated" if marked else place.gives}
                break
        streams.append(row)
    return files, streams


def verify(data_dir: Path, names: Sequence[str] = (), watch: Watch | None = None) -> list[Report]:
    """Check everything that is there; what is missing has no row.

    Returns:
        A row for each file, unpacked archive or generated set; ``state`` is ``ok``, ``damaged``,
        ``unchanged`` (since the first fetch; no checksum is published) or ``unknown`` (nothing to
        compare with).
    """
    watch = watch or (lambda title: lambda done, total: None)
    rows = []
    for dataset in [find(name) for name in names] if names else DATASETS:
        for file in dataset.files:
            rows += _verify_file(dataset, file, data_dir, watch)
    for marker in () if names else sorted({data_dir / MARKER, *data_dir.glob(f"*/{MARKER}")}):
        if marker.is_file():
            rows += _verify_generated(marker)
    return rows


def _verify_file(dataset: Dataset, file: RemoteFile, data_dir: Path, watch: Watch) -> list[Report]:
    rows: list[Report] = []
    path, folder = _target(dataset, file, data_dir), data_dir / dataset.folder
    base = {"dataset": dataset.name, "file": file.name}
    if path.is_file():
        md5, sha256 = hashes(path, watch(f"verify {file.name}"))
        recorded = read_json(_record(path)).get("sha256") if _record(path).is_file() else None
        size = path.stat().st_size
        if file.size is not None and size != file.size:
            state, detail = "damaged", f"{size:,} bytes, published are {file.size:,}"
        elif file.md5 is not None:
            good = md5 == file.md5
            state, detail = "ok", f"md5 {md5}, as published"
            if not good:
                state, detail = "damaged", f"md5 {md5}, published is {file.md5}"
        elif recorded is not None and recorded != sha256:
            state, detail = "damaged", f"sha256 {sha256}, at the first fetch it was {recorded}"
        else:
            state = "unknown" if recorded is None else "unchanged"
            detail = f"no published checksum; sha256 {sha256}"
        rows.append({**base, "path": str(path), "state": state, "detail": detail})
    listed = folder / manifest_name(file.name)
    if file.unpack and listed.is_file():
        manifest = read_json(listed)
        wrong = changed_groups(folder, manifest)
        detail = f"{manifest['files']:,} files as unpacked, archive {manifest.get('checked')}"
        if wrong:
            more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
            detail = f"missing or changed: {', '.join(wrong[:3])}{more}"
        state = "damaged" if wrong else "ok"
        rows.append({**base, "path": str(folder), "state": state, "detail": detail})
    elif file.unpack and _by_hand(folder) and file is dataset.files[0]:
        detail = "not fetched by tta-bench, so there is no list of contents to compare with"
        rows.append({**base, "path": str(folder), "state": "unknown", "detail": detail})
    return rows


def _verify_generated(marker: Path) -> list[Report]:
    rows, files = [], read_json(marker).get("files", {})
    for name, digest in files.items():
        path = marker.parent / name
        state, detail = "ok", "sha256 as generated"
        if not path.is_file():
            state, detail = "damaged", "missing"
        elif hashes(path)[1] != digest:
            state, detail = "damaged", "sha256 is not that of the generated file"
        row = {"dataset": "generated", "file": name, "path": str(path)}
        rows.append({**row, "state": state, "detail": detail})
    return rows


def _fetch_file(
    dataset: Dataset, file: RemoteFile, data_dir: Path, options: Options | None, watch: Watch
) -> Report:
    path = _target(dataset, file, data_dir)
    record, checksum = _record(path), f"md5:{file.md5}" if file.md5 else None
    hint = ""
    if checksum is None and record.is_file():
        # Nothing is published: the first fetch is what later ones must equal.
        checksum = f"sha256:{read_json(record).get('sha256')}"
        hint = f"; the expected checksum is that of the first fetch, delete {record} to accept"
    with _hinted(hint):
        got = fetch(
            file.urls,
            path,
            size=file.size,
            checksum=checksum,
            options=options,
            progress=watch(file.name),
        )
    row = {"url": got.url, "size": got.size, "md5": got.md5, "sha256": got.sha256}
    row["checked"] = checksum or "no published checksum"
    if got.url:
        write_json(record, row)
    return {"path": str(path), "state": "fetched" if got.url else "present", **row}


def _fetch_archive(
    dataset: Dataset,
    file: RemoteFile,
    data_dir: Path,
    keep: bool,
    options: Options | None,
    watch: Watch,
) -> Report:
    folder, archive = data_dir / dataset.folder, _target(dataset, file, data_dir)
    listed = folder / manifest_name(file.name)
    if not listed.is_file():
        if _by_hand(folder):
            what = "holds a generated set" if (folder / MARKER).is_file() else "was not fetched"
            raise StreamError(
                f"{folder} {what}: it is left as it is; move it away to fetch {file.name}"
            )
        got = _fetch_file(dataset, file, data_dir, options, watch)
        facts = {key: got[key] for key in ("url", "md5", "sha256", "checked")}
        with alone(archive, (options or Options()).lock_timeout):
            unpack(archive, folder, facts=facts, progress=watch(f"unpack {file.name}"))
            if not keep:
                archive.unlink(missing_ok=True)
                _record(archive).unlink(missing_ok=True)
        state = "unpacked"
    else:
        state = "present"
    manifest = read_json(listed)
    return {"path": str(folder), "state": state} | {
        key: manifest.get(key) for key in ("url", "bytes", "files", "md5", "sha256", "checked")
    }


def _state(dataset: Dataset, file: RemoteFile, data_dir: Path) -> Report:
    path, folder = _target(dataset, file, data_dir), data_dir / dataset.folder
    part = path.with_name(f"{path.name}.part")
    state, size, where = "missing", None, path
    if file.unpack and (folder / manifest_name(file.name)).is_file():
        state, where = "ready", folder
        size = read_json(folder / manifest_name(file.name)).get("bytes")
    elif file.unpack and _by_hand(folder):
        state, where = "by hand", folder
        if (folder / MARKER).is_file():
            state = "generated"
    elif path.is_file():
        size = path.stat().st_size
        state = "not unpacked" if file.unpack else "ready"
        if file.size is not None and size != file.size:
            state = "wrong size"
    elif part.is_file():
        state, size, where = "part", part.stat().st_size, part
    return {
        "dataset": dataset.name,
        "file": file.name,
        "state": state,
        "bytes": size,
        "published_bytes": file.size,
        "about": file.about,
        "published_md5": file.md5,
        "optional": file.name in dataset.optional,
        "path": str(where),
        "page": dataset.page,
        "streams": list(dataset.streams),
    }


def _target(dataset: Dataset, file: RemoteFile, data_dir: Path) -> Path:
    return data_dir / file.name if file.unpack else data_dir / dataset.folder / file.name


def _record(path: Path) -> Path:
    return path.with_name(f"{path.name}.fetched.json")


def _by_hand(folder: Path) -> bool:
    """Whether a folder holds something and none of it was unpacked by ``fetch``."""
    if not folder.is_dir() or not any(folder.iterdir()):
        return False
    return not any(folder.glob(manifest_name("*")))


@contextmanager
def _hinted(hint: str) -> Iterator[None]:
    try:
        yield
    except StreamError as error:
        told = "expected is" in str(error)  # it is about the checksum, not the network
        raise StreamError(f"{error}{hint if told else ''}") from error
