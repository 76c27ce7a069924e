"""What saving and restoring an Avalanche strategy have in common: kinds of nodes, tensors."""

from __future__ import annotations

from collections import deque
from typing import Any

import torch
from torch import Tensor, nn

FACTORIES: dict[str, type] = {f"of {t.__name__}": t for t in (dict, list, set, int, float)}
"""Of a ``defaultdict``."""

SEQUENCES: dict[str, Any] = {
    t.__name__: t for t in (list, tuple, deque, set, frozenset, torch.Size)
}

MAKERS = {"zeros": torch.zeros, "ones": torch.ones}
"""Functions that Avalanche's ``ParamData`` keeps."""


class UnknownState(Exception):  # noqa: N818 -- a signal between two modules
    """A value that cannot be saved, or not be put back into this strategy."""


def tensors_of(module: nn.Module) -> dict[str, Tensor]:
    """All parameters and buffers, those that a ``state_dict`` leaves out as well."""
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def shapes_of(module: nn.Module) -> dict[str, torch.Size]:
    """Shapes of the same."""
    return {name: value.shape for name, value in tensors_of(module).items()}
