"""Delayed labels: whether the adapted model is the better one, and how sure its answers may be.

Labels come late, out of order, for some images only. They decide which of two models answers from
now on, and scale later probabilities; an answer that was given stays as it was.

The switch is a test by betting: of the images on which exactly one of the two models is right, the
share won by the adapted one is bet to be above a half, with several stakes at once. The wealth of
such a bettor exceeds ``1 / alpha`` with probability at most ``alpha`` if the share is not above a
half, however often one looks (Ville's inequality; Waudby-Smith, Ramdas: Estimating means of bounded
random variables by betting, 2020, arXiv:2010.09686). The way back is easier: the same bet on the
source model starts again whenever it has lost money, so that a long good time delays nothing.

The temperature minimises the log-likelihood of the labels in a window (Guo, Pleiss, Sun,
Weinberger: On calibration of modern neural networks, 2017, arXiv:1706.04599).
"""

from __future__ import annotations

import math
from collections import deque
from typing import Literal

import torch
from torch import Tensor

Side = Literal["source", "adapted"]
# Labels before a temperature is fitted, and the temperatures that are tried.
FEWEST = 50
TEMPERATURES = (0.1, 10.0)
_STAKES = tuple(share / 10 for share in range(1, 10))


class Bet:
    """Wealth of a bettor on 'the wins outnumber the losses', starting from 1.

    >>> bet = Bet()
    >>> for _ in range(10):
    ...     bet.play(won=True)
    >>> bet.wealth > 20
    True

    Args:
        again: Start from 1 again whenever the wealth is below it.
    """

    def __init__(self, again: bool = False) -> None:
        self.again = again
        self._logs = [0.0] * len(_STAKES)

    @property
    def wealth(self) -> float:
        """Mean over the stakes; at most about 1e300."""
        return sum(math.exp(min(log, 690.0)) for log in self._logs) / len(_STAKES)

    def play(self, won: bool) -> None:
        """One round at even odds."""
        for i, stake in enumerate(_STAKES):
            self._logs[i] += math.log1p(stake if won else -stake)
        if self.again and self.wealth < 1:
            self._logs = [0.0] * len(_STAKES)


class Switch:
    """Which of two models answers.

    Args:
        side: Where it stands first.
        alpha: Most probability of switching to an adapted model that is no better.
    """

    def __init__(self, side: Side, alpha: float) -> None:
        self.alpha = alpha
        self.turn(side)

    def turn(self, side: Side) -> None:
        """Stand at ``side``; evidence is gathered anew."""
        self.side: Side = side
        self._bet = Bet(again=side == "adapted")

    @property
    def evidence(self) -> float:
        """Wealth of the bet on the other side; the switch turns at ``1 / alpha``."""
        return self._bet.wealth

    def see(self, adapted_right: bool, source_right: bool) -> None:
        """One labelled image, answered by both."""
        if adapted_right == source_right:
            return
        self._bet.play(won=adapted_right == (self.side == "source"))
        if self.evidence >= 1 / self.alpha:
            self.turn("adapted" if self.side == "source" else "source")


class Temperature:
    """Divides logits so that probabilities fit the labels of the last images; 1 until then.

    Args:
        window: Labelled images that it is fitted to.
    """

    def __init__(self, window: int) -> None:
        self.value = 1.0
        self._seen: deque[tuple[Tensor, int]] = deque(maxlen=window)
        self._new = 0

    def see(self, logits: Tensor, label: int) -> None:
        """One labelled image: logits ``(K,)`` and its class."""
        if bool(logits.isfinite().all()):
            self._seen.append((logits.double().cpu(), label))
            self._new += 1

    def fit(self) -> None:
        """Fit again where a tenth of the labels is new."""
        if len(self._seen) >= FEWEST and 10 * self._new >= len(self._seen):
            rows, labels = zip(*self._seen, strict=True)
            self.value = fitted(torch.stack(rows), torch.tensor(labels))
            self._new = 0


def fitted(logits: Tensor, labels: Tensor) -> float:
    """The temperature in ``TEMPERATURES`` of the highest likelihood.

    Args:
        logits: ``(N, K)``, finite, float64.
        labels: ``(N,)`` int64.
    """
    own = logits.gather(1, labels[:, None])[:, 0]
    low, high = (math.log(1 / t) for t in reversed(TEMPERATURES))
    for _ in range(30):  # the likelihood is concave in the inverse: its slope has one zero
        middle = (low + high) / 2
        expected = ((logits * math.exp(middle)).softmax(1) * logits).sum(1)
        if float((own - expected).mean()) > 0:
            low = middle
        else:
            high = middle
    return math.exp(-(low + high) / 2)
