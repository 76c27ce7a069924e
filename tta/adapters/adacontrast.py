"""AdaContrast: pseudo-labels refined by their neighbours, with momentum contrast and diversity.

Chen, Wang, Darrell, Ebrahimi: Contrastive test-time adaptation, 2022, arXiv:2204.10377.
Reference code: mariodoebler/test-time-adaptation @ 8b2ed63, the online form (one pass over the
stream); the official code, DianCh/AdaContrast @ c3c8b88, trains for epochs on a bank that a full
pass filled.

Deviations:
- The views are batched tensor operations whose draws are keyed by (seed, step): each image has its
  own jitter, loss of colours, blur and flip, but the order of the jitter is that of the batch. The
  reference goes through PIL images one by one.
- The bank is a ring that overwrites its oldest rows and never holds more than ``bank_size``; the
  reference starts to overwrite at its newest batch.
- The bank keeps unit features: they are compared by their cosine alone.
- The key encoder never moves running statistics: it always normalises by its batch, as the
  reference does, and nothing reads them.
- A batch longer than the queue enters with its last rows; the reference needs shorter ones.
- No larger learning rate for the classifier (DomainNet-126 in the reference).
- A layer that sees one value per channel uses its running statistics; the reference raises.
- Dropout and stochastic depth stay off; the reference trains with them on.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tta import augment_strong, ema, norms
from tta.adapter import Adapter
from tta.config import param
from tta.factory import adapters
from tta.heads import Tap
from tta.optim import GradientConfig
from tta.published import doebler_table

PUBLISHED = (*doebler_table(continual=(18.5, 33.5, 65.5), mixed=(26.2, 41.8, 90.8)),)


@adapters.register()
class AdaContrast(Adapter):
    """Self-training on refined pseudo-labels of all parameters; answers after the update."""

    predicts = "after"
    check_options = (
        {"queue_size": 32, "bank_size": 12, "refine_after": 4, "neighbours": 3, "lr": 1e-2},
    )

    @dataclass(frozen=True, kw_only=True, slots=True)
    class Config(GradientConfig):
        """Defaults of the reference's configuration, the same for all of its data sets."""

        optimizer: Literal["sgd", "adam", "adamw"] = param("sgd", "update rule; cfgs")
        lr: float = param(2e-4, "learning rate; cfgs", gt=0)
        nesterov: bool = param(True, "Nesterov form of the momentum; cfgs")
        weight_decay: float = param(1e-4, "weight decay; cfgs", ge=0)
        queue_size: int = param(16384, "keys to contrast with; ADACONTRAST.QUEUE_SIZE", ge=1)
        bank_size: int = param(16384, "rows to look for neighbours in", ge=1)
        neighbours: int = param(10, "neighbours that vote; ADACONTRAST.NUM_NEIGHBORS", ge=1)
        refine_after: int = param(
            1024, "images seen before neighbours vote; until then the model's own labels", ge=1
        )
        temperature: float = param(0.07, "of the contrastive logits; CONTRAST.TEMPERATURE", gt=0)
        key_momentum: float = param(
            0.999, "decay of the key encoder; M_TEACHER.MOMENTUM", ge=0, le=1
        )
        class_weight: float = param(1.0, "weight of the cross-entropy; ADACONTRAST.ALPHA", ge=0)
        contrast_weight: float = param(1.0, "weight of the instance loss; ADACONTRAST.BETA", ge=0)
        diversity_weight: float = param(1.0, "weight of the diversity loss; ADACONTRAST.ETA", ge=0)

    config: Config
    key_model: nn.Module
    queue: Tensor
    queue_labels: Tensor
    queue_at: int
    bank: Tensor
    bank_probs: Tensor
    bank_at: int
    images_seen: int

    def setup(self) -> None:
        """Gradients for everything; a key encoder, a queue of random keys, an empty bank."""
        config = self.config
        self._tap = Tap(self.model)
        self._layers = [layer.module for layer in norms.find(self.model) if layer.kind == "bn"]
        key_model = ema.frozen_copy(self.model)
        norms.use_batch_statistics(key_model)
        self.add_module_state("key_model", key_model)
        self.model.requires_grad_(True)
        params = list(self.model.parameters())
        self.add_optimizer(config, params)

        generator, like = self.generator("queue"), params[0]
        keys = torch.randn(config.queue_size, self._tap.dim, generator=generator)
        labels = torch.randint(self._tap.classes, (config.queue_size,), generator=generator)
        self.add_state("queue", F.normalize(keys.to(like), dim=1))
        self.add_state("queue_labels", labels.to(like.device))
        self.add_state("queue_at", 0)
        self.add_state("bank", self.queue.new_zeros(0, self._tap.dim))
        self.add_state("bank_probs", self.queue.new_zeros(0, self._tap.classes))
        self.add_state("bank_at", 0)
        self.add_state("images_seen", 0)

    def adapt(self, x: Tensor) -> Tensor:
        """Images ``(B, C, H, W)`` to logits ``(B, K)`` from after the last update."""
        for step in range(self.config.steps):
            self._learn(x, step)
        with torch.no_grad():
            return self.logits(x)

    def augment(self, x: Tensor, purpose: str) -> Tensor:
        """A weak view for purposes that start with ``weak``, else a strong one."""
        view = augment_strong.weak if purpose.startswith("weak") else augment_strong.strong
        return view(x, self.generator(purpose))

    def _learn(self, x: Tensor, step: int) -> None:
        config = self.config
        plain = self.augment(x, f"weak/{step}")
        with self._train_statistics():
            with torch.no_grad():
                features, logits = self._forward(plain)
                labels = self._pseudo_labels(features, logits)
            query, logits = self._forward(self.augment(x, f"query/{step}"))
        with torch.no_grad():
            key_params = list(self.key_model.parameters())
            ema.update(key_params, list(self.model.parameters()), config.key_momentum)
            keys = F.normalize(self._keys(self.augment(x, f"key/{step}"))[0], dim=1)

        slots, rows = ring(self.queue_at, len(x), config.queue_size)
        # As in the reference, the mask knows the labels that replace the oldest ones before the
        # loss, while the similarities are still those of the old keys.
        self.queue_labels[slots] = labels[rows]
        contrast = instance_loss(
            F.normalize(query, dim=1),
            keys,
            self.queue,
            self.queue_labels[None] == labels[:, None],
            config.temperature,
        )
        loss = (
            config.class_weight * F.cross_entropy(logits, labels)
            + config.contrast_weight * contrast
            + config.diversity_weight * diversity_loss(logits)
        )
        self.update(loss, images=len(x))
        self.record(loss=loss, selected_fraction=1.0)

        # After the backward, which needs the queue as it was in the forward.
        self.queue[slots] = keys[rows]
        self.queue_at = (self.queue_at + len(x)) % config.queue_size
        with torch.no_grad():
            self._remember(*self._keys(plain))

    def _forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        self.count_forwards(len(x))
        return self._tap(self.model, x)

    def _keys(self, x: Tensor) -> tuple[Tensor, Tensor]:
        self.count_forwards(len(x))
        return self._tap(self.key_model, x)

    def _pseudo_labels(self, features: Tensor, logits: Tensor) -> Tensor:
        """Labels ``(B,)`` by the vote of the nearest rows of the bank, once it is filled enough."""
        if self.images_seen < self.config.refine_after:
            self.images_seen += len(features)
            return logits.argmax(dim=1)
        return refined_labels(features, self.bank, self.bank_probs, self.config.neighbours)

    def _remember(self, features: Tensor, logits: Tensor) -> None:
        """Append rows to the bank; once it is full, over the oldest ones."""
        unit, probs = F.normalize(features, dim=1), logits.softmax(dim=1)
        room = self.config.bank_size - len(self.bank)
        if room:
            self.bank = torch.cat((self.bank, unit[:room]))
            self.bank_probs = torch.cat((self.bank_probs, probs[:room]))
            unit, probs = unit[room:], probs[room:]
        if len(unit):
            slots, rows = ring(self.bank_at, len(unit), self.config.bank_size)
            self.bank[slots] = unit[rows]
            self.bank_probs[slots] = probs[rows]
            self.bank_at = (self.bank_at + len(unit)) % self.config.bank_size

    @contextmanager
    def _train_statistics(self) -> Iterator[None]:
        """BatchNorm layers normalise by the batch, and their running statistics follow it."""
        hooks = [
            layer.register_forward_pre_hook(norms.batch_mode_by_size) for layer in self._layers
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
            for layer in self._layers:
                layer.eval()


def ring(start: int, rows: int, size: int) -> tuple[Tensor, slice]:
    """Slots of a ring of ``size`` for the last rows that fit, and which rows they are."""
    kept = min(rows, size)
    first = start + rows - kept
    return torch.arange(first, first + kept) % size, slice(rows - kept, rows)


def refined_labels(features: Tensor, bank: Tensor, probs: Tensor, neighbours: int) -> Tensor:
    """Class of the mean probability of the nearest rows of a bank, by cosine.

    Args:
        features: ``(B, D)``.
        bank: Unit features ``(N, D)``.
        probs: Probabilities ``(N, K)`` of its rows.
        neighbours: Rows that vote, all where the bank has fewer.

    Returns:
        ``(B,)`` int64.
    """
    similarity = F.normalize(features, dim=1) @ bank.T
    nearest = similarity.topk(min(neighbours, len(bank)), dim=1).indices
    return probs[nearest].mean(dim=1).argmax(dim=1)


def instance_loss(
    query: Tensor, keys: Tensor, queue: Tensor, same: Tensor, temperature: float
) -> Tensor:
    """Mean cross-entropy of a query with its key against the queue without its own class.

    Args:
        query: Unit features ``(B, D)``.
        keys: Unit features ``(B, D)`` of the same images.
        queue: Unit features ``(Q, D)``.
        same: bool ``(B, Q)``: columns of the query's class, left out.
        temperature: Divides the cosine similarities.

    Returns:
        A scalar, 0 or more.
    """
    positive = (query * keys).sum(dim=1, keepdim=True)
    negative = (query @ queue.T).masked_fill(same, -torch.inf)
    logits = torch.cat((positive, negative), dim=1) / temperature
    return (logits.logsumexp(dim=1) - logits[:, 0]).mean()


def diversity_loss(logits: Tensor) -> Tensor:
    """Negative entropy of the mean prediction of logits ``(B, K)``, in nats."""
    mean = logits.softmax(dim=1).mean(dim=0)
    return (mean * (mean + 1e-8).log()).sum()
