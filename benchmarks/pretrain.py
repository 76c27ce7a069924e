"""Trains the shipped Fashion-MNIST models again, from the four original idx files.

Nothing but flips and shifts is used as augmentation: a model that has seen blur or noise in
training would leave an adapter nothing to do.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.files import atomic_write
from benchmarks.pretrain_data import augment, load_split, pad_to, to_input
from streams.errors import StreamError
from tta.architectures_embedded import build_embedded
from tta.backbones import Normalized, weight_hash
from tta.embedded import EMBEDDED

_EVAL_BATCH = 500


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Settings of one training run.

    Attributes:
        epochs: Passes over the training images.
        seed: Seed of the initialisation, the order and the augmentation.
        batch_size: Images a step; the incomplete last batch of an epoch is left out.
        lr: Peak learning rate of the one-cycle schedule.
        momentum: Nesterov momentum.
        weight_decay: L2 penalty on convolution and classifier weights only.
        label_smoothing: Share of the target spread over all classes; smoothing raises the entropy
            of every prediction, which shifts the thresholds of entropy-based adapters.
        warmup: Share of the steps in which the learning rate rises.
        max_shift: Largest shift in pixels along each axis.
    """

    epochs: int = 12
    seed: int = 0
    batch_size: int = 128
    lr: float = 0.2
    momentum: float = 0.9
    weight_decay: float = 5e-4
    label_smoothing: float = 0.0
    warmup: float = 0.25
    max_shift: int = 2

    def __post_init__(self) -> None:
        """Refuse values that cannot train."""
        positive = {"epochs": self.epochs, "batch_size": self.batch_size, "lr": self.lr}
        for name, value in positive.items():
            if not value > 0:
                raise StreamError(f"{name} must be positive, got {value}; try {name}=1")
        if self.seed < 0 or self.max_shift < 0:
            raise StreamError(
                f"seed and max_shift start at 0, got seed={self.seed}, max_shift={self.max_shift}"
            )


def error_pct(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Share of wrong predictions in percent.

    Args:
        model: Maps ``(B, 3, S, S)`` float32 in [0, 1] to logits ``(B, K)``.
        images: ``(N, S, S)`` uint8.
        labels: ``(N,)`` int64.
    """
    wrong = 0
    with torch.no_grad():
        for start in range(0, len(images), _EVAL_BATCH):
            part = slice(start, start + _EVAL_BATCH)
            wrong += int((model(to_input(images[part])).argmax(1) != labels[part]).sum())
    return 100.0 * wrong / len(images)


def pretrain(
    arch: str,
    data_dir: Path,
    out: Path,
    *,
    epochs: int | None = None,
    seed: int = 0,
    batch_size: int = 128,
    lr: float | None = None,
    weight_decay: float = 5e-4,
    label_smoothing: float = 0.0,
    max_shift: int = 2,
    progress: bool = True,
) -> dict[str, Any]:
    """Train a shipped architecture and write its weights.

    The same arguments, versions and number of threads give the same weights bit for bit.

    Args:
        arch: A name of ``tta.embedded.names()``.
        data_dir: Folder of the four idx files.
        out: The ``.safetensors`` file to write; its folder must exist.
        epochs: Passes over the training images; the shipped model's recipe by default.
        seed: Seed of everything random.
        batch_size: Images a step.
        lr: Peak learning rate; the shipped model's recipe by default.
        weight_decay: L2 penalty on weights (not on biases and normalisation).
        label_smoothing: Share of the target spread over all classes.
        max_shift: Largest shift in pixels.
        progress: Show a bar on a terminal.

    Returns:
        A flat dict: the recipe, ``arch``, ``out``, ``test_error_pct``, ``parameters``,
        ``weight_hash``, ``seconds`` and ``images_per_second``.

    Raises:
        StreamError: If data are missing or damaged, or a setting cannot train.
        BackboneError: If there is no such architecture.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = build_embedded(arch)
    entry = EMBEDDED[arch]
    recipe = Recipe(
        epochs=entry.epochs if epochs is None else epochs,
        seed=seed,
        batch_size=batch_size,
        lr=entry.lr if lr is None else lr,
        weight_decay=weight_decay,
        label_smoothing=label_smoothing,
        max_shift=max_shift,
    )
    if not out.parent.is_dir():
        raise StreamError(f"{out}: the folder {out.parent} does not exist; create it first")
    if out.suffix != ".safetensors":
        raise StreamError(f"{out}: weights are written as .safetensors; give the file that ending")
    images, labels = load_split(data_dir, "train", entry.num_classes)
    test_images, test_labels = load_split(data_dir, "t10k", entry.num_classes)
    model = Normalized(network, entry.mean, entry.std, channels_last=entry.channels_last)
    started = time.perf_counter()
    _train(model, pad_to(images), labels, recipe, progress=progress)
    seconds = time.perf_counter() - started
    model.eval()
    origin = {
        **asdict(recipe),
        "arch": arch,
        "test_error_pct": round(error_pct(model, pad_to(test_images), test_labels), 4),
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "weight_hash": weight_hash(network),
    }
    save(network, out, origin)
    return {
        **origin,
        "out": out.name,
        "seconds": round(seconds, 1),
        "images_per_second": round(recipe.epochs * len(images) / seconds, 1),
    }


def _train(
    model: nn.Module, images: Tensor, labels: Tensor, recipe: Recipe, *, progress: bool
) -> None:
    from tqdm.auto import tqdm

    optimizer = torch.optim.SGD(
        _parameter_groups(model, recipe.weight_decay),
        lr=recipe.lr,
        momentum=recipe.momentum,
        nesterov=True,
    )
    batch_size = min(recipe.batch_size, len(images))
    total = recipe.epochs * (len(images) // batch_size)
    generator = torch.Generator().manual_seed(recipe.seed)
    model.train()
    loss = torch.zeros(())
    # disable=None keeps the bar out of files and pipes.
    bar = tqdm(total=total, desc="pretrain", unit="step", disable=None if progress else True)
    with bar, torch.enable_grad():
        for step, rows in enumerate(_batches(len(images), batch_size, recipe.epochs, generator)):
            for group in optimizer.param_groups:
                group["lr"] = recipe.lr * schedule(step / total, recipe.warmup)
            x = to_input(augment(images[rows], recipe.max_shift, generator))
            loss = F.cross_entropy(model(x), labels[rows], label_smoothing=recipe.label_smoothing)
            optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(loss)
            optimizer.step()
            if step % 20 == 0:
                bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
            bar.update()
    state = model.state_dict().values()
    if not all(bool(torch.isfinite(value).all()) for value in (loss, *state)):
        raise StreamError(f"training diverged (last loss {loss.item()}); lower lr={recipe.lr}")


def schedule(done: float, warmup: float) -> float:
    """Factor on the peak learning rate: linear rise, then half a cosine down to zero.

    Args:
        done: Share of the steps already taken, in [0, 1).
        warmup: Share of the steps in which the factor rises.
    """
    if done < warmup:
        return (done + 1e-3) / (warmup + 1e-3)
    return 0.5 * (1.0 + math.cos(math.pi * (done - warmup) / (1.0 - warmup)))


def _batches(
    count: int, batch_size: int, epochs: int, generator: torch.Generator
) -> Iterator[Tensor]:
    for _ in range(epochs):
        order = torch.randperm(count, generator=generator)
        for start in range(0, count - batch_size + 1, batch_size):
            yield order[start : start + batch_size]


def _parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Weights of convolutions and classifier decay; biases and normalisation do not."""
    parameters = list(model.parameters())
    return [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]


def save(network: nn.Module, out: Path, metadata: dict[str, Any]) -> None:
    """Write the weights with their origin as safetensors, atomically.

    Args:
        network: The model without its normalisation.
        out: File to write.
        metadata: Values that explain the weights, stored as strings with the versions of torch
            and timm; nothing in them should differ between two equal runs.
    """
    import timm
    from safetensors.torch import save as to_bytes

    origin = {key: str(value) for key, value in metadata.items()}
    origin |= {"torch": str(torch.__version__), "timm": str(timm.__version__)}
    state = {name: value.contiguous().clone() for name, value in network.state_dict().items()}
    with atomic_write(out) as temporary:
        temporary.write_bytes(to_bytes(state, metadata=origin))
