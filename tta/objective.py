"""What an entropy method minimises and on which samples, and one step of Tent with it.

An ``Objective`` is data: COME replaces its uncertainty, OSTTA its samples and its terms, and the
steps of Tent (here), EATA (``tta.reliable``) and SAR (``tta.sharpness``) take any. Dense logits
``(B, K, ...)`` are selected pixel by pixel.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from tta import losses, norm_layers, optim
from tta.adapter import Adapter


@dataclass(frozen=True, slots=True)
class Objective:
    """What a step minimises.

    Attributes:
        uncertainty: Logits ``(B, K, ...)`` to what is minimised ``(B, ...)``.
        classes: ``K`` in the thresholds; the model's when ``None``.
        keep: Logits to the samples that may count, bool ``(B, ...)``; all when ``None``.
        terms: Logits to scalars that are added to the loss.
    """

    uncertainty: Callable[[Tensor], Tensor] = losses.entropy
    classes: int | None = None
    keep: Callable[[Tensor], Tensor] | None = None
    terms: tuple[Callable[[Tensor], Tensor], ...] = ()

    def limit(self, logits: Tensor, margin: float) -> float:
        """A threshold in nats from a factor of ``ln K``."""
        return margin * math.log(self.classes or logits.shape[1])

    def allowed(self, logits: Tensor, mask: Tensor) -> Tensor:
        """``mask`` ``(B, ...)`` without the samples that may not count."""
        return mask if self.keep is None else mask & self.keep(logits.detach())

    def total(self, loss: Tensor, logits: Tensor) -> Tensor:
        """The loss with all terms."""
        return sum((term(logits) for term in self.terms), loss)


class EntropyAdapter(Adapter):
    """An adapter whose steps are the shared ones: the names and types of what they keep on it.

    It declares nothing itself; ``prepare`` of the module that holds the step does.
    """

    optimizer: torch.optim.Optimizer
    # tta.reliable
    mean_probability: Tensor | None
    fisher: list[Tensor]
    anchor: list[Tensor]
    fisher_batches: int
    fisher_seen: int
    # tta.sharpness
    loss_average: float | None

    def reset(self) -> None:
        """As for every method; ``reset_mean=False`` keeps the mean prediction of EATA."""
        mean = getattr(self, "mean_probability", None)
        super().reset()
        if not getattr(self.config, "reset_mean", True):
            self.mean_probability = mean

    def restart(self) -> None:
        """``reset`` from within a step: the step counter, which keys random draws, goes on."""
        steps = self.num_steps
        self.reset()
        self.num_steps = steps

    @contextmanager
    def weights_at(self, values: Sequence[Tensor]) -> Iterator[None]:
        """Give the adapted parameters other values for a while; no layer's statistics move."""
        still = norm_layers.moving(self._own_statistics, on=False)
        with still, optim.lent(optim.params_of(self.optimizer), values):
            yield

    def count_backwards(self, images: int, taken: bool = True) -> None:
        """Put images that went back without ``update`` into the report, and a refused step."""
        self._report["backwards"] = self._report.get("backwards", 0) + images
        if not taken:
            self._report["update_refused"] += 1

    def record_uncertainty(self, values: Tensor, objective: Objective) -> None:
        """Put the mean over all samples into the report, under its name."""
        name = "entropy" if objective.uncertainty is losses.entropy else "uncertainty"
        self.record(**{name: values.detach().mean()})


def tent_step(adapter: EntropyAdapter, x: Tensor, objective: Objective) -> Tensor:
    """One update on the mean over all samples that may count; none where there is no such sample.

    Args:
        adapter: Owner of the model and the optimiser.
        x: Images ``(B, C, H, W)``.
        objective: What is minimised.

    Returns:
        Logits ``(B, K, ...)`` from before the update.
    """
    logits = adapter.logits(x)
    values = objective.uncertainty(logits)
    if objective.keep is not None:
        everything = torch.ones_like(values, dtype=torch.bool)
        learn(adapter, logits, values, objective.allowed(logits, everything), objective)
    else:
        loss = objective.total(values.mean(), logits)
        adapter.update(loss, images=len(x))
        adapter.record(loss=loss, selected_fraction=1.0)
    adapter.record_uncertainty(values, objective)
    return logits


def learn(
    adapter: EntropyAdapter, logits: Tensor, values: Tensor, chosen: Tensor, objective: Objective
) -> bool:
    """One update on the mean of ``values`` over ``chosen`` and the terms.

    Args:
        adapter: Owner of the optimiser.
        logits: ``(B, K, ...)`` with a graph, for the terms.
        values: ``(B, ...)`` with a graph.
        chosen: bool ``(B, ...)``.
        objective: Gives the terms.

    Returns:
        Whether any sample was chosen; without one there is no update, terms or not.
    """
    ((samples, images),) = tally(chosen)
    adapter.record(selected_fraction=samples / chosen.numel())
    if not samples:
        return False
    loss = objective.total(chosen_mean(values, chosen), logits)
    adapter.update(loss, images=images)
    adapter.record(loss=loss)
    return True


def chosen_mean(values: Tensor, chosen: Tensor) -> Tensor:
    """Mean of ``values`` where ``chosen`` is true; 0 with a gradient of 0 where nothing is."""
    return torch.where(chosen, values, 0).sum() / chosen.sum().clamp(min=1)


def tally(*masks: Tensor) -> list[tuple[int, int]]:
    """For each mask ``(B, ...)`` its true samples and the images that hold one.

    All of it takes one host synchronisation.
    """
    counts = [
        count
        for mask in masks
        for count in (mask.sum(), mask.reshape(len(mask), -1).any(dim=1).sum())
    ]
    numbers = torch.stack(counts).tolist()
    return list(zip(numbers[::2], numbers[1::2], strict=True))
