"""A model that answers within a part of its classes, as ImageNet-R, -A and their kin ask."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tta.errors import BackboneError


class Masked(nn.Module):
    """Keeps the logits of some classes, in the order given.

    Entropies and thresholds of an adapter around it then count these classes alone.

    Args:
        model: Maps images to logits ``(B, K)``.
        class_ids: Classes to keep, each in ``[0, num_classes)`` and named once.
        num_classes: ``K``.

    Raises:
        BackboneError: For a class that the model does not have, or one named twice.
    """

    class_ids: Tensor

    def __init__(self, model: nn.Module, class_ids: Sequence[int], num_classes: int) -> None:
        super().__init__()
        wrong = [i for i in class_ids if not 0 <= i < num_classes]
        if wrong or len(set(class_ids)) != len(class_ids) or not class_ids:
            raise BackboneError(
                f"a class mask needs distinct classes below {num_classes}, got "
                f"{wrong[0] if wrong else f'{len(class_ids)} with repetitions or none'}"
            )
        self.model = model
        self.register_buffer("class_ids", torch.tensor(list(class_ids)), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Images ``(B, C, H, W)`` to logits ``(B, len(class_ids))``."""
        logits: Tensor = self.model(x)
        kept: Tensor = logits[:, self.class_ids]
        return kept
