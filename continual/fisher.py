"""The diagonal of a classifier's Fisher information: mean squared gradients of log p(y|x)."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from continual.passes import trainable, untouched
from tta.errors import AdapterError

if TYPE_CHECKING:
    from streams.learning_types import Samples

Labels = Literal["true", "predicted", "sampled", "all"]
_MOST_NUMBERS = {"cpu": 2**22, "cuda": 2**26}
"""Gradients of several samples at once take at most so many numbers, by kind of device.

On the CPU larger blocks are slower: an MLP of 300,000 weights took seven times as long with four
times as many.
"""


def diagonal_fisher(
    model: nn.Module,
    samples: Samples,
    *,
    labels: Labels = "true",
    per: Literal["sample", "batch"] = "sample",
    mode: Literal["eval", "train"] = "eval",
    weight_by_p: bool = False,
    names: Collection[str] | None = None,
    max_samples: int | None = None,
    batch_size: int = 32,
    generator: torch.Generator,
) -> dict[str, Tensor]:
    """Mean over samples of the squared gradient of log p(y|x), for each weight.

    The model's weights, gradients, buffers and modes stay as they are.

    Args:
        model: Images ``(B, C, H, W)`` to logits ``(B, K)``.
        samples: Labelled images, as ``streams.learning_types.Samples``; not augmented.
        labels: Which y: ``true`` (the empirical Fisher), ``predicted`` (most likely class),
            ``sampled`` (one draw from p) or ``all`` (the expectation over p: the Fisher itself).
        per: ``sample`` squares the gradient of each sample; ``batch`` that of the mean over a
            batch, weighted by the batch's share, as many published implementations do: smaller by
            about the batch size, and dependent on it.
        mode: ``train`` gives BatchNorm the statistics of the one sample (or of the batch).
        weight_by_p: Multiply each sample's squares by its p(y|x).
        names: Parameters to look at; all that require a gradient when ``None``.
        max_samples: At most so many samples, drawn at random; ``None`` takes all.
        batch_size: Samples read at once, and of a batch under ``per="batch"``.
        generator: CPU generator of all draws.

    Returns:
        By parameter name, a tensor of the parameter's shape, dtype and device.

    Raises:
        AdapterError: If there is no sample, or for an option that ``per="batch"`` does not take.
    """
    if not len(samples):
        raise AdapterError("the Fisher information needs at least one sample")
    if per == "batch" and (labels == "all" or weight_by_p):
        raise AdapterError(
            "the squares of a batch's gradient have no probability to weigh them by: take "
            "per='sample' with labels='all' or weight_by_p"
        )
    chosen = np.arange(len(samples))
    if max_samples is not None and max_samples < len(samples):
        drawn = torch.randperm(len(samples), generator=generator)[:max_samples]
        chosen = np.sort(drawn.numpy())
    params = {n: p for n, p in trainable(model).items() if names is None or n in names}
    sums = {name: torch.zeros_like(p, requires_grad=False) for name, p in params.items()}
    like = next(model.parameters())
    with untouched(model, generator, mode=mode):
        for first in range(0, len(chosen), batch_size):
            x, y = samples.batch(chosen[first : first + batch_size])
            x, y = x.to(like), y.to(like.device)
            for asked, weights in _asked(model, x, y, labels, weight_by_p, generator):
                if per == "batch":
                    squares = _of_mean(model, params, x, asked)
                else:
                    squares = _of_each(model, params, x, asked, weights, alike=mode == "eval")
                torch._foreach_add_(list(sums.values()), squares)
    torch._foreach_div_(list(sums.values()), float(len(chosen)))
    return sums


def fisher_cost(samples: int, labels: Labels, classes: int) -> tuple[int, int]:
    """Images sent forward and back by ``diagonal_fisher`` over so many samples."""
    if labels == "true":
        return samples, samples
    times = classes if labels == "all" else 1
    return samples * (1 + times), samples * times


def _asked(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    labels: Labels,
    weight_by_p: bool,
    generator: torch.Generator,
) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Labels ``(B,)`` to differentiate for, and weights ``(B,)`` of their squares."""
    if labels == "true" and not weight_by_p:
        yield y, None
        return
    with torch.no_grad():
        p = model(x).softmax(1)
    if labels == "all":
        for label in range(p.shape[1]):
            weights = p[:, label] ** 2 if weight_by_p else p[:, label]
            yield torch.full_like(y, label), weights
        return
    if labels == "predicted":
        y = p.argmax(1)
    elif labels == "sampled":
        y = torch.multinomial(p.cpu().double(), 1, generator=generator)[:, 0].to(y.device)
    yield y, p.gather(1, y[:, None])[:, 0] if weight_by_p else None


def _of_each(
    model: nn.Module,
    params: dict[str, Tensor],
    x: Tensor,
    y: Tensor,
    weights: Tensor | None,
    *,
    alike: bool,
) -> list[Tensor]:
    """Sum over samples of the weighted squares of each sample's gradient."""
    weights = torch.ones(len(x), dtype=x.dtype, device=x.device) if weights is None else weights
    size = sum(p.numel() for p in params.values())
    most = _MOST_NUMBERS.get(x.device.type, _MOST_NUMBERS["cpu"])
    at_once = max(1, most // max(1, size))
    # BatchNorm in train mode writes its statistics, which vmap refuses.
    if alike and at_once > 1:
        try:
            parts = [
                _squares(model, params, *part)
                for part in zip(
                    *(torch.split(rows, at_once) for rows in (x, y, weights)), strict=True
                )
            ]
            return [torch.stack(list(of)).sum(0) for of in zip(*parts, strict=True)]
        except (RuntimeError, ValueError, NotImplementedError):
            pass  # an operation that vmap does not know: one sample after the other
    sums = [torch.zeros_like(p, requires_grad=False) for p in params.values()]
    for row in range(len(x)):
        squares = _of_mean(model, params, x[row : row + 1], y[row : row + 1])
        torch._foreach_add_(sums, torch._foreach_mul(squares, float(weights[row])))
    return sums


def _squares(
    model: nn.Module, params: dict[str, Tensor], x: Tensor, y: Tensor, weights: Tensor
) -> list[Tensor]:
    every = {name: p.detach() for name, p in model.named_parameters()}
    asked = {name: every[name] for name in params}

    def loss(values: dict[str, Tensor], image: Tensor, label: Tensor) -> Tensor:
        logits = functional_call(model, {**every, **values}, (image[None],))
        return F.cross_entropy(logits, label[None])

    gradients = vmap(grad(loss), in_dims=(None, 0, 0))(asked, x, y)
    return [torch.einsum("b,b...->...", weights, gradients[name].square()) for name in params]


def _of_mean(model: nn.Module, params: dict[str, Tensor], x: Tensor, y: Tensor) -> list[Tensor]:
    """Squares of the gradient of the mean over the rows, times their number."""
    with torch.enable_grad():
        loss = F.cross_entropy(model(x), y)
        found = torch.autograd.grad(loss, list(params.values()), allow_unused=True)
    return [
        torch.zeros_like(p, requires_grad=False) if g is None else g.square() * len(x)
        for g, p in zip(found, params.values(), strict=True)
    ]
