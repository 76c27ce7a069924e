"""Results of many machines in one folder: exact, or not at all."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from benchmarks.errors import UsageError
from benchmarks.learning_results import LEARNING_TIMING_FIELDS
from benchmarks.results import Found, find_all, find_stores
from benchmarks.store import Record, Store

Keep = Literal["ours", "theirs"]
# What a machine is, and no number: runs that differ in these alone are the same.
MACHINE_FIELDS = (
    *LEARNING_TIMING_FIELDS,
    *("device", "threads", "weights"),
    *("version_torch", "version_timm", "version_numpy", "version_python", "version_avalanche"),
)


def merge(
    out: Path,
    sources: Sequence[Path],
    *,
    keep: Keep | None = None,
    progress: Callable[[list[Path]], Iterable[Path]] = iter,
) -> dict[str, int]:
    """Bring the runs of several folders or stores into one results folder.

    A run that is there already stays as it is. Where two versions of a run differ in a number,
    nothing is written, unless ``keep`` says which counts.

    Args:
        out: The results folder; made where it is not there.
        sources: Folders (searched in depth) or ``results.sqlite`` files.
        keep: In a conflict, ``ours`` keeps the version that was there first, ``theirs`` takes that
            of the later source.
        progress: Wraps the run folders that are copied.

    Returns:
        Counts: runs that are ``new``, ``same``, ``replaced`` or ``kept`` in a conflict; run
        ``folders`` copied; ``unfinished`` records taken over; finished ``runs`` in ``out`` now.

    Raises:
        UsageError: If a source is missing, empty or damaged, for a conflict, or if ``out`` cannot
            be written.
    """
    if out.is_file():
        raise UsageError(f"{out} is a file: name the results folder that gets the runs")
    there = [out] if out.exists() else []
    ours = {found.run_id: found for found in reversed(find_all(there))}
    chosen, seen, conflicts = dict(ours), set[str](), dict[str, str]()
    records: dict[str, Record] = {}
    for source in sources:
        theirs, unfinished = find_all([source]), _unfinished([source])
        if not theirs and not unfinished:
            raise UsageError(f"no run in {source}")
        for found in theirs:
            seen.add(found.run_id)
            mine = chosen.setdefault(found.run_id, found)
            if fields := differing(mine.row, found.row):
                conflicts.setdefault(found.run_id, _words(mine, found, fields))
            # A row without its folder gets that of the very same row.
            bare = mine.folder is None and found.folder is not None and mine.row == found.row
            if bare or (fields and keep == "theirs"):
                chosen[found.run_id] = found
        records = {record.run_id: record for record in unfinished} | records
    if conflicts and keep is None:
        more = f"; so have {len(conflicts) - 1} more" if len(conflicts) > 1 else ""
        raise UsageError(f"{next(iter(conflicts.values()))}{more}: --keep ours or --keep theirs")
    for run_id in {*chosen, *(record.run_id for record in _unfinished(there))}:
        records.pop(run_id, None)
    changed = {key: found for key, found in chosen.items() if found is not ours.get(key)}
    try:
        copied = _write_folders(out, ours, changed, progress)
    except OSError as error:
        raise UsageError(f"cannot write to {out} ({error.strerror}); name another OUT") from error
    # All rows at once, and last: a merge that was killed is simply done again.
    store, rows = Store(out), [found.row for found in chosen.values()]
    there_already = {row["run_id"]: row for row in store.rows()}
    store.add([r for r in rows if r != there_already.get(r["run_id"])], records.values())
    for nested in [Store(file) for file in find_stores([out])]:
        nested.put_many(chosen[key].row for key in conflicts if nested.has(key))
    return {
        "new": len(changed.keys() - ours.keys()),
        "same": len((seen & ours.keys()) - conflicts.keys()),
        "replaced": len(conflicts) if keep == "theirs" else 0,
        "kept": len(conflicts) if keep == "ours" else 0,
        "folders": copied,
        "unfinished": len(records),
        "runs": len(chosen),
    }


def differing(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    """Fields in which two rows differ, those of the machine left out; absent counts as null."""
    fields = [key for key in {**ours, **theirs} if key not in MACHINE_FIELDS]
    pairs = ((key, ours.get(key), theirs.get(key)) for key in fields)
    # NaN is not itself, but its text is.
    return [key for key, a, b in pairs if a != b and json.dumps(a) != json.dumps(b)]


def _words(ours: Found, theirs: Found, fields: Sequence[str]) -> str:
    some = ", ".join(f"{key} {ours.row.get(key)} and {theirs.row.get(key)}" for key in fields[:2])
    return (
        f"run {ours.run_id[:8]} has other numbers in {theirs.file} than in {ours.file} "
        f"({some if len(some) < 200 else ', '.join(fields)})"
    )


def _unfinished(roots: Sequence[Path]) -> list[Record]:
    records = [r for file in find_stores(roots) for r in Store(file).records()]
    return [record for record in records if record.row is None]


def _write_folders(
    out: Path,
    ours: Mapping[str, Found],
    changed: Mapping[str, Found],
    progress: Callable[[list[Path]], Iterable[Path]],
) -> int:
    """Copy the folders of changed runs; how many.

    A folder in the way is of an unfinished run, maybe at work: it stays, the row is kept alone.
    """
    out.mkdir(parents=True, exist_ok=True)
    for run_id in changed.keys() & ours.keys():
        if (folder := ours[run_id].folder) is not None:
            shutil.rmtree(folder)
    folders = [found.folder for found in changed.values() if found.folder is not None]
    free = [folder for folder in folders if not (out / folder.name).exists()]
    for folder in progress(free):
        _copy(folder, out / folder.name)
    return len(free)


def _copy(source: Path, target: Path) -> None:
    """Copy a finished run's files; the folder appears whole or not at all."""
    temporary = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
    try:
        for file in source.iterdir():
            if file.is_file() and not file.name.startswith("."):
                shutil.copy2(file, temporary)
        temporary.chmod(0o755)
        temporary.rename(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
