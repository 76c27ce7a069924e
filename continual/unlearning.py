"""Unlearners as plain functions: make a model forget given samples, from the samples it may keep.

They know no loop and no stream: a model, labelled images, options. Each works in place on the
parameters that require a gradient. Those that train return how many images they sent forward and
back (as many each way). Draws depend on the options' seed and on ``purpose`` alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from continual.descent import (
    Labelled,
    UnlearnConfig,
    descend,
    gradients,
    in_batches,
    need,
    on_device,
    shuffled,
)
from continual.passes import trainable, untouched
from streams.order import rng
from tta.norms import kind_of


def fine_tune(
    model: nn.Module, retained: Labelled, config: UnlearnConfig, purpose: str = ""
) -> int:
    """Go on training on what may be kept; what is not trained on fades.

    Args:
        model: Changed in place.
        retained: What the model may keep.
        config: Options of the descent.
        purpose: Key of the draws (which request, for one).

    Raises:
        AdapterError: If nothing is retained.
    """
    need(retained, "fine-tune")
    return descend(model, config, shuffled(model, retained, config, purpose), purpose)


def l1_sparse(
    model: nn.Module,
    retained: Labelled,
    config: UnlearnConfig,
    *,
    alpha: float,
    epochs_without: int = 0,
    norms: bool = True,
    purpose: str = "",
) -> int:
    """Fine-tune with a penalty on the sum of absolute weights that falls linearly to 0.

    Args:
        model: Changed in place.
        retained: What the model may keep.
        config: Options of the descent.
        alpha: Weight of the penalty in the first epoch.
        epochs_without: Last epochs without penalty.
        norms: Whether the weights of normalisation layers are penalised too.
        purpose: Key of the draws.

    Raises:
        AdapterError: If nothing is retained.
    """
    need(retained, "l1-sparse")
    spared = set() if norms else _norm_parameters(model)
    penalised = [p for name, p in trainable(model).items() if name not in spared]

    def penalty(epoch: int) -> None:
        weight = l1_alpha(alpha, epoch, config.epochs, epochs_without)
        for p in penalised:
            if weight and p.grad is not None:
                p.grad.add_(p.detach().sign(), alpha=weight)

    batches = shuffled(model, retained, config, purpose)
    return descend(model, config, batches, purpose, after_backward=penalty)


def l1_alpha(alpha: float, epoch: int, epochs: int, epochs_without: int = 0) -> float:
    """Weight of the penalty in an epoch, from 0: ``alpha * (1 - epoch / (epochs - without))``.

    Example:
        >>> [l1_alpha(1.0, epoch, 5, 1) for epoch in range(5)]
        [1.0, 0.75, 0.5, 0.25, 0.0]
    """
    penalised = epochs - epochs_without
    return alpha * (1 - epoch / penalised) if epoch < penalised else 0.0


def random_label(
    model: nn.Module,
    forgotten: Labelled,
    retained: Labelled,
    config: UnlearnConfig,
    *,
    classes: int,
    mixed: bool = False,
    mask: Mapping[str, Tensor] | None = None,
    purpose: str = "",
) -> int:
    """Train on the forgotten images with labels drawn anew each epoch, and on the retained ones.

    Args:
        model: Changed in place.
        forgotten: What to forget.
        retained: What the model may keep; may be empty.
        config: Options of the descent.
        classes: Labels are uniform over so many classes, the true one among them.
        mixed: Shuffle both together; otherwise each epoch takes the forgotten ones first.
        mask: Which weights may move, by parameter name: the others stay bit for bit.
        purpose: Key of the draws.

    Raises:
        AdapterError: If there is nothing to forget.
    """
    need(forgotten, "random-label", what="to forget")
    first = len(forgotten)

    def at(places: np.ndarray[Any, Any], labels: np.ndarray[Any, Any]) -> tuple[Tensor, Tensor]:
        gone, kept = places[places < first], places[places >= first] - first
        parts = []
        if len(gone):
            parts.append((forgotten.batch(gone)[0], torch.from_numpy(labels[gone])))
        if len(kept):
            parts.append(retained.batch(kept))
        x, y = (torch.cat(both) for both in zip(*parts, strict=True))
        return on_device(model, x, y)

    def batches(epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        draw = rng(config.seed, "random-label", purpose, epoch)
        labels = draw.integers(0, classes, first)
        order = draw.permutation(first), first + draw.permutation(len(retained))
        groups = [draw.permutation(np.concatenate(order))] if mixed else order
        for group in groups:
            for places in in_batches(group, config.batch_size):
                yield at(places, labels)

    return descend(model, config, batches, purpose, mask=mask)


def saliency_mask(
    model: nn.Module, forgotten: Labelled, fraction: float, batch_size: int = 256
) -> dict[str, Tensor]:
    """The weights on which the loss of the forgotten samples depends most.

    The gradient of the summed cross-entropy in eval mode; its largest absolute values over all
    weights together are chosen.

    Args:
        model: Left as it is.
        forgotten: What to forget.
        fraction: Part of the weights to choose, in ``[0, 1]``.
        batch_size: Images a pass; the mask does not depend on it.

    Returns:
        By parameter name, a boolean tensor of its shape: ``True`` where it may move.
    """
    need(forgotten, "salun", what="to forget")
    params = trainable(model)
    sums = [torch.zeros_like(p) for p in params.values()]
    with untouched(model, mode="eval"):
        for places in in_batches(np.arange(len(forgotten)), batch_size):
            x, y = on_device(model, *forgotten.batch(places))
            loss = F.cross_entropy(model(x), y, reduction="sum")
            torch._foreach_add_(sums, gradients(loss, params))
    sizes = torch.cat([s.flatten() for s in sums]).abs()
    chosen = torch.zeros(len(sizes), dtype=torch.bool, device=sizes.device)
    chosen[sizes.sort(descending=True, stable=True).indices[: int(fraction * len(sizes))]] = True
    parts = torch.split(chosen, [p.numel() for p in params.values()])
    return {name: part.view_as(p) for (name, p), part in zip(params.items(), parts, strict=True)}


def salun(
    model: nn.Module,
    forgotten: Labelled,
    retained: Labelled,
    config: UnlearnConfig,
    *,
    classes: int,
    fraction: float = 0.5,
    mixed: bool = False,
    purpose: str = "",
) -> int:
    """``random_label`` in which only the most salient weights move; arguments as there.

    Args:
        model: Changed in place.
        forgotten: What to forget.
        retained: What the model may keep; may be empty.
        config: Options of the descent.
        classes: Number of classes of the random labels.
        fraction: Part of the weights that may move.
        mixed: As in ``random_label``.
        purpose: Key of the draws.
    """
    mask = saliency_mask(model, forgotten, fraction, config.batch_size)
    return len(forgotten) + random_label(
        model,
        forgotten,
        retained,
        config,
        classes=classes,
        mixed=mixed,
        mask=mask,
        purpose=purpose,
    )


def importance(
    model: nn.Module, samples: Labelled, batch_size: int = 256, *, label_free: bool = False
) -> dict[str, Tensor]:
    """Mean over batches of the squared gradient of each batch's loss, in eval mode.

    Not the Fisher information: the square of a mean depends on the batch size, so compare only
    what was measured with the same.

    Args:
        model: Left as it is.
        samples: Images, and their labels.
        batch_size: Images a batch.
        label_free: Absolute gradients of the mean squared length of the logits instead.
    """
    need(samples, "the importance of weights", what="to measure it on")
    params = trainable(model)
    sums = [torch.zeros_like(p) for p in params.values()]
    batches = in_batches(np.arange(len(samples)), batch_size)
    with untouched(model, mode="eval"):
        for places in batches:
            x, y = on_device(model, *samples.batch(places))
            logits = model(x)
            if label_free:
                loss = logits.square().sum(1).mean()
                found = torch._foreach_abs(gradients(loss, params))
            else:
                found = torch._foreach_pow(gradients(F.cross_entropy(logits, y), params), 2)
            torch._foreach_add_(sums, found)
    torch._foreach_div_(sums, float(len(batches)))
    return dict(zip(params, sums, strict=True))


def dampening(full: Tensor, forgotten: Tensor, alpha: float, strength: float) -> Tensor:
    """Factors of weights: ``min(strength * full / forgotten, 1)`` where forgotten > alpha * full.

    Args:
        full: Importance for all of the data, any shape.
        forgotten: Importance for what is to be forgotten, the same shape.
        alpha: How many times more important a weight must be to be dampened.
        strength: Factor ``lambda``; smaller dampens more.

    Example:
        >>> full, gone = torch.tensor([1.0, 1, 1, 0]), torch.tensor([0.5, 20, 5, 1])
        >>> [round(f, 4) for f in dampening(full, gone, 10, 1).tolist()]
        [1.0, 0.05, 1.0, 0.0]
    """
    factors = (strength * full / forgotten).clamp(max=1.0)
    return torch.where(forgotten > alpha * full, factors, torch.ones_like(factors))


def ssd(
    model: nn.Module,
    full: Mapping[str, Tensor],
    forgotten: Mapping[str, Tensor],
    *,
    alpha: float = 10.0,
    strength: float = 1.0,
) -> float:
    """Dampen the weights that matter more for what is to be forgotten than for all; no training.

    Args:
        model: Changed in place; weights without an importance stay.
        full: From ``importance``, for all of the data.
        forgotten: From ``importance``, for what is to be forgotten.
        alpha: As in ``dampening``.
        strength: As in ``dampening``.

    Returns:
        Part of the weights that was dampened.
    """
    dampened = total = 0
    with torch.no_grad():
        for name, p in trainable(model).items():
            if name in full and name in forgotten:
                factors = dampening(full[name].to(p), forgotten[name].to(p), alpha, strength)
                p.mul_(factors)
                dampened += int((factors < 1).sum())
            total += p.numel()
    return dampened / max(total, 1)


def _norm_parameters(model: nn.Module) -> set[str]:
    return {
        f"{name}.{own}" if name else own
        for name, module in model.named_modules()
        if kind_of(module) is not None
        for own, _ in module.named_parameters(recurse=False)
    }
