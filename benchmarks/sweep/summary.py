"""How a sweep stands, from its store alone: counts, speed, what runs, what failed."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.errors import UsageError
from benchmarks.store import Record, Store
from benchmarks.sweep.work import LEFT_OUT

# The speed is that of the last ten minutes, in seconds.
_WINDOW = 600.0
_FAILURES = 10


def summary(root: Path, now: float | None = None) -> dict[str, Any]:
    """A summary of the store of a results folder.

    Args:
        root: Results folder.
        now: Unix time in seconds; the present by default.

    Returns:
        Counts by status (``finished``, ``running``, ``queued``, ``failed``, ``left_out``),
        ``per_minute``: cells that ended in the last ten minutes; ``eta_seconds`` at that speed;
        both ``None`` where too few ended; lists ``cells`` (running) and ``failures`` (latest ten).

    Raises:
        UsageError: If the folder has no store.
    """
    store = Store(root)
    if not store.exists:
        raise UsageError(f"{root} has no store; start 'tta-bench sweep FILE.toml --out {root}'")
    records = store.records()
    counts = Counter(_status(record) for record in records)
    now = time.time() if now is None else now
    speed = _per_second(records, now)
    left = counts["running"] + counts["queued"]
    failed = [record for record in records if _status(record) == "failed"]
    failed.sort(key=lambda record: -record.updated)
    running = sorted((r for r in records if r.status == "running"), key=lambda r: r.run_id)
    return {
        "root": str(root),
        "total": len(records),
        **{status: counts[status] for status in STATUSES},
        "per_minute": None if speed is None else 60 * speed,
        "eta_seconds": None if not speed else left / speed,
        "cells": [_said(record, now) for record in running],
        "failures": [_said(record, now) for record in failed[:_FAILURES]],
    }


STATUSES = ("finished", "running", "queued", "failed", "left_out")


def _status(record: Record) -> str:
    return "left_out" if record.reason.startswith(LEFT_OUT) else record.status


def _per_second(records: Sequence[Record], now: float) -> float | None:
    ended = sorted(
        record.updated
        for record in records
        if _status(record) in ("finished", "failed") and record.updated >= now - _WINDOW
    )
    if len(ended) < 2 or ended[0] >= now:
        return None
    # The first one began before: it opens the interval.
    return (len(ended) - 1) / (now - ended[0])


def _said(record: Record, now: float) -> dict[str, Any]:
    names = ("method", "stream", "setting", "seed", "label", "done", "total", "reason")
    made = {name: getattr(record, name) for name in names}
    return {**made, "seconds_since_sign": round(max(0.0, now - record.updated), 1)}
