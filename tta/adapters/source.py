"""Source: the model as it was trained, without adaptation; the row every other is read against.

Deviation: none. Every setting gives the same error, which makes it a check of the data.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tta.adapter import Adapter, Needs
from tta.factory import adapters
from tta.published import doebler_table, figures

PUBLISHED = (
    *figures(
        "akamaster/pytorch_resnet_cifar10",
        "field best_prec1 of the weight file resnet20-12fca82f.th",
        {"cifar10/clean/cifar-resnet20": 8.22},
        note="stated as accuracy",
    ),
    *figures(
        "akamaster/pytorch_resnet_cifar10",
        "field best_prec1 of the weight file resnet32-d509ac18.th",
        {"cifar10/clean/cifar-resnet32": 7.22},
        note="stated as accuracy",
    ),
    *figures(
        "akamaster/pytorch_resnet_cifar10",
        "field best_prec1 of the weight file resnet44-014dd654.th",
        {"cifar10/clean/cifar-resnet44": 6.86},
        note="stated as accuracy",
    ),
    *figures(
        "DequanWang/tent",
        "README, CIFAR-10-C at severity 5",
        {"cifar10-c/reset/wrn-28-10": 43.5, "cifar10-c/reset/wrn-40-2-augmix": 18.3},
    ),
    *figures(
        "mr-eggplant/EATA",
        "README, ImageNet-C at severity 5, reset for each corruption",
        {"imagenet-c/reset-50k/resnet50": 82.0},
        note="mean of the table's 15 entries; the row is commented out",
    ),
    *figures(
        "mr-eggplant/FOA",
        "README, table of ViT-B/16, ImageNet-C at severity 5",
        {"imagenet-c/reset-50k/vit-b-16-augreg2": 44.5},
        note="stated as accuracy",
    ),
    *figures(
        "BlueWhaleLab/COME",
        "README, table of ViT-B/16, batch 64, normal setting",
        {"imagenet-c/reset-50k/vit-b-16-augreg2-imagenet": 60.2},
        note="stated as accuracy",
    ),
    *figures(
        "mr-eggplant/SAR",
        "README, label shifts with infinite imbalance ratio",
        {
            "imagenet-c/label-shift-50k/resnet50": 82.0,
            "imagenet-c/label-shift-50k/resnet50-gn": 69.4,
        },
        note="stated as accuracy",
    ),
    *figures(
        "mr-eggplant/SAR",
        "README, label shifts with infinite imbalance ratio",
        {"imagenet-c/label-shift-50k/vit-b-16-augreg-imagenet": 70.1},
        note="stated as accuracy; ImageNet mean and std",
    ),
    *figures(
        "mr-eggplant/SAR issue 5",
        "table of ViT-B/16 with mean and std 0.5, label shifts",
        {"imagenet-c/label-shift-50k/vit-b-16-augreg": 48.9},
        note="stated as accuracy, mean of the table's 15 entries",
    ),
    *doebler_table(continual=(43.5, 46.4, 82.0), mixed=(43.5, 46.4, 82.0)),
)


@adapters.register()
class Source(Adapter):
    """Predicts with frozen weights and source statistics."""

    needs = Needs(gradients=False)

    def adapt(self, x: Tensor) -> Tensor:
        """Images ``(B, C, H, W)`` to logits ``(B, K)``; one forward."""
        with torch.no_grad():
            return self.logits(x)
