"""The places a backbone can come from, one function each; every library is imported on use."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tta.architectures import CifarResNet, depth_of, rename_public_keys
from tta.backbone_packages import from_package
from tta.backbone_timm import from_timm
from tta.backbone_types import (
    Request,
    Source,
    file_origin,
    keep_new_classifier,
    not_installed,
    width,
    with_new_classifier,
)
from tta.checkpoints import load_weights, read_checkpoint
from tta.config import did_you_mean
from tta.errors import BackboneError


def _embedded(request: Request) -> Source:
    from tta.architectures_embedded import build_embedded
    from tta.embedded import EMBEDDED

    entry = EMBEDDED[request.name]
    path = request.checkpoint or Path(__file__).parent / "weights" / entry.file
    state = read_checkpoint(path)
    if request.checkpoint is not None:
        classes = request.num_classes or width(state, "head.fc") or entry.num_classes
        weights = file_origin(path)
    else:
        classes = request.num_classes or entry.num_classes
        weights = f"shipped {entry.file}, trained on {entry.data.partition(',')[0]}"
    model = build_embedded(request.name, classes)
    if request.checkpoint is None and classes != entry.num_classes:
        state = keep_new_classifier(state, model, ["head.fc"])
        weights = with_new_classifier(weights, classes)
    load_weights(model, state, model_name=request.spec, file_name=path.name)
    return Source(
        model=model,
        num_classes=classes,
        input_size=entry.input_size,
        mean=entry.mean,
        std=entry.std,
        weights=weights,
        channels_last=entry.channels_last,
    )


def _cifar(request: Request) -> Source:
    depth = depth_of(request.name)
    if depth is None:  # names come from a fixed list
        raise BackboneError(f"unknown backbone {request.name!r}")
    if request.checkpoint is None:
        raise BackboneError(
            f"{request.spec} has no published package of weights: give a file with "
            f"checkpoint=FILE (--checkpoint FILE), e.g. a public resnet{depth} .th of CIFAR-10"
        )
    state = rename_public_keys(read_checkpoint(request.checkpoint))
    classes = request.num_classes or width(state, "fc") or 10
    model = CifarResNet(depth, classes)
    load_weights(model, state, model_name=request.spec, file_name=request.checkpoint.name)
    return Source(
        model=model,
        num_classes=classes,
        input_size=(32, 32),
        weights=file_origin(request.checkpoint),
    )


def _torchvision(request: Request) -> Source:
    try:
        from torchvision import models
    except ImportError:
        raise not_installed(request, "torchvision") from None
    name, _, tag = request.name.partition("@")
    known = models.list_models(module=models)
    if name not in known:
        raise BackboneError(
            f"torchvision has no classifier {name!r}{did_you_mean(name, known)}; "
            "torchvision.models.list_models() lists all"
        )
    enum: Any = models.get_model_weights(name)
    tags = list(enum.__members__)
    if tag and tag not in tags:
        raise BackboneError(
            f"torchvision's {name} has no weights {tag!r}{did_you_mean(tag, tags)}; "
            f"it has: {', '.join(tags)}"
        )
    chosen = enum[tag] if tag else enum.DEFAULT
    native = len(chosen.meta["categories"])
    if request.checkpoint is None:
        classes = request.num_classes or native
        weights = f"torchvision {name}: {chosen.name}"
        try:
            model = models.get_model(name, weights=chosen, progress=False)
        except OSError as error:
            file = chosen.url.rpartition("/")[2]
            raise BackboneError(
                f"{request.spec}: the weights {file} are not on this machine and cannot be "
                f"downloaded ({type(error).__name__}); fetch {chosen.url} elsewhere and give it "
                "with checkpoint=FILE (--checkpoint FILE)"
            ) from None
        if classes != native:
            _replace_classifier(model, classes, request)
            weights = with_new_classifier(weights, classes)
    else:
        state = read_checkpoint(request.checkpoint)
        last = _last_linear(models.get_model(name, weights=None))
        classes = request.num_classes or (width(state, last) if last else None) or native
        model = models.get_model(name, weights=None, num_classes=classes)
        weights = file_origin(request.checkpoint)
        load_weights(model, state, model_name=request.spec, file_name=request.checkpoint.name)
    transform = chosen.transforms()
    side = int(transform.crop_size[0])
    return Source(
        model=model,
        num_classes=classes,
        input_size=(side, side),
        mean=transform.mean,
        std=transform.std,
        interpolation=str(transform.interpolation.value),
        weights=weights,
    )


def _robustbench(request: Request) -> Source:
    from streams import robustbench_bridge as bridge
    from streams.errors import StreamError

    name, at, dataset = request.name.partition("@")
    if not at:
        raise BackboneError(
            f"{request.spec!r} names no data set; write robustbench:{name}@cifar10 "
            f"(or {', '.join(list(bridge.NUM_CLASSES)[1:])})"
        )
    try:
        if request.checkpoint is not None:
            model = bridge.build_zoo_model(name, dataset)
            state = read_checkpoint(request.checkpoint)
            own = set(model.state_dict())
            # ImageNet models sit behind a normalisation layer, their files do not.
            if not own & set(state) and own & {f"model.{key}" for key in state}:
                state = {f"model.{key}": value for key, value in state.items()}
            state = _fill_constants(state, model)
            load_weights(model, state, model_name=request.spec, file_name=request.checkpoint.name)
            weights = file_origin(request.checkpoint)
        else:
            folder = Path(torch.hub.get_dir()) / "robustbench"
            model = bridge.load_zoo_model(name, dataset, folder)
            weights = f"RobustBench zoo {name}, {dataset}, corruptions"
    except StreamError as error:
        raise BackboneError(str(error)) from None
    classes = bridge.NUM_CLASSES[dataset]
    if request.num_classes not in (None, classes):
        raise BackboneError(
            f"{request.spec} has {classes} classes, got num_classes={request.num_classes}; "
            "leave it out"
        )
    side = 224 if dataset == "imagenet" else 32
    # The zoo's models normalise inside themselves: ours must not do it again.
    return Source(
        model=model,
        num_classes=classes,
        input_size=(side, side),
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
        weights=weights,
    )


def _fill_constants(state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Zoo files leave out the normalisation constants that the architecture brings itself."""
    buffers = {name: value for name, value in model.named_buffers() if value.ndim in (1, 3, 4)}
    constants = ("mean", "std", "mu", "sigma")
    brought = {n: v for n, v in buffers.items() if n.rpartition(".")[2] in constants}
    return {**brought, **state}


def _last_linear(model: nn.Module) -> str | None:
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    return names[-1] if names else None


def _replace_classifier(model: nn.Module, classes: int, request: Request) -> None:
    name = _last_linear(model)
    if name is None:
        raise BackboneError(
            f"{request.spec} has no linear classifier to replace; leave num_classes out"
        )
    parent, _, leaf = name.rpartition(".")
    owner = model.get_submodule(parent)
    old = owner.get_submodule(leaf)
    assert isinstance(old, nn.Linear)
    setattr(owner, leaf, nn.Linear(old.in_features, classes, bias=old.bias is not None))


SOURCES: dict[str, Callable[[Request], Source]] = {
    "embedded": _embedded,
    "cifar": _cifar,
    "package": from_package,
    "timm": from_timm,
    "torchvision": _torchvision,
    "robustbench": _robustbench,
}
