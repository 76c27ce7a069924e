"""Naive: fine-tuning on each experience, nothing kept; the lower baseline."""

from __future__ import annotations

from continual.factory import strategies
from continual.plugin import Plugin


@strategies.register()
class Naive(Plugin):
    """Adds nothing to the learner."""
