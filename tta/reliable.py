"""The step of ETA and EATA: learn from reliable and novel samples, near the source weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from tta import losses, norms, optim, source
from tta.adapter import Needs
from tta.config import param
from tta.objective import EntropyAdapter, Objective, learn


@dataclass(frozen=True, kw_only=True, slots=True)
class EtaConfig(norms.AffineConfig):
    """Selection by uncertainty and by novelty; the official values for ImageNet-C."""

    lr: float = param(2.5e-4, "learning rate; EATA main.py at batch 64", gt=0)
    entropy_margin: float = param(0.4, "E_0 as a factor of ln K; EATA main.py", ge=0)
    redundancy_margin: float = param(
        0.05, "cosine with the mean prediction to stay below; CIFAR-10 .4, CIFAR-100 .1", ge=0
    )
    mean_momentum: float = param(0.9, "decay of the mean prediction; eata.py", ge=0, le=1)
    reset_mean: bool = param(True, "reset clears the mean prediction; eata.py keeps it: False")


@dataclass(frozen=True, kw_only=True, slots=True)
class EataConfig(EtaConfig):
    """The same with a pull towards the source weights."""

    fisher_weight: float = param(
        2000.0, "beta, weight of the pull; ImageNet 2000, CIFAR 1; 0 turns it off", ge=0
    )
    fisher_from: Literal["source", "test"] = param(
        "source", "Fisher information of source images, or of the first test images"
    )
    fisher_images: int = param(2000, "test images of it, in whole batches; main.py", ge=1)


def prepare_eta(adapter: EntropyAdapter) -> None:
    """Declare the mean prediction ``(K,)`` of the samples learnt from; none yet."""
    adapter.add_state("mean_probability", None)


def eta_step(adapter: EntropyAdapter, x: Tensor, config: EtaConfig, objective: Objective) -> Tensor:
    """One update on reliable and novel samples, each weighted by ``exp(E_0 - uncertainty)``.

    Args:
        adapter: Owner of the model, the optimiser and the mean prediction.
        x: Images ``(B, C, H, W)``.
        config: Thresholds.
        objective: What is minimised.

    Returns:
        Logits ``(B, K, ...)`` from before the update.
    """
    logits = adapter.logits(x)
    values = objective.uncertainty(logits)
    limit = objective.limit(logits, config.entropy_margin)
    probabilities = logits.detach().softmax(dim=1)
    chosen = values.detach() < limit
    mean = adapter.mean_probability
    if mean is not None:
        shape = (1, -1, *[1] * (logits.ndim - 2))
        cosine = F.cosine_similarity(mean.view(shape), probabilities, dim=1)
        chosen = chosen & (cosine.abs() < config.redundancy_margin)
    chosen = objective.allowed(logits, chosen)

    weighted = (limit - values.detach()).exp() * values
    if learn(adapter, logits, weighted, chosen, objective):
        seen = _class_means(probabilities, chosen)
        kept = config.mean_momentum
        adapter.mean_probability = seen if mean is None else kept * mean + (1 - kept) * seen
    adapter.record_uncertainty(values, objective)
    return logits


def prepare_eata(adapter: EntropyAdapter, config: EataConfig) -> None:
    """Declare mean prediction, Fisher information and source weights; ask for source images.

    The needs depend on the options: without a pull, or with one from test images, there are none.
    """
    prepare_eta(adapter)
    params = optim.params_of(adapter.optimizer) if config.fisher_weight > 0 else []
    adapter.add_state("fisher", [])
    adapter.add_state("anchor", [p.detach().clone() for p in params])
    adapter.add_state("fisher_batches", 0)
    adapter.add_state("fisher_seen", 0)
    from_source = config.fisher_weight > 0 and config.fisher_from == "source"
    adapter.needs = Needs(source_data=from_source, norms=adapter.needs.norms)  # type: ignore[misc]


def fit_fisher(adapter: EntropyAdapter, batches: Iterable[Tensor]) -> None:
    """Fisher information of source images ``(B, C, H, W)``, and its weights as the anchor."""
    params = optim.params_of(adapter.optimizer)
    adapter.anchor = [p.detach().clone() for p in params]
    adapter.fisher = source.fisher(_counted(adapter), batches, params, losses.pseudo_label_loss)


def eata_step(
    adapter: EntropyAdapter, x: Tensor, config: EataConfig, objective: Objective
) -> Tensor:
    """``eta_step`` with the pull towards the source weights in the loss."""
    if config.fisher_weight == 0:
        return eta_step(adapter, x, config, objective)
    if config.fisher_from == "test" and adapter.fisher_seen < config.fisher_images:
        _observe(adapter, x)
    pull = _pull(adapter, config.fisher_weight)
    return eta_step(adapter, x, config, replace(objective, terms=(*objective.terms, pull)))


def _observe(adapter: EntropyAdapter, x: Tensor) -> None:
    """Add a test batch to the Fisher information, at the source weights."""
    params = optim.params_of(adapter.optimizer)
    with adapter.weights_at(adapter.anchor):
        squares = source.squared_gradients(_counted(adapter), x, params, losses.pseudo_label_loss)
    adapter.fisher_seen += len(x)
    if source.all_finite(squares):
        adapter.fisher_batches += 1
        adapter.fisher = adapter.fisher or squares
        torch._foreach_lerp_(adapter.fisher, squares, 1 / adapter.fisher_batches)


def _counted(adapter: EntropyAdapter) -> Callable[[Tensor], Tensor]:
    """The adapted model, for a forward that is back-propagated once."""

    def logits(x: Tensor) -> Tensor:
        adapter.count_backwards(len(x))
        return adapter.logits(x)

    return logits


def _pull(adapter: EntropyAdapter, weight: float) -> Callable[[Tensor], Tensor]:
    """``beta * sum F (theta - theta_0) ** 2`` over all adapted parameters; no factor 1/2."""

    def term(logits: Tensor) -> Tensor:
        if not adapter.fisher:
            return logits.new_zeros(())
        params: list[Tensor] = list(optim.params_of(adapter.optimizer))
        moved = torch._foreach_sub(params, adapter.anchor)
        costs = torch._foreach_mul(torch._foreach_mul(moved, moved), adapter.fisher)
        # None is negative, so the 1-norms are the sums: one kernel, and a gradient.
        return weight * torch.stack(torch._foreach_norm(costs, 1)).sum()

    return term


def _class_means(probabilities: Tensor, chosen: Tensor) -> Tensor:
    """Mean ``(K,)`` of probabilities ``(B, K, ...)`` over the samples ``chosen`` ``(B, ...)``."""
    masked = torch.where(chosen.unsqueeze(1), probabilities, 0)
    return masked.movedim(1, -1).flatten(0, -2).sum(dim=0) / chosen.sum()
