"""Sparse unlearning: fine-tune on the retained samples with a penalty on absolute weights.

Jia, Liu, Ram, Yao, Liu, Liu, Sharma, Liu: Model sparsity can simplify machine unlearning, 2023,
arXiv:2304.04934. Reference code: OPTML-Group/Unlearn-Sparse @ 80ba55d.

Deviations: the penalty's weight defaults to 5e-4 (the default of the reference's command line
belongs to another method); ``norms=False`` spares the scales of normalisation layers, whose
channels the penalty can kill; images are not augmented while forgetting.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from continual.descent import UnlearnConfig
from continual.factory import strategies
from continual.plugin import Host, Plugin
from continual.unlearning import l1_sparse
from tta.config import param

if TYPE_CHECKING:
    from streams.learning_types import ForgetRequest, Samples


@strategies.register()
class L1Sparse(Plugin):
    """Serves requests to forget; learning goes on as without it."""

    check_options = ({"epochs": 2, "epochs_without": 1, "norms": False},)

    @dataclass(frozen=True, kw_only=True, slots=True)
    class Config(UnlearnConfig):
        """Ten epochs at 0.01: the reference code."""

        alpha: float = param(5e-4, "weight of the penalty in the first epoch", ge=0)
        epochs_without: int = param(0, "last epochs without penalty", ge=0)
        norms: bool = param(True, "penalise normalisation layers too, as the reference does")

    config: Config

    def forget(self, host: Host, request: ForgetRequest, retained: Samples) -> bool:
        """Train on what is retained, with the penalty."""
        images = l1_sparse(
            host.model,
            retained,
            self.config,
            alpha=self.config.alpha,
            epochs_without=self.config.epochs_without,
            norms=self.config.norms,
            purpose=f"{host.experience} {request.name}",
        )
        host.count(forwards=images, backwards=images)
        return True
