"""SalUn: forget by random labels, moving only the weights that matter most for the forgotten.

Fan, Liu, Zhang, Wong, Wei, Liu: SalUn: Empowering machine unlearning via gradient-based weight
saliency in both image classification and generation, 2023, arXiv:2310.12508. Reference code:
OPTML-Group/Unlearn-Saliency @ a6e89fd.

Weights outside the mask are put back to what they were before the first step, and their momentum
to zero, after every step: with momentum and weight decay a masked gradient alone lets them move.

Deviations:
- The gradient of the mask is summed over samples (the reference: over means of batches), so that
  it does not depend on the batch size.
- Images are not augmented while forgetting; statistics of BatchNorm layers follow the batches.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from continual.descent import UnlearnConfig
from continual.factory import strategies
from continual.plugin import Host, Plugin
from continual.unlearning import salun
from tta.config import param

if TYPE_CHECKING:
    from streams.learning_types import ForgetRequest, Samples


@strategies.register()
class Salun(Plugin):
    """Serves requests to forget; learning goes on as without it."""

    check_options = ({"epochs": 1}, {"epochs": 1, "mixed": True, "fraction": 0.1})

    @dataclass(frozen=True, kw_only=True, slots=True)
    class Config(UnlearnConfig):
        """Half of the weights, ten epochs at 0.013: the README."""

        lr: float = param(0.013, "learning rate of SGD; README", gt=0)
        fraction: float = param(0.5, "part of the weights that may move", ge=0, le=1)
        mixed: bool = param(False, "shuffle forgotten and retained; else the forgotten come first")

    config: Config

    def forget(self, host: Host, request: ForgetRequest, retained: Samples) -> bool:
        """Take the mask, then train within it on wrong labels and on what is retained."""
        images = salun(
            host.model,
            request.samples,
            retained,
            self.config,
            classes=host.num_classes,
            fraction=self.config.fraction,
            mixed=self.config.mixed,
            purpose=f"{host.experience} {request.name}",
        )
        host.count(forwards=images, backwards=images)
        return True
