"""What the sources of backbones take and give, and the few steps that they share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from tta.errors import BackboneError

_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True, kw_only=True)
class Request:
    """What ``load`` was asked for: the whole name, the name within its source, and the options."""

    spec: str
    name: str
    checkpoint: Path | None
    num_classes: int | None


@dataclass(frozen=True, kw_only=True)
class Source:
    """A filled model without its normalisation, and what goes with it (see ``Backbone``)."""

    model: nn.Module
    num_classes: int
    input_size: tuple[int, int]
    weights: str
    mean: Sequence[float] = _IMAGENET_MEAN
    std: Sequence[float] = _IMAGENET_STD
    interpolation: str = "bilinear"
    channels_last: bool = False


def width(state: Mapping[str, Tensor], layer: str) -> int | None:
    """Number of classes that a classifier layer in ``state`` has; ``None`` if it is not there."""
    weight = state.get(f"{layer}.weight")
    return None if weight is None or weight.ndim < 2 else int(weight.shape[0])


def file_origin(path: Path) -> str:
    """Origin of weights from a file: its name alone, so that results name no machine's folders."""
    return f"file {path.name}"


def with_new_classifier(weights: str, classes: int) -> str:
    """Origin of weights whose classifier is untrained."""
    return f"{weights}; new random classifier of {classes} classes"


def keep_new_classifier(
    state: Mapping[str, Tensor], model: nn.Module, layers: Sequence[str]
) -> dict[str, Tensor]:
    """Replace the classifier in ``state`` by the freshly drawn one of ``model``."""
    own = model.state_dict()
    return {
        name: own[name] if name.rpartition(".")[0] in layers else value
        for name, value in state.items()
    }


def not_installed(request: Request, package: str) -> BackboneError:
    """The error for an absent library."""
    return BackboneError(
        f"{request.spec} needs the package {package}; install it with 'pip install {package}'"
    )
