"""AdaNPC: classify by the nearest features in a memory of source and confident test features.

Zhang, Wang, Jin, Yuan, Zhang, Wang, Jin, Tan: AdaNPC: Exploring non-parametric classifier for
test-time adaptation, 2023, arXiv:2304.12566. Reference code: yfzhang114/AdaNPC @ 29fe27a.

The model is not changed. ``adanpc-bn`` is the variant that learns an affine map of the features.

Deviations:
- Test rows are bounded by ``capacity``, the oldest go first; the reference grows without bound.
- Returns ``ln p``, so that ``softmax`` gives the vote back; ``output="scores"`` returns ``p`` as
  the reference does. The argmax is the same.
- ``confidence="code"`` (default) compares the threshold with the softmax of the vote, which stays
  below ``e / (e + K - 1)``, as the official code does; ``"paper"`` compares the vote itself.
- Source features come from the images given to ``fit_source``, as they are; the reference takes
  them from images under training augmentation.
- The reference's first row, random with label 0, is left out.
- A feature with NaN or infinity is not stored.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from tta import neighbours, source
from tta.adapter import Adapter, Needs
from tta.config import AdapterConfig, param
from tta.factory import adapters
from tta.heads import Tap


@adapters.register()
class AdaNPC(Adapter):
    """Soft vote of the k nearest features; confident images enter the memory."""

    needs = Needs(source_data=True, source_labels=True, gradients=False)
    # The small capacity makes the memory run over.
    check_options = ({}, {"confidence": "paper", "neighbours": 3, "capacity": 4})

    @dataclass(frozen=True, kw_only=True, slots=True)
    class Config(AdapterConfig):
        """Defaults of the official constructor; the grids are those of its script."""

        neighbours: int = param(100, "k; official grid 1 to 200", ge=1)
        temperature: float = param(0.1, "of the vote; official grid 0.01 to 0.5", gt=0)
        threshold: float = param(0.1, "beta, least confidence; grid 0, .25, .75, 1.1", ge=0)
        confidence: Literal["code", "paper"] = param("code", "softmax of the vote, or the vote")
        capacity: int = param(16384, "most test rows in the memory; see Deviations", ge=1)
        output: Literal["logits", "scores"] = param("logits", "ln p or p; see Deviations")

    config: Config
    memory: dict[str, Any]

    def setup(self) -> None:
        """Find the classifier; an empty memory."""
        self._tap = Tap(self.model)
        self.add_state("memory", neighbours.empty(self.config.capacity))

    def fit(self, batches: Any) -> None:
        """Fill the memory with the features of source images.

        Args:
            batches: Pairs of images ``(B, C, H, W)`` and labels ``(B,)``.
        """
        features, labels = [], []
        with torch.no_grad():
            for x, y in batches:
                source.check_labels(y, len(x), self._tap.classes)
                features.append(self._tap(self.model, x)[0])
                labels.append(y.long())
        self.memory = neighbours.empty(self.config.capacity)
        neighbours.set_source(self.memory, torch.cat(features), torch.cat(labels))

    def adapt(self, x: Tensor) -> Tensor:
        """Images ``(B, C, H, W)`` to scores ``(B, K)`` by the memory before they enter it."""
        self.count_forwards(len(x))
        with torch.no_grad():
            features, _ = self._tap(self.model, x)
            votes = self.vote(features)
            self.take_in(features, votes)
        return self.scores(votes)

    def predict(self, x: Tensor) -> Tensor:
        """Scores ``(B, K)`` of images ``(B, C, H, W)`` by the memory as it is."""
        self._check_input(x)
        if self.memory["source"] is None:
            return super().predict(x)
        with torch.inference_mode(False), torch.no_grad():
            return self._on_finite_rows(self._look_up, x)[0]

    def _look_up(self, x: Tensor) -> Tensor:
        return self.scores(self.vote(self._tap(self.model, x)[0]))

    def vote(self, features: Tensor) -> Tensor:
        """Class scores ``(B, K)`` of features ``(B, D)``."""
        config = self.config
        return neighbours.vote(
            self.memory, features, self._tap.classes, config.neighbours, config.temperature
        )

    def take_in(self, features: Tensor, votes: Tensor) -> None:
        """Store the features ``(B, D)`` whose vote ``(B, K)`` is confident, under its class."""
        measure = votes.softmax(1) if self.config.confidence == "code" else votes
        confidence, labels = measure.max(1)
        kept = (confidence >= self.config.threshold) & features.norm(dim=1).isfinite()
        rows = kept.nonzero()[:, 0]
        neighbours.append(self.memory, features[rows], labels[rows])
        self.record(selected_fraction=len(rows) / len(features))

    def scores(self, votes: Tensor) -> Tensor:
        """What the adapter returns for votes ``(B, K)``."""
        return votes.log() if self.config.output == "logits" else votes
