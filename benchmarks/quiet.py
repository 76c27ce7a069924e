"""What no user could act on: warnings of packages, tracebacks of processes that are stopped."""

from __future__ import annotations

import signal
import warnings


def quiet_imports() -> None:
    """Silence them in this process, before the packages are imported."""
    # timm 1.0.9 trips over it at import.
    warnings.filterwarnings("ignore", message=".*torch.jit.interface.*", category=FutureWarning)
    # Avalanche looks for a solver that GEM alone needs.
    warnings.filterwarnings("ignore", message="no QP solver found", category=UserWarning)


def quiet_worker() -> None:
    """Prepare a process that works for another: Ctrl-C ends it at once, and the other says so."""
    quiet_imports()
    signal.signal(signal.SIGINT, signal.SIG_DFL)
