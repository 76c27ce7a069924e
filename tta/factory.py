"""From a name and a model to an adapter."""

from __future__ import annotations

import copy
from typing import Any

from torch import nn

from tta.adapter import Adapter
from tta.config import AdapterConfig
from tta.errors import AdapterError
from tta.registry import Registry

adapters: Registry[type[Adapter]] = Registry("method", "tta.adapters", group="tta.adapters")


def list_adapters(pattern: str = "*") -> list[str]:
    """Sorted names of the methods that match a shell wildcard; none is imported.

    >>> list_adapters("te*")
    ['tent']
    """
    return adapters.names(pattern)


def adapter_config(name: str) -> type[AdapterConfig]:
    """The ``Config`` class of a method.

    >>> adapter_config("tent")().lr
    0.001

    Raises:
        AdapterError: If there is no such method, with the nearest name.
    """
    return adapters.get(name).Config


def create_adapter(name: str, model: nn.Module, config: AdapterConfig | None = None) -> Adapter:
    """Build an adapter around ``model`` itself: its adapted parameters will change in place.

    Args:
        name: A name of ``list_adapters()``.
        model: Maps images ``(B, C, H, W)`` in ``[0, 1]`` to logits ``(B, K)``.
        config: Defaults of the method when ``None``.

    Raises:
        AdapterError: For an unknown name, a wrong config, or a model that the method cannot adapt.
    """
    return adapters.get(name)(model, config)


def wrap(model: nn.Module, method: str, *, inplace: bool = False, **config: Any) -> Adapter:
    """Wrap a model so that each call adapts and predicts.

    >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8, 10))
    >>> wrap(model, "tent", lr=1e-4).config.lr
    0.0001

    Args:
        model: Maps images ``(B, C, H, W)`` in ``[0, 1]`` to logits ``(B, K)``; it is copied.
        method: A name of ``list_adapters()``.
        inplace: Adapt ``model`` itself instead of a copy of it.
        **config: Fields of the method's ``Config`` (see ``tta.adapter_config(method)``).

    Raises:
        AdapterError: For an unknown method or option (with the nearest name), or a model that the
            method cannot adapt.
    """
    chosen = adapter_config(method).create(config)
    if not inplace and isinstance(model, nn.Module):
        try:
            model = copy.deepcopy(model)
        except RuntimeError as error:
            raise AdapterError(
                f"the model cannot be copied ({error}); pass inplace=True to adapt it directly"
            ) from error
    return create_adapter(method, model, chosen)
