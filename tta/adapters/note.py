"""NOTE: instance-aware normalisation, and entropy minimisation on a class-balanced memory.

Gong, Jeong, Kim, Kim, Shin, Lee: NOTE: Robust continual test-time adaptation against temporal
correlation, 2022, arXiv:2208.05117. Reference code: TaesikGong/NOTE @ a714a2a.

The paper trains the source network with its IABN layers. Here they take the place of BatchNorm at
test time, so on an ordinary checkpoint this is another setting than the paper's; a very large
``iabn_k`` leaves the layers BatchNorms. NOTE* (for independent images) is ``memory="fifo",
batch_statistics=True, lr=1e-3``.

Deviations:
- Images come in batches of any size; the result is that of one image after the other, with the
  updates between two images of a batch where they fall.
- NOTE* answers each batch at once, by the memory that holds it; the reference waits until 64 images
  are there. The two are equal for batches of ``update_every`` images.
- Only normalisation layers leave eval mode in an update; the reference trains the whole network, so
  its dropout is live there.
- The memory's draws come from a generator keyed by (seed, step), the reference's from Python's.
- Layers replaced before (``norm="unmix-tns"``) stay, without IABN.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from tta import norm_layers, norms, optim
from tta.adapter import Adapter, Needs
from tta.config import param
from tta.errors import AdapterError
from tta.factory import adapters
from tta.memory import ClassBalanced, Fifo, judge
from tta.published import figures

PUBLISHED = (
    *figures(
        "TaesikGong/NOTE",
        "README, temporally correlated",
        {
            "cifar10-c/correlated-reset/resnet18-iabn": 21.1,
            "cifar100-c/correlated-reset/resnet18-iabn": 47.0,
        },
        seeds=3,
    ),
    *figures(
        "TaesikGong/NOTE",
        "README, i.i.d.",
        {"cifar10-c/reset/resnet18-iabn": 20.1, "cifar100-c/reset/resnet18-iabn": 46.4},
        seeds=3,
    ),
)
_STAR = {"memory": "fifo", "batch_statistics": True}


@adapters.register()
class Note(Adapter):
    """Batch-free predictions; one update on the memory every ``update_every`` images."""

    needs = Needs(norms=frozenset({"bn"}))
    check_options = (
        {"capacity": 6, "update_every": 4},
        {"capacity": 4, "update_every": 4, **_STAR},
    )

    @dataclass(frozen=True, kw_only=True, slots=True)
    class Config(optim.GradientConfig):
        """Defaults of the official CIFAR runs."""

        optimizer: Literal["sgd", "adam", "adamw"] = param("adam", "update rule; official tta.sh")
        lr: float = param(1e-4, "learning rate; official tta.sh, NOTE* 1e-3", gt=0)
        capacity: int = param(64, "images in the memory; official tta.sh", ge=1)
        update_every: int = param(64, "images between two updates; official tta.sh", ge=1)
        memory: Literal["balanced", "fifo"] = param(
            "balanced", "balanced: by predicted class (PBRS); fifo: the last images, NOTE*"
        )
        iabn_k: float = param(4.0, "standard errors without correction; official tta.sh", ge=0)
        batch_statistics: bool = param(False, "the batch is IABN's reference in predictions; NOTE*")
        statistics_momentum: float = param(
            0.01, "share of a memory batch in the running statistics; official tta.sh", ge=0, le=1
        )

    config: Config
    kept: dict[str, Any]
    images_seen: int

    def setup(self) -> None:
        """IABN for BatchNorm, gradients for its scale and shift, an empty memory."""
        config = self.config
        kinds = {layer.kind for layer in norms.find(self.model)}
        if not kinds & {"bn", "bn-like"}:
            raise AdapterError(
                f"note needs BatchNorm layers, the model has {norms.inventory(self.model)}"
            )
        if "bn" in kinds:
            norm_layers.replace(
                self.model,
                "iabn",
                k=config.iabn_k,
                batch_statistics=config.batch_statistics,
                batch_momentum=config.statistics_momentum,
            )
        self._iabn = [layer for layer in norm_layers.find(self.model) if layer.kind == "iabn"]
        self.add_optimizer(config, norms.enable_affine(self.model, kinds=("bn",)))
        self.add_state("kept", (Fifo if config.memory == "fifo" else ClassBalanced).empty())
        self.add_state("images_seen", 0)

    def adapt(self, x: Tensor) -> Tensor:
        """Images ``(B, C, H, W)`` to logits ``(B, K)``, each from before its own update."""
        every = self.config.update_every
        logits = []
        while len(x):
            room = every - self.images_seen % every
            if self.config.memory == "fifo":
                room = min(room, self.config.capacity)
            part, x = x.tensor_split([room])
            logits.append(self._keep(part))
            self.images_seen += len(part)
            if self.images_seen % every == 0:
                self._learn()
        return torch.cat(logits)

    @torch.no_grad()
    def _keep(self, x: Tensor) -> Tensor:
        """Put images into the memory and return their logits."""
        capacity = self.config.capacity
        if self.config.memory == "fifo":
            bank = Fifo(self.kept, capacity)
            slots = bank.add(x)
            return self.logits(bank.images())[slots]
        logits = self.logits(x)
        draws = torch.rand(len(x), 3, generator=self.draws(), dtype=torch.float64)
        ClassBalanced(self.kept, capacity).add(x, judge(logits)[0], draws)
        return logits

    def draws(self) -> torch.Generator:
        """Of the memory's decisions."""
        return self.generator(f"memory/{self.images_seen}")

    def _learn(self) -> None:
        """Entropy over the memory; the mean goes over images and classes, as in the reference."""
        images = Fifo(self.kept, self.config.capacity).images()
        for _ in range(self.config.steps):
            logits = self._logits_in_training(images)
            p = logits.softmax(1)
            loss = -(p * (p + 1e-6).log()).mean()
            self.update(loss, images=len(images))
        self.record(loss=loss, memory=len(images))

    def _logits_in_training(self, images: Tensor) -> Tensor:
        training = len(images) > 1 and not self.config.batch_statistics
        try:
            for layer in self._iabn:
                layer.training = training
            return self.logits(images)
        finally:
            for layer in self._iabn:
                layer.training = False
