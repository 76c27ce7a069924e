"""Layers that take the place of BatchNorm: RobustBN, instance-aware BN (IABN) and UnMixTNS.

``replace(model, "unmix-tns")`` swaps every BatchNorm layer in place; ``tta.wrap(model, "tent",
norm="unmix-tns")`` does it before the method is set up. A replaced layer keeps the tensors of the
old one (scale, shift, running statistics) and its activation. It has statistics of its own, which
move only where ``moving`` says so: in the steps of an adapter, never in its ``predict``.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from tta import norms
from tta.config import did_you_mean
from tta.errors import AdapterError
from tta.stand_ins import IABN, RobustBN, StandIn
from tta.unmix import UnMixTNS

KINDS: dict[str, type[StandIn]] = {layer.kind: layer for layer in (RobustBN, IABN, UnMixTNS)}


def replace(model: nn.Module, kind: str, *, seed: int = 0, **options: Any) -> int:
    """Swap every BatchNorm layer of ``model`` (timm's with activation too) in place.

    >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
    >>> replace(model, "unmix-tns", components=4)
    1

    Args:
        model: Any module; a layer that stands in several places is replaced once for all.
        kind: A name of ``KINDS``.
        seed: Key of the layers' random draws.
        **options: Keyword arguments of the layer.

    Returns:
        The number of layers.

    Raises:
        AdapterError: For an unknown kind or option, without a layer to replace, and for one that
            does more than a BatchNorm or has no running statistics.
    """
    if kind not in KINDS:
        known = ", ".join(KINDS)
        raise AdapterError(f"unknown norm {kind!r}{did_you_mean(kind, KINDS)}; known: {known}")
    layer = KINDS[kind]
    names = list(inspect.signature(layer).parameters)[2:]
    for name in options:
        if name not in names:
            raise AdapterError(
                f"unknown option {name!r} of norm {kind!r}{did_you_mean(name, names)}; "
                f"it takes: {', '.join(names)}"
            )
    made: dict[nn.Module, StandIn] = {}
    for prefix, parent in list(model.named_modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, _BatchNorm) and child not in made:
                where = f"{prefix}.{name}".lstrip(".")
                _check_replaceable(where, child)
                made[child] = layer(child, f"{seed}/{where}", **options)
    if not made:
        raise AdapterError(
            f"norm {kind!r} takes the place of BatchNorm layers, the model has "
            f"{norms.inventory(model)}"
        )
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if child in made:
                parent._modules[name] = made[child]
    return len(made)


def find(*modules: nn.Module) -> list[StandIn]:
    """The replaced layers in module order."""
    return [layer for module in modules for layer in module.modules() if isinstance(layer, StandIn)]


@contextmanager
def moving(layers: Iterable[StandIn], on: bool = True) -> Iterator[None]:
    """Let the statistics of ``layers`` move (or, nested, stand still) inside the block."""
    before = [(layer, layer.moving) for layer in layers]
    try:
        for layer, _ in before:
            layer.moving = on
        yield
    finally:
        for layer, was in before:
            layer.moving = was


def describe(model: nn.Module) -> str:
    """The kind and options of the replaced layers, or an empty string."""
    layers = find(model)
    return f"{layers[0].kind} {layers[0].options()}" if layers else ""


def _check_replaceable(where: str, layer: _BatchNorm) -> None:
    own = {name for name, _ in layer.named_children()}
    plain = (_BatchNorm.forward, nn.SyncBatchNorm.forward)
    if type(layer).forward not in plain and own != {"drop", "act"}:
        raise AdapterError(
            f"{where} is a {type(layer).__name__} with a forward of its own: a replacement would "
            "lose what it does"
        )
    if layer._buffers.get("running_mean") is None or layer._buffers.get("running_var") is None:
        raise AdapterError(f"{where} has no running statistics: there is nothing to start from")
