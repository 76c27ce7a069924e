"""RDumb: ETA that goes back to the source model every thousand batches.

Press, Schneider, Kuemmerer, Bethge: RDumb: A simple approach that questions our progress in
continual test-time adaptation, 2023, arXiv:2306.05401. Reference code: oripress/CCC @ 656dec3.

Deviations:
- The reset comes before the batch that follows ``reset_every`` others; the common re-implementation
  (mariodoebler/test-time-adaptation @ 8b2ed63) resets after the last of them: the same predictions.
- The clock counts batches, as in the official code; the re-implementation counts updates, which
  differs with ``steps`` above 1.
- Thresholds are factors of ``ln K`` for the model's own number of classes ``K``.
- Only normalisation layers leave eval mode. All kinds of normalisation layers are adapted.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from tta import norms, reliable
from tta.adapter import Needs
from tta.config import param
from tta.factory import adapters
from tta.objective import EntropyAdapter, Objective
from tta.published import figures

_RESERVOIR = "ReservoirTTA paper, arXiv:2505.14511"
_VISIT = "table of the recurring stream without label correlation, visit 1"
PUBLISHED = (
    *figures(
        _RESERVOIR,
        _VISIT,
        {
            "cifar10-c/continual/wrn-28-10": 17.8,
            "cifar100-c/continual/resnext-29": 32.0,
            "imagenet-c/continual-5k/resnet50": 59.8,
        },
    ),
)


@adapters.register()
class RDumb(EntropyAdapter):
    """Selected, weighted entropy with a periodic reset of weights, moments and mean prediction."""

    needs = Needs(norms=frozenset(norms.AFFINE_KINDS))
    check_options = (
        # An untrained model is close to uniform: with these limits all of its samples pass.
        {"entropy_margin": 1.5, "redundancy_margin": 1.5, "lr": 1e-2, "reset_every": 3},
    )

    @dataclass(frozen=True, kw_only=True, slots=True)
    class Config(reliable.EtaConfig):
        """Defaults of the official configuration."""

        reset_every: int = param(1000, "batches from one reset to the next; rdumb.py", ge=1)

    config: Config
    batches_since_reset: int

    def setup(self) -> None:
        """As for ETA, and a clock."""
        self.add_optimizer(self.config, norms.adapt_affine(self.model, self.config))
        reliable.prepare_eta(self)
        self.add_state("batches_since_reset", 0)

    def adapt(self, x: Tensor) -> Tensor:
        """Images ``(B, C, H, W)`` to logits ``(B, K)`` from before the last update."""
        due = self.batches_since_reset >= self.config.reset_every
        if due:
            self.restart()
        self.batches_since_reset += 1
        self.record(recovered=int(due))
        for _ in range(self.config.steps):
            logits = reliable.eta_step(self, x, self.config, Objective())
        return logits
