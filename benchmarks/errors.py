"""The error of a request that cannot be carried out as asked."""

from __future__ import annotations


class UsageError(ValueError):
    """Input that a user can correct; the message is one line that says how."""
