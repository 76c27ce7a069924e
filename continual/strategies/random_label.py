"""Forget by random labels: train on the forgotten images with wrong labels, and on the rest.

Graves, Nagisetty, Ganesh: Amnesiac machine learning, 2020, arXiv:2010.10981 (as the baseline RL of
the OPTML code, OPTML-Group/Unlearn-Saliency @ a6e89fd).

Deviations: labels are uniform over all classes of the head, the true one among them, as in the
OPTML code; images are not augmented while forgetting.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from continual.descent import UnlearnConfig
from continual.factory import strategies
from continual.plugin import Host, Plugin
from continual.unlearning import random_label
from tta.config import param

if TYPE_CHECKING:
    from streams.learning_types import ForgetRequest, Samples


@strategies.register()
class RandomLabel(Plugin):
    """Serves requests to forget; learning goes on as without it."""

    check_options = ({"epochs": 1}, {"epochs": 1, "mixed": True})

    @dataclass(frozen=True, kw_only=True, slots=True)
    class Config(UnlearnConfig):
        """Ten epochs at 0.013: the README of SalUn."""

        lr: float = param(0.013, "learning rate of SGD; README", gt=0)
        mixed: bool = param(False, "shuffle forgotten and retained; else the forgotten come first")

    config: Config

    def forget(self, host: Host, request: ForgetRequest, retained: Samples) -> bool:
        """Train on wrong labels for what is to be forgotten, and on what is retained."""
        images = random_label(
            host.model,
            request.samples,
            retained,
            self.config,
            classes=host.num_classes,
            mixed=self.config.mixed,
            purpose=f"{host.experience} {request.name}",
        )
        host.count(forwards=images, backwards=images)
        return True
