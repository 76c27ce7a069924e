"""A run's folder: ``spec.json``, ``steps.parquet``, ``result.json``, ``checkpoint/``.

Every file appears whole or not at all. ``result.json`` is written last: a folder that has it is a
finished run. Its row also stands in the store of the results folder, where rows outlive folders.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.errors import UsageError
from benchmarks.files import atomic_write, write_json
from benchmarks.guard_columns import WATCH_SCHEMA
from benchmarks.row_types import wrong_field
from benchmarks.store import FILE, SUFFIX, Store
from streams.jsonfiles import load_json
from streams.readers.parquet_bounds import check_bounds
from tta.errors import AdapterError

if TYPE_CHECKING:
    from benchmarks.tracking import Tracker

SCHEMA_VERSION = 1
# The only fields of result.json in which a resumed run may differ from an uninterrupted one.
TIMING_FIELDS = ("seconds", "images_per_second", "seconds_per_1k", "peak_mem_mib")
# What every row has.
IDENTITY = ("run_id", "method", "stream", "setting", "seed")
_PART = "steps-{:06d}.parquet"
_MAX_THREADS = 4096  # of a checkpoint that is believed

_BINS = pa.list_(pa.int32())
STEP_SCHEMA = pa.schema(
    [
        ("step", pa.int32()),
        ("domain", pa.string()),
        ("severity", pa.int8()),
        ("visit", pa.int32()),
        ("n", pa.int32()),
        ("unknown", pa.int32()),
        ("correct", pa.int32()),
        ("error_pct", pa.float64()),
        ("loss", pa.float64()),
        ("entropy", pa.float64()),
        ("confidence", pa.float64()),
        ("nll", pa.float64()),
        ("brier", pa.float64()),
        ("non_finite", pa.int32()),
        ("ece_count", _BINS),
        ("ece_correct", _BINS),
        ("ece_confidence", pa.list_(pa.float64())),
        ("selected_fraction", pa.float64()),
        ("forwards", pa.int64()),
        ("backwards", pa.int64()),
        ("update_refused", pa.int32()),
        ("seconds", pa.float64()),
        *WATCH_SCHEMA,
    ]
)


class RunFolder:
    """One run's folder and the state that a killed run leaves in it.

    Args:
        path: The folder; ``create`` makes it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.result_file = path / "result.json"
        self.steps_file = path / "steps.parquet"
        self.store = Store(path.parent)
        self._checkpoint = path / "checkpoint"
        self.tracker: Tracker | None = None
        self._parts: list[str] = []
        self._pending: list[dict[str, Any]] = []

    @property
    def finished(self) -> bool:
        """Whether the run ended."""
        return self.result_file.is_file()

    @property
    def started(self) -> bool:
        """Whether there is anything of a run."""
        return (self.path / "spec.json").is_file()

    def open(
        self, spec: Mapping[str, Any], *, resume: bool, overwrite: bool
    ) -> dict[str, Any] | None:
        """Make the folder ready for a run; the row where it is finished and stays so.

        Raises:
            UsageError: If an unfinished run is in the way, or the folder cannot be written.
        """
        if self.finished and not overwrite:
            row = self.read_result()
            # A finished run can also be read where nothing can be written; and what a kill at its
            # end may have left is made up for.
            shutil.rmtree(self._checkpoint, ignore_errors=True)
            with suppress(UsageError):
                if not self.store.has(row["run_id"]):
                    self.store.put(row)
            return row
        if self.started and not (resume or overwrite):
            raise UsageError(
                f"{self.path} holds an unfinished run: --resume goes on, --overwrite starts again"
            )
        if overwrite:
            self.clear()
            self.store.remove([spec["run_id"]])
        self.create(spec)
        return None

    def create(self, spec: Mapping[str, Any]) -> None:
        """Make the folder and write the spec.

        Raises:
            UsageError: If the folder cannot be written.
        """
        try:
            self._checkpoint.mkdir(parents=True, exist_ok=True)
            write_json(self.path / "spec.json", spec)
        except OSError as error:
            raise UsageError(
                f"cannot write results to {self.path} ({error.strerror}); name another --out"
            ) from error

    def clear(self) -> None:
        """Remove what an earlier run left."""
        if self.path.exists():
            shutil.rmtree(self.path)

    def read_result(self) -> dict[str, Any]:
        """The finished run's row."""
        return read_result(self.result_file)

    def add(self, rows: Sequence[dict[str, Any]]) -> None:
        """Keep rows until the next checkpoint."""
        self._pending.extend(rows)
        if self.tracker is not None:
            self.tracker.step(rows)

    def save(self, state: Mapping[str, Any]) -> None:
        """Write pending rows as a part file, then the state that refers to it."""
        import torch

        with self._room():
            if self._pending:
                name = _PART.format(len(self._parts))
                with atomic_write(self._checkpoint / name) as temporary:
                    pq.write_table(pa.Table.from_pylist(self._pending, STEP_SCHEMA), temporary)
                self._parts.append(name)
                self._pending = []
            with atomic_write(self._checkpoint / "state.pt") as temporary:
                kept = {"parts": list(self._parts), "threads": torch.get_num_threads()}
                torch.save({**state, **kept}, temporary)

    def load(self, device: str) -> dict[str, Any] | None:
        """State of the last checkpoint; ``None`` where there is none.

        Torch gets the number of threads that the run had: sums are rounded as they are shared out.

        Raises:
            UsageError: If the checkpoint is damaged.
        """
        import torch

        file = self._checkpoint / "state.pt"
        if not file.is_file():
            return None
        with self.whole_checkpoint():
            state: dict[str, Any] = torch.load(file, map_location=device, weights_only=True)
            parts = state["parts"]
            # Never a path that the file made up: our own names, one after the other.
            if parts != [_PART.format(number) for number in range(len(parts))]:
                raise ValueError("parts")
            for name in parts:
                check_bounds(self._checkpoint / name)
            if not 1 <= state["threads"] <= _MAX_THREADS:
                raise ValueError("threads")
        self._parts = list(parts)
        torch.set_num_threads(state["threads"])
        return state

    @contextmanager
    def _room(self) -> Iterator[None]:
        """A disk that is full, or cannot be written any more, is one clear line."""
        try:
            yield
        except (OSError, RuntimeError) as error:
            # torch hides the system's reason behind a RuntimeError of its own.
            if isinstance(error, RuntimeError) and "PytorchStreamWriter" not in str(error):
                raise
            reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
            raise UsageError(
                f"cannot write results to {self.path} ({reason}); free some space, and --resume "
                "goes on from the last checkpoint"
            ) from error

    @contextmanager
    def whole_checkpoint(self) -> Iterator[None]:
        """What the block reads is the checkpoint: whatever it raises, that file is damaged.

        Raises:
            UsageError: In place of any error but that of a state of another method or version.
        """
        try:
            yield
        except AdapterError:
            raise
        except Exception as error:  # a damaged pickle raises nearly anything
            raise UsageError(
                f"{self._checkpoint / 'state.pt'} is damaged; start the run again with --overwrite"
            ) from error

    def table(self) -> dict[str, np.ndarray[Any, Any]]:
        """Columns of all rows so far, written and pending."""
        with self.whole_checkpoint():
            parts = [pq.read_table(self._checkpoint / n, schema=STEP_SCHEMA) for n in self._parts]
        table = pa.concat_tables([*parts, pa.Table.from_pylist(self._pending, STEP_SCHEMA)])
        return columns_of(table)

    def finish(self, result: Mapping[str, Any]) -> None:
        """Write ``steps.parquet``, then ``result.json``, drop the checkpoint, and tell the store.

        Raises:
            UsageError: If the store cannot be written; the run is finished all the same.
        """
        with self._room():
            with (
                atomic_write(self.steps_file) as temporary,
                pq.ParquetWriter(temporary, STEP_SCHEMA) as writer,
            ):
                for name in self._parts:
                    writer.write_table(pq.read_table(self._checkpoint / name, schema=STEP_SCHEMA))
                writer.write_table(pa.Table.from_pylist(self._pending, STEP_SCHEMA))
            write_json(self.result_file, result)
        # The state first: a checkpoint that is half removed is none.
        (self._checkpoint / "state.pt").unlink(missing_ok=True)
        shutil.rmtree(self._checkpoint)
        if self.tracker is not None:
            self.tracker.finish(result)
        self.store.put(result)


def columns_of(table: pa.Table) -> dict[str, np.ndarray[Any, Any]]:
    """Arrow columns as numpy arrays; missing numbers become NaN."""
    return {name: table.column(name).to_numpy(zero_copy_only=False) for name in table.column_names}


@dataclass(frozen=True)
class Found:
    """A row, and the ``result.json`` or the store that it was read from."""

    row: dict[str, Any]
    file: Path

    @property
    def run_id(self) -> str:
        """Identity of the run."""
        return str(self.row["run_id"])

    @property
    def folder(self) -> Path | None:
        """The run's folder; ``None`` where only a store knows of it."""
        return None if self.file.suffix == SUFFIX else self.file.parent


def find_results(roots: Sequence[Path]) -> list[dict[str, Any]]:
    """Rows of all finished runs below the given folders, each run once.

    Rows are read from the runs' folders, then from the stores.

    Raises:
        UsageError: If a folder is missing, or none holds a finished run.
    """
    rows: dict[str, dict[str, Any]] = {}
    for found in find_all(roots):
        rows.setdefault(found.run_id, found.row)
    if not rows:
        raise UsageError(f"no finished run in {', '.join(map(str, roots))}")
    return list(rows.values())


def find_folders(roots: Sequence[Path]) -> dict[str, Path]:
    """Folder of each finished run below the given folders that has one, by ``run_id``.

    Raises:
        UsageError: If a folder is missing, or a result is damaged.
    """
    folders: dict[str, Path] = {}
    for found in find_all(roots, stores=False):
        folders.setdefault(found.run_id, found.file.parent)
    return folders


def find_all(roots: Sequence[Path], *, stores: bool = True) -> list[Found]:
    """Every row below the given folders, those of ``result.json`` files first; runs may repeat.

    Args:
        roots: Folders, or single ``result.json`` and ``results.sqlite`` files.
        stores: Whether to read the stores too.

    Raises:
        UsageError: If a folder is missing, or a file is damaged.
    """
    files = [file for root in roots for file in below(root, "result.json")]
    found = [Found(read_result(file), file) for file in files]
    for file in find_stores(roots) if stores else ():
        found += [Found(checked(row, file), file) for row in Store(file).rows()]
    return found


def find_stores(roots: Sequence[Path]) -> list[Path]:
    """Files of the stores below the given folders."""
    return list(dict.fromkeys(file for root in roots for file in below(root, FILE)))


def below(root: Path, name: str) -> list[Path]:
    """Files of a name in a folder and below it, hidden folders aside; or ``root``, if it is one.

    Raises:
        UsageError: If there is no such folder.
    """
    if not root.exists():
        raise UsageError(f"{root} does not exist; run 'tta-bench run --out {root} …' first")
    if root.is_file():
        # A store may have another name, but not another suffix; all else is a result.
        return [root] if (root.suffix == SUFFIX) == (name == FILE) else []
    return sorted(
        file
        for file in root.rglob(name)
        if file.is_file()
        and not any(part.startswith(".") for part in file.relative_to(root).parts[:-1])
    )


def read_result(file: Path) -> dict[str, Any]:
    """One ``result.json``.

    Raises:
        UsageError: If it is damaged or of another schema version.
    """
    try:
        row = load_json(file)
    except (OSError, ValueError) as error:
        raise UsageError(f"{file} is not a result of tta-bench; remove it") from error
    return checked(row, file)


def checked(row: Any, file: Path) -> dict[str, Any]:
    """A row that was read from a file, if it is one.

    Raises:
        UsageError: If it is not, or of another schema version.
    """
    fields: dict[str, Any] = row if isinstance(row, dict) else {}
    version = fields.get("schema_version", SCHEMA_VERSION)
    if version != SCHEMA_VERSION:
        raise UsageError(f"{file} has schema {version}, this version reads {SCHEMA_VERSION}")
    if any(key not in fields for key in ("schema_version", *IDENTITY)):
        raise UsageError(f"{file} is not a result of tta-bench; remove it")
    if wrong := wrong_field(fields):
        raise UsageError(f"{file} is damaged: {wrong!r} holds what no run writes; remove it")
    return fields
