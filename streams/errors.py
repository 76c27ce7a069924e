"""The error that wrong data, names or plans raise."""

from __future__ import annotations


class StreamError(ValueError):
    """Input that a user can correct; the message is one line that says how."""


WORKER_DIED = (
    "a process that made batches died (killed, or out of memory); go on with --resume, with fewer "
    "--workers"
)
