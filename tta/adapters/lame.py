"""LAME: correct the predictions of a batch so that near neighbours agree; the model stays as it is.

Boudiaf, Mueller, Ben Ayed, Bertinetto: Parameter-free online test-time adaptation, 2022,
arXiv:2201.05718. Reference code: fiveai/LAME @ d2e5f63.

It holds no state, and it helps only where the classes of a batch are correlated: on a batch of
independent images it moves towards the majority class.

Deviations:
- Returns ``ln Y``, so that ``softmax`` gives the method's probabilities ``Y`` back;
  ``output="probabilities"`` returns ``Y`` as the reference does. The argmax is the same.
- A batch of one has no neighbours: its source prediction is returned. The reference divides 0 by 0.
- A batch of identical images has affinity 1 throughout; the reference divides 0 by 0 (rbf).
- ``knn`` leaves out the image itself; the reference leaves out the first of its sorted distances,
  which may be an identical twin.
- Features are found by the classifier's input (see ``tta.heads``); the model is not taken apart.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from tta import laplacian
from tta.adapter import Adapter, Needs
from tta.config import AdapterConfig, param
from tta.factory import adapters
from tta.heads import Tap
from tta.published import doebler_table, figures

PUBLISHED = (
    *doebler_table(continual=(64.3, 98.5, 93.5), mixed=(75.2, 98.4, 95.1)),
    *figures(
        "mr-eggplant/FOA",
        "README, table of ViT-B/16, ImageNet-C at severity 5",
        {"imagenet-c/reset-50k/vit-b-16-augreg2": 45.9},
        note="stated as accuracy",
    ),
)


@adapters.register()
class Lame(Adapter):
    """Manifold-regularised correction of a batch's class probabilities."""

    needs = Needs(gradients=False)
    predicts = "after"
    check_options = ({}, {"affinity": "knn"}, {"affinity": "linear", "symmetric": True})

    @dataclass(frozen=True, kw_only=True, slots=True)
    class Config(AdapterConfig):
        """Defaults of the official code."""

        affinity: laplacian.Affinity = param("rbf", "pairwise affinity of images; official code")
        neighbours: int = param(5, "k of knn, and of the scale of rbf", ge=1)
        symmetric: bool = param(False, "use (W + W^T) / 2")
        sweeps: int = param(100, "most fixed-point sweeps; official code", ge=1)
        tolerance: float = param(1e-8, "relative change of the energy that ends them", ge=0)
        output: Literal["logits", "probabilities"] = param("logits", "ln Y or Y; see Deviations")

    config: Config

    def setup(self) -> None:
        """Find the classifier."""
        self._tap = Tap(self.model)

    def adapt(self, x: Tensor) -> Tensor:
        """Images ``(B, C, H, W)`` to corrected scores ``(B, K)``; one forward."""
        self.count_forwards(len(x))
        with torch.no_grad():
            return self._correct(x)

    def predict(self, x: Tensor) -> Tensor:
        """Corrected scores ``(B, K)`` of images ``(B, C, H, W)``: there is no state to change."""
        self._check_input(x)
        with torch.inference_mode(False), torch.no_grad():
            return self._on_finite_rows(self._correct, x)[0]

    def _correct(self, x: Tensor) -> Tensor:
        config = self.config
        features, logits = self._tap(self.model, x)
        probabilities = logits.softmax(1)
        if len(x) > 1:
            unit = F.normalize(features, dim=1)
            weights = laplacian.affinity(unit, config.affinity, config.neighbours)
            if config.symmetric:
                weights = (weights + weights.T) / 2
            unary = -(probabilities + 1e-10).log()
            probabilities = laplacian.solve(unary, weights, config.sweeps, config.tolerance)
        if config.output == "probabilities":
            return probabilities
        return probabilities.clamp(min=torch.finfo(probabilities.dtype).tiny).log()
