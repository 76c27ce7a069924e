"""Forget by fine-tuning: go on training on the retained samples alone.

Warnecke, Pirch, Wressnegger, Rieck: Machine unlearning of features and labels, 2021,
arXiv:2108.11577 (as the baseline FT of the OPTML code, OPTML-Group/Unlearn-Sparse @ 80ba55d).

Deviations: images are not augmented while forgetting, and the retained samples are all that were
seen.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from continual.descent import UnlearnConfig
from continual.factory import strategies
from continual.plugin import Host, Plugin
from continual.unlearning import fine_tune

if TYPE_CHECKING:
    from streams.learning_types import ForgetRequest, Samples


@strategies.register()
class FineTune(Plugin):
    """Serves requests to forget; learning goes on as without it."""

    check_options = ({"epochs": 1},)

    @dataclass(frozen=True, kw_only=True, slots=True)
    class Config(UnlearnConfig):
        """Ten epochs at 0.01: the OPTML code."""

    config: Config

    def forget(self, host: Host, request: ForgetRequest, retained: Samples) -> bool:
        """Train on what is retained."""
        purpose = f"{host.experience} {request.name}"
        images = fine_tune(host.model, retained, self.config, purpose)
        host.count(forwards=images, backwards=images)
        return True
