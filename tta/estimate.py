"""Accuracy without labels: agreement of an answer with itself under dropout (AETTA).

Lee, Chottananurak, Gong, Lee: AETTA: Label-Free Accuracy Estimation for Test-Time Adaptation, 2024,
arXiv:2404.01351. Reference code: taeckyung/AETTA @ 1315c13.

Deviations:
- Dropout acts on what enters the linear classifier, by a function beside the model: every backbone
  with a linear head is served and none is changed. Deeper dropout gives other numbers.
- Where a forward of the step gave the answer, its features and classifier are used again: the
  estimate is of the answer that was given. Elsewhere (a mean over views, a sum of two models) one
  plain forward of the adapted model is made, and counted.
- Masks are drawn from a generator keyed by (seed, step); the reference draws globally.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tta.heads import Tap

DRAWS = 10
POWER = 3
KEPT = 0.6
# Full reset in the reference: below this, or where the mean of WINDOW estimates falls by MARGIN.
LOWEST, MARGIN, WINDOW = 0.2, 0.02, 5


class Call(NamedTuple):
    """One pass through a classifier: features ``(B, D)``, rows ``(K, D)``, biases ``(K,)``."""

    features: Tensor
    weight: Tensor
    bias: Tensor | None

    def logits(self) -> Tensor:
        """``(B, K)``."""
        return F.linear(self.features, self.weight, self.bias)


@contextmanager
def recorded(tap: Tap, model: nn.Module, images: int) -> Iterator[list[Call]]:
    """Collect the passes of ``images`` rows through the classifier inside the block.

    Weights are copied as they are at that time: the update changes them, and a teacher's are only
    lent to the module.
    """
    calls: list[Call] = []

    def catch(module: nn.Module, args: Any, kwargs: Any) -> None:
        features = args[0] if args else kwargs["input"]
        if features.shape[0] == images and features.numel() == images * tap.dim:
            weight, bias = tap.weights(model)
            kept = None if bias is None else bias.detach().clone()
            calls.append(Call(features.detach().flatten(1), weight.detach().clone(), kept))

    hook = tap.head(model).register_forward_pre_hook(catch, with_kwargs=True)
    try:
        yield calls
    finally:
        hook.remove()


def of_answer(calls: list[Call], answer: Tensor) -> Call | None:
    """The pass whose logits are the answer ``(B, K)``, if there is one."""
    for call in reversed(calls):
        if torch.allclose(call.logits(), answer, rtol=1e-3, atol=1e-3):
            return call
    return None


def default_rate(classes: int) -> float:
    """Dropout rate of the reference: .4 for 10 classes, .3 for 100 and 200, .2 for 1000."""
    return 0.4 if classes <= 10 else 0.3 if classes <= 200 else 0.2


@torch.no_grad()
def errors(call: Call, rate: float, generator: torch.Generator) -> tuple[float, float]:
    """Disagreement under dropout, and the same corrected for a collapsed mean prediction.

    Args:
        call: The answer's features and classifier.
        rate: Share of the features that is dropped, in ``[0, 1)``.
        generator: A CPU generator.

    Returns:
        ``e`` and ``e / (H / ln K) ** 3``, the latter in ``[0, 1 - 1 / K]``.
    """
    label = call.logits().argmax(1)
    agree, mean = torch.zeros((), device=label.device), torch.zeros(())
    for _ in range(DRAWS):
        keep = torch.rand(call.features.shape, generator=generator) >= rate
        dropped = call.features * keep.to(call.features) / (1 - rate)
        logits = F.linear(dropped, call.weight, call.bias)
        agree = agree + (logits.argmax(1) == label).float().mean() / DRAWS
        mean = mean.to(logits) + logits.softmax(1).mean(0) / DRAWS
    wrong = 1 - float(agree)
    classes = len(mean)
    entropy = float(-(mean * (mean + 1e-6).log()).sum())
    share = max(entropy / math.log(classes), 1e-6)
    # Rounding may leave a disagreement of nothing a little below zero.
    return max(0.0, wrong), min(max(0.0, wrong / share**POWER), 1 - 1 / classes)


def smooth(before: float | None, wrong: float, corrected: float) -> float:
    """The next smoothed error; the first starts from the uncorrected one."""
    return KEPT * (wrong if before is None else before) + (1 - KEPT) * corrected


def recovery(estimates: list[float]) -> bool:
    """The reference's rule for a full reset, from the last ``2 * WINDOW`` estimated accuracies."""
    if estimates and estimates[-1] < LOWEST:
        return True
    if len(estimates) < 2 * WINDOW:
        return False
    before, last = estimates[-2 * WINDOW : -WINDOW], estimates[-WINDOW:]
    return sum(last) / WINDOW + MARGIN < sum(before) / WINDOW
