"""ZeroSiam: minimise entropy through an extra linear layer, held to the plain prediction.

ZeroSiam, 2025, https://github.com/Cascol-Chen/ZeroSiam.
Reference code: Cascol-Chen/ZeroSiam @ 2dd3fc4.

A predictor ``P``, at first the identity, stands before the classifier in one of two branches:
``o = head(P h)`` learns, ``c = head(h)`` is a fixed target. A collapse of ``o`` is paid in the
divergence from ``c``.

Deviations:
- Only normalisation layers leave eval mode; the reference puts the whole model in train mode, with
  its stochastic depth.
- InstanceNorm and RMSNorm are adapted too.
- The learning rate is given as it is; the reference scales it with the batch size (``lr`` is that
  of a ViT-B/16 at batch 64) and doubles it for a batch of one.
- One SGD with two groups; the reference has two optimisers of the same settings.
- ``reset`` restores the predictor; the reference rebuilds the method for every corruption.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tta import losses, norms
from tta.adapter import Adapter, Needs
from tta.config import param
from tta.factory import adapters
from tta.heads import Tap
from tta.published import figures

PUBLISHED = (
    *figures(
        "Cascol-Chen/ZeroSiam",
        "README, table of online label shift",
        {"imagenet-c/label-shift-50k/vit-b-16-augreg-imagenet": 36.6},
        options={"lr": 0.001, "backbone_factor": 5.0, "predictor_factor": 5.0},
        note="stated as accuracy; the weights follow from the table's unadapted accuracy",
    ),
    *figures(
        "Cascol-Chen/ZeroSiam",
        "README, table of online label shift",
        {"imagenet-c/label-shift-50k/resnet50-gn": 48.9},
        note="stated as accuracy",
    ),
)


@adapters.register()
class ZeroSiam(Adapter):
    """Entropy and symmetric divergence of the predicted branch; one step a batch."""

    needs = Needs(norms=frozenset(norms.AFFINE_KINDS))

    @dataclass(frozen=True, kw_only=True, slots=True)
    class Config(norms.AffineConfig):
        """Defaults of the official configuration for ViT-B/16 at batch 64."""

        lr: float = param(1e-3, "learning rate before the factors; official code", gt=0)
        backbone_factor: float = param(5.0, "s_b, times lr for the norms; 10 for RN50-GN", ge=0)
        predictor_factor: float = param(5.0, "s_p, times lr for P; 100 for RN50-GN", ge=0)

    config: Config
    optimizer: torch.optim.Optimizer

    def setup(self) -> None:
        """Batch statistics, gradients for scale and shift, and the predictor."""
        config = self.config
        self._tap = Tap(self.model)
        params = norms.adapt_affine(self.model, config)
        weight, _ = self._tap.weights(self.model)
        self.predictor = nn.Linear(self._tap.dim, self._tap.dim, bias=False).to(weight)
        nn.init.eye_(self.predictor.weight)
        self.add_optimizer(config, params)
        backbone = self.optimizer.param_groups[0]
        backbone["lr"] = config.lr * config.backbone_factor
        self.optimizer.add_param_group(
            {"params": [self.predictor.weight], "lr": config.lr * config.predictor_factor}
        )

    def adapt(self, x: Tensor) -> Tensor:
        """Images ``(B, C, H, W)`` to logits ``(B, K)`` of the plain branch before the update."""
        for _ in range(self.config.steps):
            self.count_forwards(len(x))
            features, plain = self._tap(self.model, x)
            plain = plain.detach()
            predicted = self._tap.classify(self.model, self.predictor(features))
            entropy = losses.entropy(predicted).mean()
            divergence = symmetric_divergence(predicted, plain).mean()
            self.update(entropy + divergence, images=len(x))
            self.record(loss=entropy + divergence, entropy=entropy, divergence=divergence)
        return plain


def symmetric_divergence(left: Tensor, right: Tensor) -> Tensor:
    """``KL(left || right) + KL(right || left)`` of two softmaxes in nats.

    Args:
        left: Logits ``(B, K)``.
        right: Logits ``(B, K)``.

    Returns:
        ``(B,)``, at least 0.
    """
    log_left, log_right = left.log_softmax(1), right.log_softmax(1)
    return ((log_left.exp() - log_right.exp()) * (log_left - log_right)).sum(1)
