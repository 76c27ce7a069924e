"""The store of a results folder: ``results.sqlite``, one row a run, written by many processes.

SQLite serialises the writers: a row is there whole or not at all, and no writer loses another's.
A finished run is keyed by its ``run_id``, so putting it twice, or merging stores, doubles nothing.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from benchmarks.errors import UsageError

FILE = "results.sqlite"
STORE_VERSION = 1
# How long a writer waits for the others, in seconds.
PATIENCE = 120.0
Status = Literal["queued", "running", "failed", "finished"]

_TABLE = """
CREATE TABLE IF NOT EXISTS runs (
    run_id TEXT PRIMARY KEY,
    status TEXT NOT NULL,
    reason TEXT NOT NULL DEFAULT '',
    method TEXT NOT NULL,
    stream TEXT NOT NULL,
    setting TEXT NOT NULL,
    seed INTEGER NOT NULL,
    label TEXT NOT NULL DEFAULT '',
    done INTEGER NOT NULL DEFAULT 0,
    total INTEGER NOT NULL DEFAULT 0,
    updated REAL NOT NULL,
    row TEXT
)
"""
_FINISHED = """
INSERT INTO runs (run_id, status, method, stream, setting, seed, updated, row)
VALUES (?, 'finished', ?, ?, ?, ?, ?, ?)
ON CONFLICT (run_id) DO UPDATE SET
    status = 'finished', reason = '', updated = excluded.updated, row = excluded.row
"""
_MARK = """
INSERT INTO runs
    (run_id, status, reason, method, stream, setting, seed, label, done, total, updated)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (run_id) DO UPDATE SET
    status = excluded.status, reason = excluded.reason, label = excluded.label,
    done = excluded.done, total = excluded.total, updated = excluded.updated
WHERE runs.status != 'finished'
"""


@dataclass(frozen=True, kw_only=True)
class Record:
    """What the store knows of a run; ``row`` is there once it is finished."""

    run_id: str
    status: Status
    reason: str
    method: str
    stream: str
    setting: str
    seed: int
    label: str
    done: int
    total: int
    updated: float
    row: dict[str, Any] | None


class Store:
    """The store of one results folder.

    Args:
        root: The results folder; folder and file are made by the first write.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.file = root / FILE

    @property
    def exists(self) -> bool:
        """Whether anything was ever written."""
        return self.file.is_file()

    def put(self, row: Mapping[str, Any]) -> None:
        """Keep the row of a finished run, in place of an earlier one of the same ``run_id``."""
        self.put_many([row])

    def put_many(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Keep several rows: all of them or none."""
        now = time.time()
        values = [
            (
                row["run_id"],
                *(row[key] for key in ("method", "stream", "setting", "seed")),
                now,
                json.dumps(row),
            )
            for row in rows
        ]
        with self._writing() as connection:
            connection.executemany(_FINISHED, values)

    def mark(
        self,
        run_id: str,
        status: Literal["queued", "running", "failed"],
        *,
        method: str,
        stream: str,
        setting: str,
        seed: int,
        label: str = "",
        reason: str = "",
        done: int = 0,
        total: int = 0,
    ) -> None:
        """Say how an unfinished run stands; a finished run stays finished."""
        values = (run_id, status, reason, method, stream, setting, seed, label, done, total)
        with self._writing() as connection:
            connection.execute(_MARK, (*values, time.time()))

    def rows(self) -> list[dict[str, Any]]:
        """Rows of the finished runs, by ``run_id``."""
        return [record.row for record in self.records() if record.row is not None]

    def records(self) -> list[Record]:
        """All runs, by ``run_id``.

        Raises:
            UsageError: If the file is damaged or of another version.
        """
        if not self.exists:
            return []
        with self._open() as connection:
            found = connection.execute("SELECT * FROM runs ORDER BY run_id").fetchall()
        return [
            Record(**{**dict(row), "row": json.loads(row["row"]) if row["row"] else None})
            for row in found
        ]

    def remove(self, run_ids: Sequence[str]) -> int:
        """Forget runs; how many there were."""
        if not self.exists:
            return 0
        with self._writing() as connection:
            gone = [
                connection.execute("DELETE FROM runs WHERE run_id = ?", (run_id,)).rowcount
                for run_id in run_ids
            ]
        return sum(gone)

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        try:
            self.root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(
                f"cannot write results to {self.root} ({error.strerror}); name another --out"
            ) from error
        with self._open() as connection:
            # The write lock is taken now: a later upgrade would fail instead of waiting.
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
            except BaseException:
                connection.execute("ROLLBACK")
                raise
            connection.execute("COMMIT")

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        try:
            with closing(
                sqlite3.connect(self.file, timeout=PATIENCE, isolation_level=None)
            ) as connection:
                connection.row_factory = sqlite3.Row
                version = connection.execute("PRAGMA user_version").fetchone()[0]
                if version not in (0, STORE_VERSION):
                    raise UsageError(
                        f"{self.file} has version {version}, this version reads {STORE_VERSION}"
                    )
                if version == 0:
                    connection.execute("BEGIN IMMEDIATE")
                    connection.execute(_TABLE)
                    connection.execute(f"PRAGMA user_version = {STORE_VERSION}")
                    connection.execute("COMMIT")
                yield connection
        except sqlite3.DatabaseError as error:
            raise UsageError(
                f"{self.file} cannot be used ({error}); if it is damaged remove it: "
                "'tta-bench results ls' reads the runs' folders again"
            ) from error
