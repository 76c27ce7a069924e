"""What methods take from source images before they adapt."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tta.errors import AdapterError
from tta.heads import Tap


def fisher(
    model: Callable[[Tensor], Tensor],
    batches: Iterable[Tensor],
    params: Sequence[Tensor],
    loss: Callable[[Tensor], Tensor],
) -> list[Tensor]:
    """Diagonal of the Fisher information: the mean over batches of the squared gradient.

    The gradient is that of a whole batch, so the result depends on how the images are batched.

    Args:
        model: Maps images ``(B, C, H, W)`` to logits ``(B, K, ...)``.
        batches: Images, each batch once, in order.
        params: Leaves that require gradients; others than the model's get zeros.
        loss: Maps logits to a scalar; ``losses.pseudo_label_loss`` for EATA.

    Returns:
        As many tensors as ``params``, of their shapes and dtypes, not negative.

    Raises:
        AdapterError: Without a batch, or where a gradient is not finite.
    """
    total = [torch.zeros_like(p) for p in params]
    count = 0
    for x in batches:
        torch._foreach_add_(total, squared_gradients(model, x, params, loss))
        count += 1
    if not count:
        raise AdapterError("the Fisher information needs source images, got no batch")
    torch._foreach_div_(total, count)
    if not all_finite(total):
        raise AdapterError(
            "the source images give gradients that are not finite: look for NaN in the images, "
            "and for scores that overflow"
        )
    return total


def squared_gradients(
    model: Callable[[Tensor], Tensor],
    x: Tensor,
    params: Sequence[Tensor],
    loss: Callable[[Tensor], Tensor],
) -> list[Tensor]:
    """Squared gradient of ``loss(model(x))`` for each of ``params``; zeros where it has none."""
    with torch.enable_grad():
        grads = torch.autograd.grad(loss(model(x)), list(params), materialize_grads=True)
    return list(torch._foreach_mul(grads, grads))


def all_finite(tensors: Sequence[Tensor]) -> bool:
    """Whether no element is NaN or infinite: one host synchronisation."""
    return bool(torch.stack(torch._foreach_norm(list(tensors))).isfinite().all())


def check_labels(labels: Tensor, images: int, classes: int) -> None:
    """Refuse labels that are not one class number in ``[0, classes)`` an image.

    Raises:
        AdapterError: With what was found instead.
    """
    kind = f"{str(labels.dtype).removeprefix('torch.')} of shape {tuple(labels.shape)}"
    if labels.shape == (images,) and not labels.is_floating_point():
        low, high = int(labels.min()), int(labels.max())
        if low >= 0 and high < classes:
            return
        kind = f"values from {low} to {high}"
    raise AdapterError(f"labels must be {images} integers in [0, {classes}), got {kind}")


def class_means(tap: Tap, model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
    """Mean feature of each class over labelled source images, in the modes the model is in.

    Args:
        tap: Reads the features that enter the classifier of ``model``.
        model: Maps images to logits ``(B, K)``.
        batches: Pairs of images ``(B, C, H, W)`` and labels ``(B,)``, integers in ``[0, K)``.

    Returns:
        ``(K, D)``; a class without an image has a row of zeros (``means.any(1)`` tells).

    Raises:
        AdapterError: Without a batch, or for a label out of range.
    """
    sums: Tensor | None = None
    counts = torch.zeros(tap.classes, dtype=torch.int64)
    with torch.no_grad():
        for x, labels in batches:
            check_labels(labels, len(x), tap.classes)
            features, _ = tap(model, x)
            members = F.one_hot(labels.to(features.device).long(), tap.classes)
            # A product, not a scattered sum: that is not deterministic on GPUs.
            batch = members.to(features).T @ features
            sums = batch if sums is None else sums + batch
            counts += members.sum(0).cpu()
    if sums is None:
        raise AdapterError("class means need labelled source images, got no batch")
    return sums / counts.to(sums).clamp(min=1)[:, None]
