"""Losses over class scores; the class dimension is 1, so dense heads work as they are."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
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


def cross_entropy(target_logits: Tensor, logits: Tensor) -> Tensor:
    """Cross-entropy of a softmax with the softmax of a target, in nats.

    Args:
        target_logits: ``(B, K)`` or dense ``(B, K, ...)``; detach them where the target is fixed.
        logits: The same shape.

    Returns:
        ``(B, ...)``, at least the target's entropy.
    """
    return -(target_logits.softmax(dim=1) * logits.log_softmax(dim=1)).sum(dim=1)


def symmetric_cross_entropy(x: Tensor, x_ema: Tensor, alpha: float = 0.5) -> Tensor:
    """``(1 - alpha) * H(x_ema, x) + alpha * H(x, x_ema)`` with ``H`` the cross-entropy, in nats.

    Args:
        x: Logits ``(B, K)`` or dense ``(B, K, ...)``.
        x_ema: Logits of the teacher, the same shape.
        alpha: Weight of the part whose target is ``x`` itself, in ``[0, 1]``.

    Returns:
        ``(B, ...)``.
    """
    return (1 - alpha) * cross_entropy(x_ema, x) + alpha * cross_entropy(x, x_ema)


def opinion_entropy(logits: Tensor, classes: int | None = None) -> Tensor:
    """Entropy of the opinion of subjective logic: beliefs in the classes, and the uncertainty.

    With ``z`` the logits, their norm kept out of the gradient, and ``S = sum exp(z) + classes``,
    the beliefs are ``exp(z) / S`` and the uncertainty is ``classes / S``; each plus 1e-7 (COME).

    Args:
        logits: ``(B, K)`` or dense ``(B, K, ...)``, any floating dtype.
        classes: Weight of the uncertainty; ``K`` when ``None``.

    Returns:
        ``(B, ...)`` in nats, up to ``ln(K + 1)``.
    """
    norm = torch.linalg.vector_norm(logits, dim=1, keepdim=True)
    # A row of zeros has no direction; it stays zero.
    norm = norm.clamp_min(torch.finfo(logits.dtype).tiny)
    z = logits / norm * norm.detach()
    weight = torch.full_like(z[:, :1], math.log(classes or logits.shape[1]))
    opinion = torch.cat([z, weight], dim=1).softmax(dim=1) + 1e-7
    return -(opinion * opinion.log()).sum(dim=1)


def marginal_entropy(logits: Tensor) -> Tensor:
    """Entropy of the mean prediction over all images (and pixels), in nats.

    Args:
        logits: ``(B, K)`` or dense ``(B, K, ...)``, any floating dtype.

    Returns:
        Scalar in ``[0, ln K]``.
    """
    mean = logits.softmax(dim=1).movedim(1, -1).flatten(0, -2).mean(dim=0)
    # 0 ln 0 is 0: a mean may underflow.
    return -(mean * mean.clamp_min(torch.finfo(mean.dtype).tiny).log()).sum()


def generalized_cross_entropy(logits: Tensor, labels: Tensor, q: float) -> Tensor:
    """``(1 - p ** q) / q`` with ``p`` the probability of the label.

    Args:
        logits: ``(B, K)`` or dense ``(B, K, ...)``.
        labels: ``(B, ...)`` int64, classes of ``[0, K)``.
        q: In ``(0, 1]``: towards 0 the cross-entropy, 1 the mean absolute error.

    Returns:
        ``(B, ...)`` in ``[0, 1 / q]``.
    """
    log_p = logits.log_softmax(dim=1).gather(1, labels.unsqueeze(1)).squeeze(1)
    return (1 - (q * log_p).exp()) / q


def pseudo_label_loss(logits: Tensor) -> Tensor:
    """Mean cross-entropy with the model's own most probable classes, a scalar in nats."""
    return F.cross_entropy(logits, logits.detach().argmax(dim=1))
