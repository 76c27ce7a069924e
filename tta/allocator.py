"""Keep freed memory in the process: large activations are otherwise mapped anew for every layer.

``tta-bench`` does so; a service that adapts on a CPU calls ``keep_freed_memory`` when it starts.
"""

from __future__ import annotations

import ctypes
import os
import sys

# mallopt(3) of glibc.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4


def keep_freed_memory() -> bool:
    """Tell glibc to reuse large blocks instead of returning them to the kernel at once.

    A layer's output of some megabytes is by default mapped from the kernel, zeroed page by page,
    and unmapped again when it is freed; at 224 x 224 pixels and batch 64 that costs more than the
    convolutions. With this, resident memory stays at its peak until the process ends. No number
    changes. Any ``MALLOC_`` setting of the environment turns it off.

    Returns:
        Whether it took effect (Linux with glibc).
    """
    if not sys.platform.startswith("linux"):
        return False
    if any(name.startswith("MALLOC_") for name in os.environ):
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    wanted = ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, 2**31 - 1), (_M_TOP_PAD, 2**26))
    done = [mallopt(option, value) == 1 for option, value in wanted]
    return all(done)
