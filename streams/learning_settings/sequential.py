"""One task after the other: each is one experience, met once."""

from __future__ import annotations

from streams.learning_settings import Arrangement, Request, one_each


def arrange(request: Request) -> Arrangement:
    """As many experiences as tasks."""
    return Arrangement(tasks=request.tasks, items=one_each(request.tasks))
