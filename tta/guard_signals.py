"""What a guard sees and when it is alarmed: pure functions of logits and numbers.

Every alarm compares the adapter with the source model on the *same* images, so that a skewed label
distribution or a hard corruption, which both models see, cancels out. The threshold of a signal is
its own standard error over those images: nothing is set by hand for a data set or a network.

Two paired signals, both in nats, both means over images:

``collapse``  how far the marginal entropy (of the mean prediction) has fallen below the source's.
``unsure``    how far the entropy of the single predictions has risen above the source's, less
              ``TRADE`` times the gain in marginal entropy: a source model that a corruption has
              driven into few classes is surer than it should be, and must not blame the adapter.

Agreement with the source is shown and raises no alarm: good adapters disagree with a bad source.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tta import losses

# Nats of uncertainty that a nat of marginal entropy excuses; chosen on Fashion-MNIST-C of another
# severity and seed than any benchmark.
TRADE = 0.4
# Differences below this share of ln K are of no interest, however many images speak for them.
FLOOR = 0.005
# What a standardised signal must exceed, check after check, to add up.
SLACK = 1.0
# The least deviation of a watched value, in nats or relative, that counts as one deviation.
LEAST_SPREAD = 0.03
SIGNALS = ("collapse", "unsure")
WATCHED = ("entropy", "marginal", "log_norm")


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One check.

    Attributes:
        scores: Standardised ``collapse`` and ``unsure``: positive is worse than the source.
        agreement: Share of equal predictions, in ``[0, 1]``.
        source: Watched values of the source model (``watched``).
        adapter: Watched values of the adapter.
    """

    scores: dict[str, float]
    agreement: float
    source: dict[str, float]
    adapter: dict[str, float]


def watched(logits: Tensor) -> dict[str, float]:
    """Mean entropy and marginal entropy in nats, and log of the mean norm of the logits.

    Args:
        logits: ``(N, K)``, finite.
    """
    norm = torch.linalg.vector_norm(logits, dim=1).mean().clamp_min(1e-12).log()
    values = torch.stack([losses.entropy(logits).mean(), losses.marginal_entropy(logits), norm])
    return dict(zip(WATCHED, values.tolist(), strict=True))  # one transfer


def compare(adapter: Tensor, source: Tensor) -> Comparison:
    """Compare answers to the same images.

    Args:
        adapter: Logits ``(N, K)``, finite, ``N >= 2``.
        source: Logits ``(N, K)``, finite.
    """
    adapter, source = adapter.float(), source.float()
    # The cross-entropy with the mean prediction averages to the marginal entropy, so its values are
    # the images' shares of it, and their spread gives its standard error.
    gain = _shares(adapter) - _shares(source)
    doubt = losses.entropy(adapter) - losses.entropy(source) - TRADE * gain
    floor = FLOOR * math.log(adapter.shape[1])
    return Comparison(
        scores={"collapse": _score(-gain, floor), "unsure": _score(doubt, floor)},
        agreement=float((adapter.argmax(1) == source.argmax(1)).float().mean()),
        source=watched(source),
        adapter=watched(adapter),
    )


def accumulate(
    sums: Mapping[str, float], scores: Mapping[str, float], level: float
) -> tuple[dict[str, float], str | None]:
    """One-sided cumulative sums (CUSUM): one loud check alarms, or several that are less so.

    Args:
        sums: Sums so far by signal.
        scores: Standardised signals of this check.
        level: A sum above it is an alarm.

    Returns:
        The new sums, and the signal with the highest sum where it is above the level.
    """
    made = {name: max(0.0, sums[name] + scores[name] - SLACK) for name in SIGNALS}
    worst = max(SIGNALS, key=lambda name: made[name])
    return made, worst if made[worst] > level else None


def suspicious(
    now: Mapping[str, float], base: Mapping[str, float], spread: Mapping[str, Any], level: float
) -> bool:
    """Whether the adapter's own values left those of the last good check.

    Args:
        now: ``watched`` of this batch.
        base: ``watched`` of the adapter at the last good check.
        spread: ``observe``'s account of the source model's values from check to check.
        level: Deviations from which on a value is suspicious.
    """
    count = spread["count"]
    for name in WATCHED:
        deviation = math.sqrt(spread["squares"][name] / (count - 1)) if count > 1 else 0.0
        # Entropies are worse when they move apart: surer answers over fewer classes.
        moved = abs(now[name] - base[name])
        if moved > level * max(deviation, LEAST_SPREAD):
            return True
    return False


def observe(spread: Mapping[str, Any], values: Mapping[str, float]) -> dict[str, Any]:
    """Add one check's values to the running mean and sum of squares (Welford)."""
    count = spread["count"] + 1
    mean, squares = dict(spread["mean"]), dict(spread["squares"])
    for name in WATCHED:
        step = values[name] - mean[name]
        mean[name] += step / count
        squares[name] += step * (values[name] - mean[name])
    return {"count": count, "mean": mean, "squares": squares}


def no_spread() -> dict[str, Any]:
    """The account of ``observe`` before the first check."""
    return {"count": 0, "mean": dict.fromkeys(WATCHED, 0.0), "squares": dict.fromkeys(WATCHED, 0.0)}


def no_sums() -> dict[str, float]:
    """The sums of ``accumulate`` before the first check."""
    return dict.fromkeys(SIGNALS, 0.0)


def _shares(logits: Tensor) -> Tensor:
    probabilities = logits.softmax(1)
    log_mean = probabilities.mean(0).clamp_min(torch.finfo(logits.dtype).tiny).log()
    return -probabilities @ log_mean


def _score(differences: Tensor, floor: float) -> float:
    """Mean above ``floor`` in standard errors."""
    mean, error = float(differences.mean()), float(differences.std()) / math.sqrt(len(differences))
    return (mean - floor) / max(error, 1e-4)
