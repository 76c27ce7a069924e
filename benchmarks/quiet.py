"""Warnings of packages that no user could act on."""

from __future__ import annotations

import warnings


def quiet_imports() -> None:
    """Silence them in this process, before the packages are imported."""
    # timm 1.0.9 trips over it at import.
    warnings.filterwarnings("ignore", message=".*torch.jit.interface.*", category=FutureWarning)
    # Avalanche looks for a solver that GEM alone needs.
    warnings.filterwarnings("ignore", message="no QP solver found", category=UserWarning)
