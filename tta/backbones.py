"""One name gives a model with its own pre-processing inside, its origin and its weight hash.

Most results that cannot be reproduced go back to the wrong normalisation or to weights that
changed under the same name: a ``Backbone`` carries both, so that every result can record them.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from tta.backbone_packages import NAMES as _PACKAGES
from tta.checkpoints import read_checkpoint
from tta.config import did_you_mean
from tta.embedded import names as _embedded_names
from tta.errors import BackboneError

__all__ = [
    "Backbone",
    "BackboneError",
    "Normalized",
    "list_backbones",
    "load",
    "read_checkpoint",
    "weight_hash",
]

_KINDS = ("timm", "torchvision", "robustbench")
_CIFAR = tuple(f"cifar-resnet{depth}" for depth in (20, 32, 44, 56, 110))


class Normalized(nn.Module):
    """A model behind its own input normalisation: ``model((x - mean) / std)``.

    The constants are kept as Python floats and written out in the dtype and on the device of each
    input, so a float64 run subtracts the float64 literals and not rounded float32 ones; they are
    no buffers, so the weights and their hash are those of ``model`` alone.

    Attributes:
        model: The wrapped model; takes normalised images ``(B, C, H, W)``.
        mean: Channel means in [0, 1].
        std: Channel standard deviations.
        channels_last: Hand the model its input in this memory layout (same values; faster for
            convolutions on CPUs).
        autocast: Compute under autocast to this dtype; ``None``: as the weights are. The logits
            come back in the dtype of the images.
    """

    def __init__(
        self,
        model: nn.Module,
        mean: Sequence[float],
        std: Sequence[float],
        *,
        channels_last: bool = False,
    ) -> None:
        super().__init__()
        self.model = model
        self.mean = tuple(float(value) for value in mean)
        self.std = tuple(float(value) for value in std)
        self.channels_last = channels_last
        self.autocast: torch.dtype | None = None
        self._identity = set(self.mean) == {0.0} and set(self.std) == {1.0}
        self._constants: dict[tuple[torch.dtype, torch.device], tuple[Tensor, Tensor]] = {}

    def forward(self, x: Tensor) -> Tensor:
        """Map images ``(B, C, H, W)``, floating point in [0, 1], to logits ``(B, K)``."""
        if not self._identity:
            mean, std = self._in(x.dtype, x.device)
            x = (x - mean) / std
        if self.channels_last:
            x = x.contiguous(memory_format=torch.channels_last)
        if self.autocast is None:
            logits: Tensor = self.model(x)
            return logits
        with torch.autocast(x.device.type, dtype=self.autocast):
            logits = self.model(x)
        return logits.to(x.dtype)

    def extra_repr(self) -> str:
        """Mean and standard deviation."""
        return f"mean={self.mean}, std={self.std}"

    def _in(self, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
        key = (dtype, device)
        if key not in self._constants:
            # An inference tensor in the cache could not take part in a later gradient step.
            with torch.inference_mode(False):
                mean, std = (
                    torch.tensor(values, dtype=dtype, device=device).view(1, -1, 1, 1)
                    for values in (self.mean, self.std)
                )
            self._constants[key] = (mean, std)
        return self._constants[key]


@dataclass(frozen=True, kw_only=True)
class Backbone:
    """A model ready to use, with what a result must record about it.

    Attributes:
        name: The name it was asked for by.
        model: In eval mode; takes images ``(B, 3, H, W)`` in [0, 1], gives logits ``(B, K)``.
        num_classes: ``K``.
        input_size: ``(H, W)`` in pixels that the model was made for.
        mean: Channel means inside ``model``.
        std: Channel standard deviations inside ``model``.
        interpolation: How images of another size are to be resized (``"bilinear"``, ...).
        weights: Where the weights came from, in words.
        weight_hash: ``weight_hash(model)``.
    """

    name: str
    model: nn.Module
    num_classes: int
    input_size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str
    weights: str
    weight_hash: str


def list_backbones() -> list[str]:
    """Names of the models that ship with the package, sorted."""
    return _embedded_names()


def weight_hash(model: nn.Module) -> str:
    """SHA-256 over names, dtypes, shapes and bytes of all parameters and buffers, sorted by name.

    A ``Normalized`` wrapper does not count: its model has the same hash with and without it.

    Args:
        model: On any device.

    Returns:
        64 hexadecimal digits; the first 16 are enough to show.
    """
    inner = model.model if isinstance(model, Normalized) else model
    digest = hashlib.sha256()
    tensors: dict[str, Tensor] = {**dict(inner.named_parameters()), **dict(inner.named_buffers())}
    for name, value in sorted(tensors.items()):
        data = value.detach().cpu().contiguous()
        digest.update(f"{name}|{data.dtype}|{tuple(data.shape)}|".encode())
        # numpy knows no bfloat16: bytes are read through a view.
        digest.update(data.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def load(
    spec: str,
    *,
    checkpoint: Path | None = None,
    num_classes: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    seed: int = 0,
) -> Backbone:
    """Build a model by name and fill it with its weights.

    Args:
        spec: ``fashion-resnet`` or ``fashion-resnet-gn`` (shipped), ``cifar-resnet20`` (with
            ``checkpoint``), ``efficientnet-lite0`` (weights from the package index, extra
            ``imagenet``), ``timm:NAME``, ``torchvision:NAME[@WEIGHTS]`` or
            ``robustbench:NAME@DATASET``.
        checkpoint: Weight file to use instead of the published weights; nothing is downloaded.
        num_classes: Width of the classifier. By default that of the weights; another one draws a
            new classifier for published weights and is an error for a ``checkpoint``.
        mean: Channel means in [0, 1] instead of the model's own.
        std: Channel standard deviations instead of the model's own.
        seed: Seed of what the weights do not fill (a new classifier).

    Returns:
        The model in eval mode, on the CPU, in float32.

    Raises:
        BackboneError: If the name is unknown, a package is absent, or the weights are absent,
            damaged or do not fit; one line that says what to do.
    """
    from tta.backbone_sources import SOURCES
    from tta.backbone_types import Request

    kind, name = _parse(spec)
    request = Request(
        spec=spec,
        name=name,
        checkpoint=None if checkpoint is None else Path(checkpoint),
        num_classes=num_classes,
    )
    if num_classes is not None and num_classes < 1:
        raise BackboneError(f"num_classes must be at least 1, got {num_classes}")
    # Initialisation draws from torch's global generator: lend it a seed, then give it back.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        source = SOURCES[kind](request)
    chosen_mean = _three("mean", source.mean if mean is None else mean)
    chosen_std = _three("std", source.std if std is None else std)
    model = Normalized(source.model, chosen_mean, chosen_std, channels_last=source.channels_last)
    return Backbone(
        name=spec,
        model=model.eval(),
        num_classes=source.num_classes,
        input_size=source.input_size,
        mean=model.mean,
        std=model.std,
        interpolation=source.interpolation,
        weights=source.weights,
        weight_hash=weight_hash(model),
    )


def _parse(spec: str) -> tuple[str, str]:
    """Split a name into the kind of source and the name within it."""
    kind, colon, name = spec.partition(":")
    if colon:
        if kind not in _KINDS:
            raise BackboneError(
                f"unknown source {kind!r} in {spec!r}{did_you_mean(kind, _KINDS)}; "
                f"known: {', '.join(f'{known}:NAME' for known in _KINDS)}"
            )
        if not name:
            raise BackboneError(f"{spec!r} names no model; write {kind}:NAME")
        return kind, name
    if spec in _embedded_names():
        return "embedded", spec
    if spec in _CIFAR:
        return "cifar", spec
    if spec in _PACKAGES:
        return "package", spec
    known = [*_embedded_names(), *_CIFAR, *_PACKAGES]
    # timm has many names like that of the package's model: an underscore means one of them.
    hint = did_you_mean(spec, known if "_" not in spec else known[: -len(_PACKAGES)])
    if not hint and re.fullmatch(r"[\w.]+", spec):
        hint = f" (did you mean 'timm:{spec}'?)"
    raise BackboneError(
        f"unknown backbone {spec!r}{hint}; known: {', '.join(known)}, "
        f"{', '.join(f'{kind}:NAME' for kind in _KINDS)}"
    )


def _three(label: str, values: Sequence[float]) -> tuple[float, ...]:
    numbers = tuple(float(value) for value in values)
    low_ok = all(number > 0 for number in numbers) if label == "std" else True
    if len(numbers) != 3 or not all(math.isfinite(number) for number in numbers) or not low_ok:
        sign = "positive " if label == "std" else ""
        raise BackboneError(
            f"{label} takes three finite {sign}numbers, one a channel on the [0, 1] scale, "
            f"got {numbers}"
        )
    return numbers
