"""One pass over all tasks, cut into small chunks; no border of a task is marked."""

from __future__ import annotations

import numpy as np

from streams.learning_settings import Arrangement, Request, in_chunks
from streams.learning_types import joined
from streams.options import Option

OPTIONS: dict[str, tuple[Option, str]] = {
    "chunk": (100, "samples of an experience; the last one may be short"),
}


def arrange(request: Request) -> Arrangement:
    """The tasks' samples in order, shuffled inside each task, ``chunk`` an experience, one epoch.

    A chunk may hold the end of a task and the beginning of the next; the newest is in focus.

    Raises:
        StreamError: For a chunk below 1.
    """
    chunk = request.options.whole("chunk", 1)
    stream = joined([request.mixed(number, "online") for number in range(len(request.tasks))])
    offsets = np.append(np.arange(0, len(stream), chunk), len(stream))
    items = in_chunks(stream, offsets, "chunk_{}", epochs=1)
    return Arrangement(tasks=request.tasks, items=items)
