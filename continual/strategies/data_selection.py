"""Dynamic data selection: train on a balanced, telling part of the new and of all earlier samples.

Maharana, Yoon, Chen, Bansal: Adapt-infinity: Scalable continual multimodal instruction tuning via
dynamic data selection, 2024, arXiv:2410.10636. Reference code: adymaharana/adapt-inf @ d1b1b25.

Before each experience, samples of the pool (earlier experiences) and the new ones are embedded by
the gradient of the last layer and clustered into pseudo-skills; each cluster picks the score that
tells its samples apart best and gives an equal share of the budget, covering the range of that
score. Near-duplicates leave the pool for good once it exceeds its cap.

Deviations:
- Classifiers in place of a language model: the embedding is (softmax - one-hot) x features, or a
  sketch of it; the scores are loss, EL2N, GraNd of the last layer, margin and entropy.
- Histograms span 4 standard deviations of the standardised scores (the reference code: of the raw
  ones), and random draws are without replacement.
- Strata that the budget leaves over are filled at random, so that the budget is met.
- The pool is pruned just before the next selection, with the embeddings that it uses, instead of
  at the end of the experience.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from continual import selection
from continual.factory import strategies
from continual.passes import untouched
from continual.plugin import Host, Plugin, PluginConfig
from streams.learning_types import Samples, joined
from tta.config import param
from tta.errors import AdapterError
from tta.heads import Tap

if TYPE_CHECKING:
    from streams.learning_types import ForgetRequest


@strategies.register()
class DataSelection(Plugin):
    """Replaces the samples of an experience by a selection from them and the pool."""

    check_options = (
        {},
        {"pool_cap": 4, "clusters": 2, "score": "el2n"},
        {"projection": 0, "ratio": 1.0, "score": "random"},
    )

    @dataclass(frozen=True, kw_only=True, slots=True)
    class Config(PluginConfig):
        """Ten clusters, 50 strata, 5 % cut at each end: the reference code."""

        budget: int | None = param(None, "samples an experience; None: by ratio", ge=1)
        ratio: float = param(0.5, "samples an experience, of those it brings", gt=0)
        clusters: int = param(10, "pseudo-skills", ge=1)
        score: Literal[
            "entropy-of-scores", "loss", "el2n", "grand", "margin", "entropy", "random"
        ] = param("entropy-of-scores", "score of a cluster; by default chosen in each")
        pool_cap: int | None = param(
            None, "earlier samples kept for selection; None keeps all", ge=1
        )
        projection: int = param(64, "length of the sketched gradients; 0: no sketch", ge=0)
        batch_size: int = param(256, "images a forward while scoring", ge=1)

    config: Config

    def __init__(self, config: PluginConfig | None = None) -> None:
        super().__init__(config)
        self._known = 0
        # Key and label of each sample of the pool: an image may have come with several labels.
        self._pool = torch.zeros(0, 2, dtype=torch.int64)

    def choose(self, host: Host, samples: Samples) -> Samples:
        """A selection from the pool and the new samples.

        Raises:
            AdapterError: If the samples are none of a stream of ours.
        """
        config = self.config
        if not isinstance(samples, Samples):
            raise AdapterError(
                "data-selection mixes samples of several experiences: build the benchmark from a "
                "stream by continual.as_avalanche_benchmark, or from arrays of one source"
            )
        pool = self._enlarged(host)
        everything = samples if pool is None else joined([pool, samples])
        wanted = max(1, round(config.ratio * len(samples)))
        budget = wanted if config.budget is None else config.budget
        old = len(everything) - len(samples)
        surplus = config.pool_cap is not None and old > config.pool_cap
        if budget >= len(everything) and not surplus:
            return everything
        embeddings, scores = self._measured(host, everything)
        generator = host.generator(f"data-selection {config.seed}")
        if surplus:
            assert config.pool_cap is not None
            kept = selection.prune(
                embeddings[:old], config.pool_cap, generator, clusters=config.clusters
            )
            self._pool = self._pool[kept]
            rows = torch.cat([kept, torch.arange(old, len(everything))])
            everything, embeddings = everything.take(rows.numpy()), embeddings[rows]
            scores = {name: values[rows] for name, values in scores.items()}
        score = None if config.score == "entropy-of-scores" else config.score
        chosen = selection.select(
            embeddings, scores, budget, generator, clusters=config.clusters, score=score
        )
        return everything.take(chosen.numpy())

    def _enlarged(self, host: Host) -> Samples | None:
        """The pool with what was learnt since it was last looked at."""
        past = list(host.past)
        fresh = past[self._known :]
        self._known = len(past)
        if fresh:
            rows = [torch.from_numpy(np.stack([s.keys, s.labels], 1)) for s in fresh]
            self._pool = torch.cat([self._pool, *rows])
        if not len(self._pool):
            return None
        seen = joined(past)
        places: dict[tuple[int, int], int] = {}
        for place, pair in enumerate(zip(seen.keys.tolist(), seen.labels.tolist(), strict=True)):
            places.setdefault(pair, place)
        return seen.take(np.array([places[key, label] for key, label in self._pool.tolist()]))

    def _measured(self, host: Host, samples: Samples) -> tuple[Tensor, dict[str, Tensor]]:
        """Embeddings ``(N, S)`` and scores ``(N,)`` of samples by the present model."""
        tap = Tap(host.model)
        # One sketch for all stages: embeddings of different stages stay comparable.
        purpose = torch.Generator().manual_seed(self.config.seed)
        features, logits = [], []
        with torch.no_grad(), untouched(host.model, mode="eval"):
            for first in range(0, len(samples), self.config.batch_size):
                at = np.arange(first, min(first + self.config.batch_size, len(samples)))
                entering, answered = tap(host.model, samples.batch(at)[0].to(host.device))
                features.append(entering.cpu())
                logits.append(answered.cpu())
        host.count(forwards=len(samples))
        entered, answers = torch.cat(features), torch.cat(logits)
        labels = torch.from_numpy(samples.labels)
        errors = answers.softmax(1)
        errors[torch.arange(len(errors)), labels] -= 1
        made = selection.gradient_embedding(errors, entered, self.config.projection, purpose)
        scores = selection.sample_scores(answers, labels, entered)
        if self.config.score == "random":
            draw = host.generator(f"data-selection random {self.config.seed}")
            scores["random"] = torch.rand(len(samples), generator=draw, dtype=torch.float64)
        return made, scores

    def forgotten(self, host: Host, request: ForgetRequest) -> None:
        """Take what was forgotten out of the pool."""
        gone = np.isin(self._pool[:, 0].numpy(), request.samples.keys)
        self._pool = self._pool[torch.from_numpy(~gone)]

    def state_dict(self) -> dict[str, Any]:
        """Keys and labels of the pool, and how many experiences it has taken up."""
        return {"pool": self._pool, "known": self._known}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up a saved state."""
        self._pool, self._known = state["pool"], int(state["known"])
