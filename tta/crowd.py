"""Wisdom of crowds: learn where adaptation did not lower the confidence in the source's answer."""

from __future__ import annotations

import torch
from torch import Tensor


def not_less_confident(logits: Tensor, source_logits: Tensor) -> Tensor:
    """Samples whose probability of the source model's class did not fall; OSTTA, section 3.

    Equal probabilities count: before the first update all samples are chosen, if both models are
    evaluated on one path. Use it with any entropy loss by averaging over the chosen samples.

    Args:
        logits: Of the adapted model, ``(B, K)`` or dense ``(B, K, ...)``.
        source_logits: Of the source model for the same images, the same shape.

    Returns:
        bool ``(B, ...)``; false where a score is NaN.
    """
    with torch.no_grad():
        before = source_logits.softmax(dim=1)
        label = before.argmax(dim=1, keepdim=True)
        after = logits.softmax(dim=1)
        return (after.gather(1, label) >= before.gather(1, label)).squeeze(1)
