"""MEMO: before each image, one step towards an even and confident answer over its augmentations.

Zhang, Levine, Finn: MEMO: Test time robustness via adaptation and augmentation, 2022,
arXiv:2110.09506. Reference code: zhangmarvin/memo @ 228b290.

The defaults are the CIFAR-10 form. ImageNet: ``crop="resized", num_views=64`` with ``lr=2.5e-4``
(ResNet-50) or ``optimizer="adamw", lr=1e-5, weight_decay=0.01`` (RVT, ResNeXt).

Deviations:
- The images of a batch are taken one by one, each from the source weights, so the size of a batch
  changes nothing but the row that keys an image's draws. The re-implementation
  (mariodoebler/test-time-adaptation @ 8b2ed63) averages the loss over the batch.
- Its other choices are ``bn_weight=0.1``, ``parameters="named"``, ``momentum=0.9, nesterov=True``
  with ``keep_moments=False`` (one step is then 1.9 times as long). It leaves dropout on.
- ``keep_moments`` is the official code: the optimiser lives on while the weights go back.
- Views are made in batched tensor code from generators keyed by (seed, step, row), with whole
  numbers of 0 to 255 in between; the reference uses an image library in worker processes. A resized
  crop that does not fit is cut to fit; the reference draws again.
- Crops are taken from the image as the model gets it; the reference crops ImageNet's files before
  they are scaled to 224 pixels.
- A BatchNorm layer that sees one value per channel uses its running statistics.
- After a call the model holds the weights of the last image, as in the reference; ``predict`` uses
  them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from tta import augmix, mean_teacher, norms
from tta.adapter import Adapter
from tta.config import param
from tta.factory import adapters
from tta.optim import GradientConfig
from tta.published import figures

PUBLISHED = (
    *figures(
        "mr-eggplant/EATA",
        "README, ImageNet-C at severity 5, reset for each corruption",
        {"imagenet-c/reset-50k/resnet50": 76.1},
        note="mean of the table's 15 entries; the row is commented out",
    ),
    *figures(
        "mr-eggplant/SAR",
        "README, label shifts with infinite imbalance ratio",
        {
            "imagenet-c/label-shift-50k/resnet50": 76.0,
            "imagenet-c/label-shift-50k/resnet50-gn": 68.7,
        },
        note="stated as accuracy",
    ),
    *figures(
        "mr-eggplant/SAR",
        "README, label shifts with infinite imbalance ratio",
        {"imagenet-c/label-shift-50k/vit-b-16-augreg-imagenet": 60.9},
        note="stated as accuracy; ImageNet mean and std",
    ),
)


@adapters.register()
class MEMO(Adapter):
    """Marginal entropy over AugMix views of each image, from the source model every time."""

    predicts = "after"
    check_options = (
        {"num_views": 2},
        {
            "num_views": 2,
            "crop": "resized",
            "optimizer": "adamw",
            "bn_weight": 0.0,
            "parameters": "named",
            "keep_moments": False,
        },
    )

    @dataclass(frozen=True, kw_only=True, slots=True)
    class Config(GradientConfig):
        """Defaults of the official CIFAR-10 configuration."""

        lr: float = param(0.005, "learning rate; official CIFAR-10 script", gt=0)
        momentum: float = param(0.0, "momentum of sgd; official scripts use none", ge=0, lt=1)
        num_views: int = param(32, "B, augmented views of an image; ImageNet 64", ge=1)
        crop: augmix.Crop = param("pad", "pad: CIFAR; resized: ImageNet; none")
        crop_padding: int = param(4, "pixels of 'pad'", ge=0)
        bn_weight: float = param(
            1 / 17, "share of the batch in BatchNorm statistics; prior N = 16", ge=0, le=1
        )
        parameters: Literal["all", "named"] = param(
            "all", "all; named: parameters called weight or bias alone"
        )
        keep_moments: bool = param(True, "the optimiser's moments outlive an image")

    config: Config
    optimizer: torch.optim.Optimizer

    def setup(self) -> None:
        """All weights are trained; BatchNorm mixes its running statistics with the batch's."""
        self._params = mean_teacher.trainable(self.model, self.config.parameters)
        if self.config.bn_weight:
            norms.blend_statistics(self.model, self.config.bn_weight)
        self.add_optimizer(self.config, list(self._params.values()))

    def adapt(self, x: Tensor) -> Tensor:
        """Images ``(B, C, H, W)`` to logits ``(B, K)``, each from after its own update."""
        return torch.cat([self._one(x[row : row + 1], row) for row in range(len(x))])

    def augment(self, image: Tensor, purpose: str) -> Tensor:
        """Augmented views ``(num_views, C, H, W)`` of one image ``(1, C, H, W)``."""
        config = self.config
        return augmix.views(
            image[0],
            config.num_views,
            self.generator(purpose),
            crop=config.crop,
            padding=config.crop_padding,
        )

    def _one(self, image: Tensor, row: int) -> Tensor:
        self._start_again()
        for step in range(self.config.steps):
            views = self.augment(image, f"views/{row}/{step}")
            loss = marginal_entropy(self.logits(views)).mean()
            self.update(loss, images=len(views))
        self.record(loss=loss, entropy=loss, selected_fraction=1.0)
        with torch.no_grad():
            return self.logits(image)

    def _start_again(self) -> None:
        """Put the source weights back; ``reset`` keeps them, so that no copy is needed here."""
        source = mean_teacher.like(self._params, self._initial["tensors"])
        with torch.no_grad():
            torch._foreach_copy_([*self._params.values()], [*source.values()])
        if not self.config.keep_moments:
            self.optimizer.state.clear()


def marginal_entropy(logits: Tensor) -> Tensor:
    """Entropy of the mean prediction of views, from logarithms throughout.

    Args:
        logits: ``(V, K)`` or dense ``(V, K, ...)``.

    Returns:
        ``()`` or ``(...)`` in nats, in ``[0, ln K]``.
    """
    log_mean = logits.log_softmax(1).logsumexp(0) - math.log(len(logits))
    log_mean = log_mean.clamp_min(torch.finfo(logits.dtype).min)
    return -(log_mean.exp() * log_mean).sum(0)
