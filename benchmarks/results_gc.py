"""What a results folder can do without: leftovers of killed processes, and old records."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.errors import UsageError
from benchmarks.results import below, find_all, find_stores
from benchmarks.results_list import SHORT, Entry, unfinished_folders
from benchmarks.store import Record, Store

# What ``atomic_write`` and a merge call their work: a dot, the name that it gets, a dot, letters.
_WORK = re.compile(
    r"\.((result|spec)\.json|(steps|evals|steps-\d{6})\.parquet|state\.pt"
    r"|[^/]+-s\d+-[0-9a-f]{8})\.[a-z0-9_]{8}"
)


@dataclass(frozen=True, kw_only=True)
class Waste:
    """Something to remove: a path, or the record of a run.

    Attributes:
        size: Bytes that it frees; 0 for a record.
    """

    why: str
    path: Path
    size: int = 0
    record: Record | None = None

    @property
    def words(self) -> str:
        """What goes, in a line."""
        if self.record is None:
            return f"{self.path} ({self.size:,} bytes)"
        return f"record of {self.record.method} {self.record.run_id[:SHORT]} in {self.path}"

    def summary(self) -> dict[str, Any]:
        """The same for machines."""
        run_id = None if self.record is None else self.record.run_id
        return {"why": self.why, "path": str(self.path), "bytes": self.size, "record": run_id}


def find_waste(root: Path, *, older_than: float = 24.0, failed: bool = False) -> list[Waste]:
    """What may go from a results folder; nothing of a finished run's result.

    Args:
        root: The folder (searched in depth).
        older_than: Hours for which nobody has touched temporary files and records of queued and
            running runs, at least.
        failed: Also the records and folders of failed runs.

    Raises:
        UsageError: If the folder is missing, or a store is damaged.
    """
    if not root.is_dir():
        raise UsageError(f"{root} is no folder: name a results folder")
    latest = time.time() - 3600 * older_than
    found = [*_checkpoints(root), *_work(root, latest)]
    folders = unfinished_folders([root])
    for file in find_stores([root]):
        for record in Store(file).records():
            if record.status in ("queued", "running") and record.updated < latest:
                hours = (time.time() - record.updated) / 3600
                why = f"{record.status}, silent for {hours:.0f} h"
                found.append(Waste(why=why, path=file, record=record))
            elif record.status == "failed" and failed:
                found.append(Waste(why="failed", path=file, record=record))
                if folder := folders.get(record.run_id):
                    found.append(
                        Waste(why="folder of a failed run", path=folder, size=_size(folder))
                    )
    return found


def collect(waste: Sequence[Waste]) -> None:
    """Remove it.

    Raises:
        UsageError: If something cannot be removed.
    """
    for thing in waste:
        if thing.record is not None:
            # It may have finished since.
            Store(thing.path).remove([thing.record.run_id], unfinished=True)
            continue
        if not thing.path.name.startswith(".") and (thing.path / "result.json").is_file():
            continue
        _remove(thing.path)


def forget(roots: Sequence[Path], entry: Entry) -> None:
    """Remove a run, finished or not: its folders, and its records in the stores.

    Raises:
        UsageError: If something cannot be removed.
    """
    folders = [
        found.folder for found in find_all(roots, stores=False) if found.run_id == entry.run_id
    ]
    for file in find_stores(roots):
        Store(file).remove([entry.run_id])
    for folder in dict.fromkeys([entry.folder, *folders]):
        if folder is not None:
            _remove(folder)


def _remove(path: Path) -> None:
    try:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    except OSError as error:
        raise UsageError(f"cannot remove {path} ({error.strerror})") from error


def _checkpoints(root: Path) -> Iterator[Waste]:
    for file in below(root, "result.json"):
        folder = file.parent / "checkpoint"
        if folder.is_dir() and not folder.is_symlink():
            yield Waste(why="checkpoint of a finished run", path=folder, size=_size(folder))


def _work(root: Path, latest: float) -> Iterator[Waste]:
    for path in sorted(root.rglob(".*")):
        ours = _WORK.fullmatch(path.name) and not path.is_symlink()
        if ours and path.stat().st_mtime < latest:
            yield Waste(why="temporary, left by a killed process", path=path, size=_size(path))


def _size(path: Path) -> int:
    files = [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]
    return sum(file.lstat().st_size for file in files)
