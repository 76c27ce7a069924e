"""RPL: learn from the model's own labels with a loss that is robust to wrong ones.

Rusak, Schneider, Pachitariu, Eck, Gehler, Bringmann, Brendel, Bethge: If your data distribution
shifts, use self-learning, 2022, arXiv:2104.12928. Reference code: oripress/CCC @ 656dec3.

Deviations:
- The common re-implementation (mariodoebler/test-time-adaptation @ 8b2ed63) steps with Nesterov
  momentum on ImageNet and Adam at 1e-3 on CIFAR (``nesterov``, ``optimizer``); the defaults are the
  official ones.
- Only normalisation layers leave eval mode. GroupNorm, LayerNorm, InstanceNorm and RMSNorm are
  adapted too.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from tta import losses, norms
from tta.adapter import Adapter, Needs
from tta.config import param
from tta.factory import adapters


@adapters.register()
class RPL(Adapter):
    """Generalised cross-entropy with the predicted labels, on every sample."""

    needs = Needs(norms=frozenset(norms.AFFINE_KINDS))
    check_options = ({"lr": 1e-2},)

    @dataclass(frozen=True, kw_only=True, slots=True)
    class Config(norms.AffineConfig):
        """Defaults of the official configuration."""

        lr: float = param(5e-4, "learning rate; rpl.py at batch 64", gt=0)
        q: float = param(0.8, "exponent of the loss: 0 cross-entropy, 1 absolute error", gt=0, le=1)

    config: Config

    def setup(self) -> None:
        """Batch statistics in every BatchNorm; gradients for scale and shift alone."""
        self.add_optimizer(self.config, norms.adapt_affine(self.model, self.config))

    def adapt(self, x: Tensor) -> Tensor:
        """Images ``(B, C, H, W)`` to logits ``(B, K)`` from before the last update."""
        for _ in range(self.config.steps):
            logits = self.logits(x)
            labels = logits.detach().argmax(dim=1)
            loss = losses.generalized_cross_entropy(logits, labels, self.config.q).mean()
            self.update(loss, images=len(x))
        self.record(loss=loss, selected_fraction=1.0)
        return logits
