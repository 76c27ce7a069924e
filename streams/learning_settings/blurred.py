"""Tasks without sharp borders: around each, samples of the two neighbours mix linearly.

In the window around a border the share of the next task rises linearly from 0 to 1. Every sample
still comes once.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from streams.learning_settings import Arrangement, Request, in_chunks
from streams.learning_types import joined
from streams.options import Option
from streams.types import Ints

OPTIONS: dict[str, tuple[Option, str]] = {
    "blur": (0.5, "part of a task's samples that lie in windows around its borders, 0 to 1"),
    "parts": (5, "experiences a task: inside one the order is the learner's"),
}


def arrange(request: Request) -> Arrangement:
    """``parts`` experiences a task, of as many samples as ``blurred_tasks`` says.

    Raises:
        StreamError: For an option out of range.
    """
    blur, parts = request.options.number("blur", 0, 1), request.options.whole("parts", 1)
    sizes = [len(task.train) for task in request.tasks]
    of = blurred_tasks(sizes, blur)
    stream = joined([request.mixed(number, "blurred") for number in range(len(sizes))])
    # Sorted by task the slots are 0, 1, 2, ... of the joined samples: each in turn, by task.
    places = np.empty(len(of), dtype=np.int64)
    places[np.argsort(of, kind="stable")] = np.arange(len(of))
    starts = np.cumsum([0, *sizes])
    cuts = [np.linspace(a, b, parts, endpoint=False) for a, b in pairwise(starts)]
    offsets = np.concatenate([*cuts, starts[-1:]]).astype(np.int64)
    items = in_chunks(stream.take(places), np.unique(offsets), "part_{}")
    return Arrangement(tasks=request.tasks, items=items)


def blurred_tasks(sizes: Sequence[int], blur: float) -> Ints:
    """Task of each sample of a stream ``(N,)`` in which neighbouring tasks mix.

    A border between tasks of ``a`` and ``b`` samples has a window of ``w = floor(blur * min(a, b) /
    2)`` slots on each side. Of the first ``d`` slots of a window, ``round(d * d / (4 w))`` are of
    the next task (halves rounded up); in the whole window ``w`` are, so no sample is lost.

    Args:
        sizes: Samples of each task.
        blur: Width of the windows, 0 to 1.
    """
    of = np.repeat(np.arange(len(sizes)), sizes)
    borders = np.cumsum(sizes)[:-1]
    for task, border in enumerate(borders.tolist()):
        width = int(blur * min(sizes[task], sizes[task + 1]) / 2)
        if width:
            slots = np.arange(2 * width + 1)
            newer = (slots * slots + 2 * width) // (4 * width)
            of[border - width : border + width] = task + np.diff(newer)
    return of
