"""Errors that a user can correct; each message is one line that says how."""

from __future__ import annotations


class AdapterError(ValueError):
    """An adapter cannot be built, configured, loaded or run as asked."""


class BackboneError(AdapterError):
    """A model, its weights or its checkpoint file cannot be used."""
