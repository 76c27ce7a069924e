"""Losses over class scores; the class dimension is 1, so dense heads work as they are."""

from __future__ import annotations

import torch
from torch import Tensor


def entropy(logits: Tensor) -> Tensor:
    """Shannon entropy of the softmax, in nats.

    Args:
        logits: ``(B, K)`` or dense ``(B, K, ...)``, any floating dtype.

    Returns:
        ``(B, ...)`` in ``[0, ln K]``.
    """
    log_p = torch.log_softmax(logits, dim=1)
    return -(log_p.exp() * log_p).sum(dim=1)
