"""Open set: how well the scores of a model tell known classes from unknown ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from streams.types import UNKNOWN, Batch

SCORES = ("confidence", "energy")
"""Largest probability, and log-sum-exp of the logits; larger is "known"."""
RECALL = 0.95

Values = NDArray[np.floating[Any]]


def auroc(known: Values, unknown: Values) -> float:
    """Probability that a known sample scores above an unknown one; a tie counts half.

    Args:
        known: Scores ``(N,)``.
        unknown: Scores ``(M,)``.
    """
    ranked = np.sort(unknown)
    below = np.searchsorted(ranked, known, side="left")
    upto = np.searchsorted(ranked, known, side="right")
    return float((below + upto).sum(dtype=np.float64) / 2 / len(known) / len(unknown))


def false_positive_rate(known: Values, unknown: Values, recall: float = RECALL) -> float:
    """Share of unknown samples at or above the threshold that keeps ``recall`` of the known ones.

    Args:
        known: Scores ``(N,)``.
        unknown: Scores ``(M,)``.
        recall: Least share of known samples at or above the threshold: the highest such threshold
            that is a score of a known sample.
    """
    kept = int(np.ceil(recall * len(known) - 1e-9))
    threshold = np.sort(known)[::-1][max(kept, 1) - 1]
    return float((unknown >= threshold).mean())


def harmonic(first: float, second: float) -> float:
    """Harmonic mean of two numbers that are not negative; 0 where both are 0."""
    return 2 * first * second / (first + second) if first + second else 0.0


class OpenScores:
    """Scores of all samples so far: 9 bytes a sample, exact metrics at the end."""

    def __init__(self) -> None:
        self._scores: list[Tensor] = []
        self._unknown: list[Tensor] = []

    def add(self, batch: Batch, logits: Tensor) -> None:
        """Keep the scores of a batch; a prediction with NaN or infinity scores lowest."""
        logits = logits.detach().double().cpu()
        finite = logits.isfinite().all(1)
        scores = torch.stack([logits.softmax(1).amax(1), logits.logsumexp(1)], dim=1)
        scores[~finite] = -torch.inf
        self._scores.append(scores.float())
        self._unknown.append(batch.y == UNKNOWN)

    def state(self) -> dict[str, Tensor]:
        """For a checkpoint: ``scores`` float32 ``(N, 2)`` and ``unknown`` bool ``(N,)``."""
        if len(self._scores) > 1:
            self._scores, self._unknown = [torch.cat(self._scores)], [torch.cat(self._unknown)]
        if not self._scores:
            return {}
        return {"scores": self._scores[0], "unknown": self._unknown[0]}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take up a checkpoint."""
        if state:
            self._scores, self._unknown = [state["scores"].cpu()], [state["unknown"].cpu()]

    def summarise(self, accuracy_pct: float) -> dict[str, float | None]:
        """``auroc_pct``, ``fpr95_pct``, the same of the energy, and the H-score.

        Args:
            accuracy_pct: Accuracy on the known classes.

        Returns:
            Percents; ``None`` where the stream has no known or no unknown sample.
        """
        state = self.state()
        names = ("auroc_pct", "fpr95_pct", "auroc_energy_pct", "fpr95_energy_pct", "h_score_pct")
        if not state or state["unknown"].all() or not state["unknown"].any():
            return dict.fromkeys(names)
        unknown = state["unknown"].numpy()
        confidence, energy = state["scores"].numpy().T
        values = [
            100 * measure(score[~unknown], score[unknown])
            for score in (confidence, energy)
            for measure in (auroc, false_positive_rate)
        ]
        return dict(zip(names, [*values, harmonic(accuracy_pct, values[0])], strict=True))
