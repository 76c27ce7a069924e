"""FOA: search prompt tokens by forwards alone, so that features look like source features.

Niu, Miao, Chen, Wu, Zhao: Test-time model adaptation with only forward passes, 2024,
arXiv:2404.01650. Reference code: mr-eggplant/FOA @ 004b02d.

Works on timm vision transformers whose classifier reads the class token. Every batch costs
``popsize + 1`` forwards.

Deviations:
- The search is this package's own CMA-ES (``tta.evolution``) with the full covariance; the
  reference runs pycma, whose state is no plain data and whose seed is NumPy's global one. On the
  test functions both converge alike; the draws differ.
- Candidates are drawn from a generator keyed by (seed, step); ``reset`` brings the same first
  prompts back, the reference draws new ones.
- A batch of one has no standard deviation: that part of the fitness is left out (reference: NaN).
- A candidate whose fitness is not finite counts as the worst; where all are, nothing is learnt.
- Source statistics come from the images given to ``fit_source`` (the paper: 32 are enough; the
  reference: 50,000 validation images).
- Several candidates share a forward where the batch is small (``images_per_forward``).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tta import evolution, losses
from tta.adapter import Adapter, Needs
from tta.config import AdapterConfig, param
from tta.errors import AdapterError
from tta.factory import adapters
from tta.prompts import Prompted
from tta.published import figures

PUBLISHED = (
    *figures(
        "mr-eggplant/FOA",
        "README, table of ViT-B/16, ImageNet-C at severity 5",
        {"imagenet-c/reset-50k/vit-b-16-augreg2": 33.7},
        note="stated as accuracy",
    ),
)


@adapters.register()
class FOA(Adapter):
    """Prompts by CMA-ES on discrepancy and entropy, and a shift of the class token."""

    needs = Needs(source_data=True, gradients=False)
    predicts = "after"
    check_options = ({"popsize": 4}, {"popsize": 5, "prompts": 1, "images_per_forward": 7})

    @dataclass(frozen=True, kw_only=True, slots=True)
    class Config(AdapterConfig):
        """Defaults of the official ImageNet-C configuration; ``fitness_weight`` .2 for -R."""

        prompts: int = param(3, "tokens put in after the class token; official code", ge=1)
        popsize: int = param(
            27, "samples a batch, K - 1: the best of the last batch is one more", ge=4
        )
        sigma: float = param(1.0, "first step size of the search", gt=0)
        fitness_weight: float = param(0.4, "lambda of the discrepancy; official code", ge=0)
        shift: float = param(1.0, "share of the shift of the class token; 0 for none", ge=0)
        history_decay: float = param(0.9, "of the running test mean; official code", ge=0, le=1)
        images_per_forward: int = param(64, "candidates share a forward up to this many", ge=1)

    config: Config
    best: Tensor
    search: dict[str, Any]
    source_mean: Tensor | None
    source_std: Tensor | None
    test_mean: Tensor | None

    def setup(self) -> None:
        """Find the transformer; first prompts and an untouched search."""
        config = self.config
        self._vit = Prompted(self.model, self.name)
        dim = config.prompts * self._vit.width
        bound = math.sqrt(6 / (3 * self._vit.patch + self._vit.width))
        first = torch.rand(dim, generator=self.generator("prompts"), dtype=torch.float64)
        self.add_state("best", (2 * first - 1) * bound)
        self.add_state("search", evolution.start(dim, config.sigma))
        self.add_state("source_mean", None)
        self.add_state("source_std", None)
        self.add_state("test_mean", None)

    def fit(self, batches: Iterable[Tensor]) -> None:
        """Mean and unbiased standard deviation of the class tokens, without prompts.

        Args:
            batches: Images ``(B, C, H, W)``, two or more in all.
        """
        count, mean, squares = 0, torch.zeros(()), torch.zeros(())
        with torch.no_grad():
            for x in batches:
                features = self._vit(self.model, x, None)[0][0]
                kind = features
                rows = features.to("cpu", torch.float64)
                total = count + len(rows)
                gap = rows.mean(0) - mean
                squares = squares + (rows - rows.mean(0)).square().sum(0)
                squares = squares + gap.square() * (count * len(rows) / total)
                mean = mean + gap * (len(rows) / total)
                count = total
        if count < 2:
            raise AdapterError("foa needs the spread of source features: give two images or more")
        self.source_mean = mean.to(kind)
        self.source_std = (squares / (count - 1)).sqrt().to(kind)

    def adapt(self, x: Tensor) -> Tensor:
        """Images ``(B, C, H, W)`` to the shifted logits ``(B, K)`` of the best candidate."""
        config = self.config
        asked = evolution.ask(self.search, config.popsize, self.generator("candidates"))
        candidates = torch.cat([asked, self.best.to(asked)[None]])
        together = max(1, config.images_per_forward // len(x))
        with torch.no_grad():
            parts = [self._evaluate(x, some) for some in torch.split(candidates, together)]
        self.count_forwards(len(x) * len(candidates))
        fitness, entropies, means, logits = (torch.cat(part) for part in zip(*parts, strict=True))
        # One transfer: the search runs on the CPU.
        ranked = fitness.to("cpu", torch.float64).nan_to_num(math.inf, math.inf, math.inf)
        chosen = int(ranked.argmin())
        self.record(loss=ranked[chosen], entropy=entropies[chosen])
        if bool(ranked.isfinite().any()):
            self._learn(candidates, ranked, means)
        return logits[chosen]

    def predict(self, x: Tensor) -> Tensor:
        """Shifted logits ``(B, K)`` of images ``(B, C, H, W)`` with the best prompts so far."""
        self._check_input(x)
        with torch.inference_mode(False), torch.no_grad():
            return self._on_finite_rows(self._answer, x)[0]

    def _answer(self, x: Tensor) -> Tensor:
        features, logits = self._vit(self.model, x, self._tokens(self.best[None], x))
        return self._shifted(features, logits)[0]

    def _tokens(self, candidates: Tensor, x: Tensor) -> Tensor:
        weight, _ = self._vit.tap.weights(self.model)
        shape = (len(candidates), self.config.prompts, self._vit.width)
        return candidates.to(weight).view(shape)

    def _evaluate(self, x: Tensor, candidates: Tensor) -> tuple[Tensor, ...]:
        """Fitness ``(N,)``, entropy ``(N,)``, class token ``(N, D)``, logits ``(N, B, K)``."""
        features, logits = self._vit(self.model, x, self._tokens(candidates, x))
        entropies = losses.entropy(logits.flatten(0, 1)).view(logits.shape[:2])
        fitness = self.fitness(features, entropies)
        means = features[..., -self._vit.width :].mean(1)
        return fitness, entropies.mean(1), means, self._shifted(features, logits)

    def fitness(self, features: Tensor, entropies: Tensor) -> Tensor:
        """Fitness of candidates, lower is better.

        Args:
            features: Class tokens ``(N, B, L * D)``.
            entropies: Of the unshifted logits, ``(N, B)``.

        Returns:
            ``(N,)``.
        """
        assert self.source_mean is not None
        assert self.source_std is not None
        images = features.shape[1]
        gap = (features.mean(1) - self.source_mean.to(features)).square().sum(1)
        if images > 1:
            gap = gap + (features.std(1) - self.source_std.to(features)).square().sum(1)
        return self.config.fitness_weight * gap * images / 64 + entropies.sum(1)

    def _shifted(self, features: Tensor, logits: Tensor) -> Tensor:
        """Logits ``(N, B, K)`` of class tokens moved to where the source has them."""
        if self.test_mean is None or self.source_mean is None:
            return logits
        last = features[..., -self._vit.width :]
        source = self.source_mean[-self._vit.width :].to(last)
        step = self.config.shift * (source - self.test_mean.to(last))
        return self._vit.tap.classify(self.model, last + step)

    def _learn(self, candidates: Tensor, fitness: Tensor, means: Tensor) -> None:
        """Best prompts, running test mean and the search after a batch."""
        finite = fitness.isfinite()
        self.best = candidates[int(fitness.argmin())].clone()
        worst = fitness[finite].max()
        evolution.tell(
            self.search, candidates, torch.where(finite, fitness, worst), self.config.popsize
        )
        mean = means[finite.to(means.device)].mean(0)
        decay = self.config.history_decay
        old = self.test_mean
        self.test_mean = mean if old is None else decay * old.to(mean) + (1 - decay) * mean
