"""Source: the model as it was trained, without adaptation; the row every other is read against.

Deviation: none. Every setting gives the same error, which makes it a check of the data.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tta.adapter import Adapter, Needs
from tta.factory import adapters


@adapters.register()
class Source(Adapter):
    """Predicts with frozen weights and source statistics."""

    needs = Needs(gradients=False)

    def adapt(self, x: Tensor) -> Tensor:
        """Images ``(B, C, H, W)`` to logits ``(B, K)``; one forward."""
        with torch.no_grad():
            return self.logits(x)
