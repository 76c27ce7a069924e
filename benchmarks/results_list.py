"""Which runs there are: finished ones, those that a store records, and interrupted ones."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from benchmarks.errors import UsageError
from benchmarks.results import IDENTITY, Found, below, find_all, find_stores
from benchmarks.store import Record, Store
from streams.jsonfiles import load_json

STATUSES = ("finished", "running", "queued", "failed", "unfinished")
SHORT = 8


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A run of any status.

    Attributes:
        status: One of ``STATUSES``; ``unfinished`` where there is a folder and nobody says more.
        reason: Why it failed, in a line.
        folder: The run's folder, if there is one.
        row: The row of a finished run.
    """

    run_id: str
    status: str
    reason: str = ""
    method: str
    stream: str
    setting: str
    backbone: str | None = None
    seed: int
    done: int = 0
    total: int = 0
    folder: Path | None = None
    row: dict[str, Any] | None = None

    @property
    def accuracy_pct(self) -> float | None:
        """Final accuracy of a run on a learning stream, in percent."""
        return (self.row or {}).get("class_incremental_final_accuracy_pct")

    def summary(self) -> dict[str, Any]:
        """All but the row, with its error, for machines."""
        return {
            **{k: v for k, v in vars(self).items() if k not in ("row", "folder")},
            "error_pct": (self.row or {}).get("error_pct"),
            "final_accuracy_pct": self.accuracy_pct,
            "folder": None if self.folder is None else str(self.folder),
        }


def entries(roots: Sequence[Path]) -> list[Entry]:
    """All runs below the given folders, each once, by stream, setting, method, seed, id.

    Raises:
        UsageError: If a folder is missing, or a file is damaged.
    """
    made: dict[str, Entry] = {}
    for found in find_all(roots):
        made.setdefault(found.run_id, _finished(found))
    unfinished = unfinished_folders(roots)
    for file in find_stores(roots):
        for record in Store(file).records():
            made.setdefault(record.run_id, _recorded(record, unfinished.get(record.run_id)))
    for run_id, folder in unfinished.items():
        if run_id not in made:
            made[run_id] = _interrupted(folder)
    return sorted(made.values(), key=lambda e: (e.stream, e.setting, e.method, e.seed, e.run_id))


def select(
    all_: Iterable[Entry],
    *,
    statuses: Sequence[str] = (),
    methods: Sequence[str] = (),
    streams: Sequence[str] = (),
) -> list[Entry]:
    """Those of the given statuses whose method and stream match one of the patterns.

    Raises:
        UsageError: For an unknown status.
    """
    if unknown := [status for status in statuses if status not in STATUSES]:
        raise UsageError(f"unknown status {unknown[0]!r}; known: {', '.join(STATUSES)}")

    def fits(name: str, patterns: Sequence[str]) -> bool:
        return not patterns or any(fnmatchcase(name, pattern) for pattern in patterns)

    return [
        entry
        for entry in all_
        if (not statuses or entry.status in statuses)
        and fits(entry.method, methods)
        and fits(entry.stream, streams)
    ]


def pick(all_: Sequence[Entry], run: str) -> Entry:
    """The run of a folder's name, or of the start of an id.

    Raises:
        UsageError: If there is none, or several.
    """
    name = Path(run).name
    found = [e for e in all_ if e.folder is not None and e.folder.name == name]
    found = found or [e for e in all_ if run and e.run_id.startswith(run)]
    if not found:
        raise UsageError(f"no run {run!r} among {len(all_)}; see 'tta-bench results ls'")
    if len(found) > 1:
        ids = ", ".join(e.run_id[: max(SHORT, len(run) + 4)] for e in found[:4])
        raise UsageError(f"{run!r} is the start of {len(found)} runs ({ids}, …): give more of it")
    return found[0]


def unfinished_folders(roots: Sequence[Path]) -> dict[str, Path]:
    """Folder of each run that was begun and has no result, by ``run_id``."""
    folders: dict[str, Path] = {}
    for root in roots:
        for file in below(root, "spec.json") if root.is_dir() else ():
            if not (file.parent / "result.json").is_file() and (spec := _spec(file)):
                folders.setdefault(spec["run_id"], file.parent)
    return folders


def _spec(file: Path) -> dict[str, Any]:
    """The spec of a run; empty where the file is of something else."""
    try:
        said = load_json(file)
    except (OSError, ValueError):
        return {}
    return said if isinstance(said, dict) and all(key in said for key in IDENTITY) else {}


def _finished(found: Found) -> Entry:
    row = found.row
    return Entry(
        run_id=found.run_id,
        status="finished",
        method=row["method"],
        stream=row["stream"],
        setting=row["setting"],
        backbone=row.get("backbone"),
        seed=row["seed"],
        folder=found.folder,
        row=row,
    )


def _recorded(record: Record, folder: Path | None) -> Entry:
    backbone = _spec(folder / "spec.json").get("backbone") if folder else None
    return Entry(
        run_id=record.run_id,
        status=record.status,
        reason=record.reason,
        method=record.method,
        stream=record.stream,
        setting=record.setting,
        backbone=backbone,
        seed=record.seed,
        done=record.done,
        total=record.total,
        folder=folder,
    )


def _interrupted(folder: Path) -> Entry:
    spec = _spec(folder / "spec.json")
    return Entry(
        status="unfinished",
        **{key: spec[key] for key in IDENTITY},
        backbone=spec.get("backbone"),
        folder=folder,
    )
