"""The step of SAR: a sharpness-aware update on reliable samples, and a recovery from collapse."""

from __future__ import annotations

import copy
import math
from typing import Literal

from torch import Tensor

from tta import optim
from tta.objective import EntropyAdapter, Objective, chosen_mean, tally

Recovery = Literal["official", "average", "full"]
RECOVERY = "what it restores: official: weights; average: and the mean loss; full: and the momentum"


def prepare_sar(adapter: EntropyAdapter) -> None:
    """Declare the moving average of the loss; none yet."""
    adapter.add_state("loss_average", None)


def sar_step(
    adapter: EntropyAdapter,
    x: Tensor,
    objective: Objective,
    *,
    margin: float,
    rho: float,
    threshold: float,
    recovery: Recovery,
) -> Tensor:
    """One update with the gradient at the raised weights, then the recovery if the loss is low.

    Args:
        adapter: Owner of the model, the optimiser and the moving average.
        x: Images ``(B, C, H, W)``.
        objective: What is minimised; its ``keep`` is asked at the first forward.
        margin: Threshold of the uncertainty at both forwards, as a factor of ``ln K``.
        rho: Length of the way up.
        threshold: A moving average of the loss below it, in nats, triggers the recovery.
        recovery: What the recovery restores.

    Returns:
        Logits ``(B, K, ...)`` of the first forward.
    """
    logits = adapter.logits(x)
    values = objective.uncertainty(logits)
    limit = objective.limit(logits, margin)
    first = objective.allowed(logits, values.detach() < limit)
    above: list[Tensor] = []

    def total(loss: Tensor, values: Tensor, chosen: Tensor, logits: Tensor) -> Tensor | None:
        # The step is never left out, since momentum moves the weights: a gradient of zero alone is
        # known without going back. NaN goes back, and is refused there.
        known = not objective.terms and not bool(chosen.any() | ~values.isfinite().all())
        return None if known else objective.total(loss, logits)

    def again() -> Tensor | None:
        logits = adapter.logits(x)
        values = objective.uncertainty(logits)
        second = first & (values.detach() < limit)
        loss = chosen_mean(values, second)
        above.extend((loss.detach(), second))
        return total(loss, values, second, logits)

    start = total(chosen_mean(values, first), values, first, logits)
    logits, values = logits.detach(), values.detach()  # a graph that does not go back is freed here
    taken = optim.sharpness_aware_step(adapter.optimizer, start, again, rho)
    loss, second = above
    (_, before), (samples, after) = tally(first, second)
    adapter.count_backwards(before + after, taken)
    adapter.record(selected_fraction=samples / second.numel(), recovered=0)
    adapter.record_uncertainty(values, objective)
    if samples:
        adapter.record(loss=loss)
        _follow(adapter, float(loss))
    if adapter.loss_average is not None and adapter.loss_average < threshold:
        _recover(adapter, recovery)
        adapter.record(recovered=1)
    return logits


def _follow(adapter: EntropyAdapter, loss: float) -> None:
    average = adapter.loss_average
    if math.isfinite(loss):
        adapter.loss_average = loss if average is None else 0.9 * average + 0.1 * loss


def _recover(adapter: EntropyAdapter, recovery: Recovery) -> None:
    average = adapter.loss_average
    moments = copy.deepcopy(adapter.optimizer.state_dict())
    adapter.restart()
    if recovery != "full":
        adapter.optimizer.load_state_dict(moments)
    if recovery == "official":
        adapter.loss_average = average
