"""Refresh: before each step, a small step that raises the loss on the batch (unlearn, relearn).

Wang et al., A Unified and General Framework for Continual Learning, ICLR 2024. With g the gradient
of the cross-entropy on the current rows, F the diagonal Fisher of the last experience (zero in the
first) and e ~ N(0, 1), each weight tensor w moves so:

    released:  w += delta * (|w| g / |g| + sigma e) / (1 + kappa F)
    paper:     w += gamma g / (F + damping) + sqrt(2 gamma temperature / (F + damping)) e

``released`` is the authors' code (joey-wang123/CL-refresh-learning, commit 7c90da5), where the step
has the norm of the weights; it moves a tensor by about ``delta`` of its norm, whatever the learning
rate. The paper's form needs the inverse of F, which is zero at first: ``damping`` is ours, and its
``gamma`` is no published value. At the end of an experience F <- tau F + the mean over its samples
of p(y|x) (d log p(y|x) / dw)^2.

It composes with any other strategy: ``refresh+der-pp`` is the combination of the released code.

Deviations: the Fisher is taken in eval mode (``fisher_mode="train"`` is the code's choice, with
BatchNorm over one image), on images that are not augmented; its mean is over the samples, where
the code divides by batches times batch size. Tensors with |g| < 1e-12 stay where they are. Rows
that other plug-ins add to the batch are not unlearned. After a request to forget F is taken anew
on what is left of the last experience.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from continual.anchors import padded
from continual.factory import strategies
from continual.fisher import diagonal_fisher, fisher_cost
from continual.passes import trainable, untouched
from continual.plugin import Host, Plugin, PluginConfig
from tta.config import param

if TYPE_CHECKING:
    from streams.learning_types import ForgetRequest, Samples

_NO_GRADIENT = 1e-12


@strategies.register()
class Refresh(Plugin):
    """Perturbs the weights before the forward; adds nothing to the loss."""

    @dataclass(frozen=True, kw_only=True, slots=True)
    class Config(PluginConfig):
        """Constants of the released code."""

        form: Literal["released", "paper"] = param("released", "which of the two updates")
        every: int = param(1, "steps from one refresh to the next; code: 1, paper: 2", ge=1)
        steps: int = param(1, "unlearning steps J before a learning step", ge=1)
        delta: float = param(1e-5, "size of the step, as a share of the weights' norm; code", ge=0)
        sigma: float = param(1e-3, "noise inside the step; code", ge=0)
        kappa: float = param(1e-3, "weight of the Fisher in the released form; code", ge=0)
        gamma: float = param(1e-8, "size of the step in the paper's form; our choice", ge=0)
        damping: float = param(1.0, "added to the Fisher in the paper's form; our choice", gt=0)
        temperature: float = param(1.0, "scale of the paper's noise variance; paper: 1", ge=0)
        tau: float = param(1e-5, "share of the old Fisher that is kept; code", ge=0)
        fisher_mode: Literal["eval", "train"] = param(
            "eval", "mode of BatchNorm while the Fisher is taken; code: train"
        )
        fisher_samples: int | None = param(
            None, "samples of an experience that the Fisher takes; none takes all", ge=1
        )

    config: Config
    check_options = (
        {},
        {"every": 2, "steps": 2, "fisher_mode": "train", "fisher_samples": 5},
        {"form": "paper"},
    )

    def __init__(self, config: Config | None = None) -> None:
        super().__init__(config)
        self.fisher: dict[str, Tensor] = {}

    def begin_step(self, host: Host) -> None:
        """Unlearn the current rows a little."""
        if host.step % self.config.every:
            return
        for number in range(self.config.steps):
            self._unlearn(host, f"{self.name}/{self.config.seed} {number}")

    def end_experience(self, host: Host) -> None:
        """The Fisher of its samples."""
        if self._needs_fisher:
            new = self._fisher_of(host, host.data)
            for name, value in new.items():
                if name in self.fisher and self.config.tau:
                    value.add_(padded(self.fisher[name], value), alpha=self.config.tau)
            self.fisher = new

    def forgotten(self, host: Host, request: ForgetRequest) -> None:
        """The Fisher of what is left of the last experience."""
        if self.fisher:
            left = host.past[-1] if host.past else ()
            self.fisher = self._fisher_of(host, host.past[-1]) if len(left) else {}

    def state_dict(self) -> dict[str, Any]:
        """The Fisher, by parameter name."""
        return {"fisher": self.fisher}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up the Fisher."""
        self.fisher = dict(state["fisher"])

    @property
    def _needs_fisher(self) -> bool:
        return self.config.form == "paper" or self.config.kappa > 0

    def _fisher_of(self, host: Host, samples: Samples) -> dict[str, Tensor]:
        limit = self.config.fisher_samples or len(samples)
        forwards, backwards = fisher_cost(min(limit, len(samples)), "true", host.num_classes)
        host.count(forwards=2 * forwards, backwards=backwards)  # once more for p(y|x)
        return diagonal_fisher(
            host.model,
            samples,
            mode=self.config.fisher_mode,
            weight_by_p=True,
            max_samples=self.config.fisher_samples,
            generator=host.generator(f"{self.name}/{self.config.seed} fisher"),
        )

    def _unlearn(self, host: Host, purpose: str) -> None:
        named = trainable(host.model)
        rows = host.num_current
        with untouched(host.model, host.generator(f"{purpose} dropout")):
            loss = F.cross_entropy(host.model(host.x[:rows]), host.y[:rows])
            found = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
        host.count(forwards=rows, backwards=rows)
        gradients = {name: g for name, g in zip(named, found, strict=True) if g is not None}
        params = {name: named[name].detach() for name in gradients}
        noise = self._noise(params, host.generator(f"{purpose} noise"))
        fisher = {n: padded(self.fisher[n], p) for n, p in params.items() if n in self.fisher}
        step = released_step if self.config.form == "released" else paper_step
        step(params, gradients, fisher, noise, self.config)

    def _noise(self, params: dict[str, Tensor], generator: torch.Generator) -> list[Tensor] | None:
        scale = self.config.sigma if self.config.form == "released" else self.config.temperature
        if not scale:
            return None
        sizes = [p.numel() for p in params.values()]
        like = next(iter(params.values()))
        drawn = torch.randn(sum(sizes), generator=generator).to(like)
        parts = torch.split(drawn, sizes)
        return [part.view_as(p) for part, p in zip(parts, params.values(), strict=True)]


def released_step(
    params: dict[str, Tensor],
    gradients: dict[str, Tensor],
    fisher: dict[str, Tensor],
    noise: list[Tensor] | None,
    config: Refresh.Config,
) -> None:
    """Move the parameters in place, as the released code does.

    Args:
        params: Weights by name, without graph.
        gradients: Of the loss that is to rise; the same names and shapes.
        fisher: Diagonal Fisher by name; zero where a name is not there.
        noise: Standard normal tensors in the order of ``params``; none where ``None``.
        config: ``delta``, ``sigma``, ``kappa``.
    """
    weights, rising = list(params.values()), list(gradients.values())
    norms = torch.stack(torch._foreach_norm(rising))
    scales = torch.stack(torch._foreach_norm(weights)) / norms
    moved = norms >= _NO_GRADIENT
    steps = list(torch._foreach_mul(rising, list(torch.where(moved, scales, 0).unbind())))
    if noise is not None:
        scaled = torch._foreach_mul(noise, list((moved * config.sigma).to(norms).unbind()))
        torch._foreach_add_(steps, scaled)
    if fisher:
        torch._foreach_div_(
            steps,
            [
                1 + config.kappa * fisher[name] if name in fisher else torch.ones_like(p)
                for name, p in params.items()
            ],
        )
    with torch.no_grad():
        torch._foreach_add_(weights, steps, alpha=config.delta)


def paper_step(
    params: dict[str, Tensor],
    gradients: dict[str, Tensor],
    fisher: dict[str, Tensor],
    noise: list[Tensor] | None,
    config: Refresh.Config,
) -> None:
    """Move the parameters in place, as the paper writes it; arguments as of ``released_step``."""
    with torch.no_grad():
        for number, (name, p) in enumerate(params.items()):
            if gradients[name].norm() < _NO_GRADIENT:
                continue
            inverse = 1 / (fisher.get(name, torch.zeros_like(p)) + config.damping)
            p.add_(config.gamma * inverse * gradients[name])
            if noise is not None:
                spread = (2 * config.gamma * config.temperature * inverse).sqrt()
                p.add_(spread * noise[number])
