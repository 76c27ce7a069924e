"""T3A: replace the classifier by class means of confident test features, without gradients.

Iwasawa, Matsuo: Test-time classifier adjustment module for model-agnostic domain generalization,
NeurIPS 2021, https://github.com/matsuolab/T3A. Reference code: matsuolab/T3A @ ff8cde5.

Scores are inner products with unit class vectors, without a bias: their argmax is meant, they are
not calibrated.

Deviations:
- ``supports=-1`` keeps every support, in the form of class sums; in the reference its slice drops
  the support of highest entropy of every class at every step.
- Supports are kept as unit vectors in ``(K, supports, D)`` slots; the reference keeps raw features
  with one-hot labels and normalises at each use. Ties of entropy go to the older support.
- A feature with NaN or infinity is not taken in.
- A class mask (``tta.masking.Masked``) selects classifier rows as well as logits.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from tta import losses
from tta.adapter import Adapter, Needs
from tta.config import AdapterConfig, param
from tta.errors import AdapterError
from tta.factory import adapters
from tta.heads import Tap
from tta.published import figures

PUBLISHED = (
    *figures(
        "mr-eggplant/FOA",
        "README, table of ViT-B/16, ImageNet-C at severity 5",
        {"imagenet-c/reset-50k/vit-b-16-augreg2": 43.1},
        note="stated as accuracy",
    ),
)


@adapters.register()
class T3A(Adapter):
    """Nearest class mean over the K most confident features of each class."""

    needs = Needs(gradients=False)
    predicts = "after"
    check_options = ({}, {"supports": 1}, {"supports": -1})

    @dataclass(frozen=True, kw_only=True, slots=True)
    class Config(AdapterConfig):
        """The paper searches ``supports`` in 1, 5, 20, 50, 100 and all."""

        supports: int = param(20, "K: supports kept a class, -1 for all; 20 in FOA's table", ge=-1)

    config: Config
    sums: Tensor
    supports: Tensor
    entropies: Tensor

    def setup(self) -> None:
        """One support a class: the rows of the classifier."""
        if self.config.supports == 0:
            raise AdapterError("supports=0 leaves no class vector: give 1 or more, or -1 for all")
        self._tap = Tap(self.model)
        weight, _ = self._tap.weights(self.model)
        classes, slots = self._tap.classes, max(self.config.supports, 0)
        self.add_state("sums", weight.new_zeros(classes, self._tap.dim))
        self.add_state("supports", weight.new_zeros(classes, slots, self._tap.dim))
        self.add_state("entropies", weight.new_full((classes, slots), float("inf")))
        with torch.no_grad():
            self._take_in(weight, self._tap.classify(self.model, weight))

    def adapt(self, x: Tensor) -> Tensor:
        """Images ``(B, C, H, W)`` to scores ``(B, K)`` by supports that hold the batch's own."""
        self.count_forwards(len(x))
        with torch.no_grad():
            features, logits = self._tap(self.model, x)
            self._take_in(features, logits)
            return self._scores(features)

    def predict(self, x: Tensor) -> Tensor:
        """Scores ``(B, K)`` of images ``(B, C, H, W)`` by the supports as they are."""
        self._check_input(x)
        with torch.inference_mode(False), torch.no_grad():
            return self._on_finite_rows(lambda x: self._scores(self._tap(self.model, x)[0]), x)[0]

    def _scores(self, features: Tensor) -> Tensor:
        """``(B, D)`` to ``(B, K)``."""
        return features @ F.normalize(self.sums, dim=1).T

    def _take_in(self, features: Tensor, logits: Tensor) -> None:
        """Add supports ``(B, D)``, keep those of lowest entropy of each class."""
        entropies = losses.entropy(logits)
        usable = features.norm(dim=1).isfinite() & entropies.isfinite()
        unit = torch.where(usable[:, None], F.normalize(features, dim=1), 0.0)
        labels = logits.argmax(1)
        classes, slots, dim = self.supports.shape
        if self.config.supports < 0:
            # A product, not a scattered sum: that is not deterministic on GPUs.
            self.sums = self.sums + F.one_hot(labels, classes).to(unit).T @ unit
            return
        # An empty slot and an unusable feature are alike: a zero vector of infinite entropy.
        entropies = torch.cat([self.entropies.flatten(), torch.where(usable, entropies, torch.inf)])
        owners = torch.arange(classes, device=labels.device).repeat_interleave(slots)
        owners = torch.cat([owners, labels])
        order = entropies.argsort(stable=True)
        order = order[owners[order].argsort(stable=True)]
        owners = owners[order]
        # Each class has its old slots among the candidates, so its first ``slots`` always exist.
        first = torch.searchsorted(owners, torch.arange(classes, device=labels.device))
        kept = order[first[:, None] + torch.arange(slots, device=labels.device)]
        self.supports = torch.cat([self.supports.flatten(0, 1), unit])[kept.flatten()]
        self.supports = self.supports.view(classes, slots, dim)
        self.entropies = entropies[kept]
        self.sums = self.supports.sum(1)
