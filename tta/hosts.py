"""The entropy methods that others can be built on: one config and one step over all of them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from tta import norms, reliable, sharpness
from tta.config import param
from tta.objective import EntropyAdapter, Objective, tent_step


@dataclass(frozen=True, kw_only=True, slots=True)
class HostConfig(reliable.EataConfig):
    """Options of all hosts; those that the chosen ``host`` does not use have no effect."""

    host: Literal["tent", "eata", "sar"] = param("tent", "entropy method that this one builds on")
    rho: float = param(0.05, "sar: radius of the perturbation; main.py", ge=0)
    recovery_threshold: float = param(0.2, "sar: mean loss that triggers a recovery; sar.py", ge=0)
    recovery: sharpness.Recovery = param("official", f"sar recovery, {sharpness.RECOVERY}")


def prepare(adapter: EntropyAdapter, config: HostConfig) -> None:
    """Modes, gradients, optimiser and states of the host.

    Raises:
        AdapterError: If the model has no layer to adapt.
    """
    adapter.add_optimizer(config, norms.adapt_affine(adapter.model, config))
    if config.host == "eata":
        reliable.prepare_eata(adapter, config)
    elif config.host == "sar":
        sharpness.prepare_sar(adapter)


def fit(adapter: EntropyAdapter, batches: Iterable[Tensor], config: HostConfig) -> None:
    """What the host takes from source images ``(B, C, H, W)``, where it takes anything."""
    if config.host == "eata" and config.fisher_weight > 0:
        reliable.fit_fisher(adapter, batches)


def step(adapter: EntropyAdapter, x: Tensor, config: HostConfig, objective: Objective) -> Tensor:
    """All updates of the host on images ``(B, C, H, W)``; the logits from before the last one."""
    for _ in range(config.steps):
        if config.host == "eata":
            logits = reliable.eata_step(adapter, x, config, objective)
        elif config.host == "sar":
            logits = sharpness.sar_step(
                adapter,
                x,
                objective,
                margin=config.entropy_margin,
                rho=config.rho,
                threshold=config.recovery_threshold,
                recovery=config.recovery,
            )
        else:
            logits = tent_step(adapter, x, objective)
    return logits
