"""Work on the parts of a batch in threads."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from operator import index
from threading import Lock

from streams.errors import StreamError

VARIABLE = "TTA_CORRUPTION_THREADS"
"""Environment variable with the number of threads."""

_MOST = 4


def share_out(work: Callable[[int], None], parts: Sequence[int], threads: int | None) -> None:
    """Call ``work`` for each part, in threads that live as long as this call.

    Numpy, scipy and Pillow release the interpreter while they compute. A pool that outlived the
    call would not survive a fork, which is how data loaders start their workers.

    Raises:
        StreamError: If the number of threads is no positive integer.
    """
    count = min(_resolved(threads), len(parts))
    if count <= 1:
        for part in parts:
            work(part)
        return
    waiting, lock = iter(parts), Lock()

    def drain() -> None:
        while True:
            with lock:
                part = next(waiting, None)
            if part is None:
                return
            work(part)

    # The caller is one of the threads.
    with ThreadPoolExecutor(count - 1) as pool:
        others = [pool.submit(drain) for _ in range(count - 1)]
        drain()
        for other in others:
            other.result()


def _resolved(threads: int | None) -> int:
    if threads is not None:
        try:
            count = 0 if isinstance(threads, bool) else index(threads)
        except TypeError:
            count = 0
        if count < 1:
            raise StreamError(f"threads must be a positive integer or None, got {threads!r}")
        return count
    written = os.environ.get(VARIABLE, "").strip()
    if not written:
        return min(_processors(), _MOST)
    if not written.isdecimal() or int(written) < 1:
        raise StreamError(f"{VARIABLE} must be a positive integer, got {written!r}; unset it")
    return int(written)


def _processors() -> int:
    # Containers and batch systems often lend fewer processors than the machine has.
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
