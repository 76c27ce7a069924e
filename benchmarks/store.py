"""The store of a results folder: ``results.sqlite``, one row a run, written by many processes.

SQLite serialises the writers: a row is there whole or not at all, and no writer loses another's.
A finished run is keyed by its ``run_id``, so putting it twice, or merging stores, doubles nothing.

The journal is SQLite's plain one. A write-ahead log needs memory that all writers share, which the
machines of a cluster do not, and leaves rows outside the file; at one commit a connection it is no
faster. Each commit is synced: a row that was put outlives a power cut.
"""

from __future__ import annotations

import json
import random
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from benchmarks.errors import UsageError
from streams.jsonfiles import parse_json
from streams.secrets import masked, without_secrets

SUFFIX = ".sqlite"
FILE = f"results{SUFFIX}"
STORE_VERSION = 1
# How long a writer waits for the others, in seconds.
PATIENCE = 120.0
# Longest sleep between two tries, in seconds; a commit takes about as long.
_NAP = 0.02
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
# The columns that never change their meaning; the row has the others.
_VIEW = """
CREATE VIEW IF NOT EXISTS results AS
SELECT
    run_id, method, stream, setting, json_extract(row, '$.backbone') AS backbone, seed, label,
    json_extract(row, '$.protocol') AS protocol,
    json_extract(row, '$.error_pct') AS error_pct,
    json_extract(row, '$.source_error_pct') AS source_error_pct,
    json_extract(row, '$.seconds') AS seconds,
    row
FROM runs WHERE status = 'finished'
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
_TAKEN = """
INSERT OR IGNORE INTO runs
    (run_id, status, reason, method, stream, setting, seed, label, done, total, updated)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
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


_COLUMNS = {field.name for field in fields(Record)}


class Store:
    """The store of one results folder.

    Args:
        root: The results folder; folder and file are made by the first write. Or the file itself,
            ``NAME.sqlite``.
    """

    def __init__(self, root: Path) -> None:
        is_file = root.suffix == SUFFIX
        self.root = root.parent if is_file else root
        self.file = root if is_file else root / FILE

    @property
    def exists(self) -> bool:
        """Whether anything was ever written."""
        return self.file.is_file()

    def put(self, row: Mapping[str, Any]) -> None:
        """Keep the row of a finished run, in place of an earlier one of the same ``run_id``."""
        self.put_many([row])

    def put_many(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Keep several rows: all of them or none."""
        self.add(rows)

    def add(self, rows: Iterable[Mapping[str, Any]], records: Iterable[Record] = ()) -> None:
        """Keep rows, and records of unfinished runs of which nothing is known: all or nothing."""
        now = time.time()
        finished = [
            (
                *(row[key] for key in ("run_id", "method", "stream", "setting", "seed")),
                now,
                json.dumps(without_secrets(row)),
            )
            for row in rows
        ]
        unfinished = [
            (
                *(record.run_id, record.status, record.reason, record.method, record.stream),
                *(record.setting, record.seed, record.label, record.done, record.total),
                record.updated,
            )
            for record in records
        ]
        with self._writing() as connection:
            connection.executemany(_FINISHED, finished)
            connection.executemany(_TAKEN, unfinished)

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
        values = (run_id, status, masked(reason), method, stream, setting, seed, label, done, total)
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
        found: list[sqlite3.Row] = []
        with self._reading() as connection:
            if connection is not None:
                found = connection.execute("SELECT * FROM runs ORDER BY run_id").fetchall()
        return [self._record(row) for row in found]

    def has(self, run_id: str) -> bool:
        """Whether the run is there as finished."""
        with self._reading() as connection:
            return connection is not None and bool(
                connection.execute(
                    "SELECT 1 FROM runs WHERE run_id = ? AND status = 'finished'", (run_id,)
                ).fetchall()
            )

    def remove(self, run_ids: Sequence[str], *, unfinished: bool = False) -> int:
        """Forget runs, or those of them that are not finished; how many there were."""
        if not self.exists:
            return 0
        with self._writing() as connection:
            before = connection.total_changes
            connection.executemany(
                "DELETE FROM runs WHERE run_id = ? AND status != ?",
                [(run_id, "finished" if unfinished else "") for run_id in run_ids],
            )
            return connection.total_changes - before

    def _row(self, found: sqlite3.Row) -> dict[str, Any] | None:
        if found["row"] is None:
            return None
        try:
            row: Any = parse_json(found["row"])
        except (ValueError, TypeError) as error:
            raise self._damaged(f"row of {str(found['run_id'])[:8]}: {error}") from error
        if not isinstance(row, dict):
            raise self._damaged(f"row of {str(found['run_id'])[:8]} is no row")
        return row

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """A transaction; a block that raises, or a process that dies, leaves nothing of it."""
        try:
            self.root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(
                f"cannot write results to {self.root} ({error.strerror}); name another --out"
            ) from error
        with self._connected("rwc") as connection:
            _take_turn(connection)
            if self._version(connection) == 0:
                connection.execute(_TABLE)
                connection.execute(_VIEW)
                connection.execute(f"PRAGMA user_version = {STORE_VERSION}")
            yield connection
            connection.execute("COMMIT")

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection | None]:
        """``None`` where nothing was ever written."""
        if not self.exists:
            yield None
            return
        # Not "ro": what a killed writer left must be rolled back first.
        with self._connected("rw") as connection:
            yield connection if self._version(connection) else None

    @contextmanager
    def _connected(self, mode: Literal["rw", "rwc"]) -> Iterator[sqlite3.Connection]:
        where = f"{self.file.resolve().as_uri()}?mode={mode}"
        try:
            with closing(
                sqlite3.connect(where, uri=True, timeout=PATIENCE, isolation_level=None)
            ) as connection:
                connection.row_factory = sqlite3.Row
                yield connection
        except sqlite3.OperationalError as error:
            raise UsageError(
                f"{self.file} cannot be used ({error}): see who holds it, its permissions and the "
                "room on the disk"
            ) from error
        except sqlite3.DatabaseError as error:
            if type(error) is not sqlite3.DatabaseError:
                raise  # wrong use, no wrong file
            raise self._damaged(str(error)) from error

    def _record(self, found: sqlite3.Row) -> Record:
        """A row of the table, whose columns may hold anything in a file from elsewhere."""
        values = {**dict(found), "row": self._row(found)}
        kinds: dict[str, Any] = {"seed": int, "done": int, "total": int, "updated": (int, float)}
        if values.keys() != _COLUMNS or any(
            not isinstance(value, kinds.get(key, str))
            for key, value in values.items()
            if key != "row"
        ):
            raise self._damaged("a record of another kind")
        return Record(**values)

    def _version(self, connection: sqlite3.Connection) -> int:
        # A view in place of the table could go on for ever.
        connection.execute("PRAGMA trusted_schema = OFF")
        kinds = connection.execute("SELECT type FROM sqlite_master WHERE name = 'runs'").fetchall()
        if [kind[0] for kind in kinds] not in ([], ["table"]):
            raise self._damaged("it has no table of runs")
        version: int = connection.execute("PRAGMA user_version").fetchone()[0]
        if version not in (0, STORE_VERSION):
            raise UsageError(
                f"{self.file} has version {version}, this version reads {STORE_VERSION}"
            )
        return version

    def _damaged(self, why: str) -> UsageError:
        return UsageError(
            f"{self.file} is damaged ({why}); move it away, and 'tta-bench results merge "
            f"{self.root} {self.root}' makes it again from the runs' folders"
        )


def _take_turn(connection: sqlite3.Connection) -> None:
    """Begin to write, at the latest after ``PATIENCE`` seconds.

    SQLite's own waiting sleeps longer at each try, so that of many writers one may starve.
    """
    connection.execute("PRAGMA busy_timeout = 0")
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            # The lock is taken now: a later upgrade would fail instead of waiting.
            connection.execute("BEGIN IMMEDIATE")
            break
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise
        time.sleep(random.uniform(0, _NAP))
    # The end waits for readers.
    connection.execute(f"PRAGMA busy_timeout = {int(1000 * PATIENCE)}")
