"""From a name and a model to an adapter."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from torch import nn

from tta import norm_layers
from tta.adapter import Adapter
from tta.budget import BudgetConfig, limit
from tta.config import AdapterConfig
from tta.errors import AdapterError
from tta.guard import Guarding, as_config, attach, source_copy
from tta.quick_layers import quicken
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


def create_adapter(
    name: str,
    model: nn.Module,
    config: AdapterConfig | None = None,
    *,
    norm: str | None = None,
    norm_options: Mapping[str, Any] | None = None,
    window: int = 1,
    guard: Guarding | None = None,
    budget: BudgetConfig | Mapping[str, Any] | None = None,
) -> Adapter:
    """Build an adapter around ``model`` itself: its adapted parameters will change in place.

    Args:
        name: A name of ``list_adapters()``.
        model: Maps images ``(B, C, H, W)`` in ``[0, 1]`` to logits ``(B, K)``.
        config: Defaults of the method when ``None``.
        norm: As in ``wrap``.
        norm_options: As in ``wrap``.
        window: As in ``wrap``.
        guard: As in ``wrap``.
        budget: As in ``wrap``.

    Raises:
        AdapterError: For an unknown name, a wrong config, or a model that the method cannot adapt.
    """
    cls = adapters.get(name)
    config = cls.Config() if config is None else config
    # Before a layer is replaced: what answers in place of the adapter is the model as it came.
    source = None if guard is None else source_copy(model)
    if norm is not None:
        norm_layers.replace(model, norm, **{"seed": config.seed, **(norm_options or {})})
    elif norm_options:
        raise AdapterError(f"norm_options={dict(norm_options)} without norm: name the layer")
    adapter = cls(model, config, window=window)
    if budget is not None:
        limits = budget if isinstance(budget, BudgetConfig) else BudgetConfig.create(budget)
        limit(adapter, limits)
    if guard is not None and source is not None:
        attach(adapter, as_config(guard), source)
    return adapter


def wrap(
    model: nn.Module,
    method: str,
    *,
    inplace: bool = False,
    norm: str | None = None,
    norm_options: Mapping[str, Any] | None = None,
    window: int = 1,
    guard: Guarding | None = None,
    budget: BudgetConfig | Mapping[str, Any] | None = None,
    **config: Any,
) -> Adapter:
    """Wrap a model so that each call adapts and predicts.

    >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8, 10))
    >>> wrap(model, "tent", lr=1e-4).config.lr
    0.0001

    Args:
        model: Maps images ``(B, C, H, W)`` in ``[0, 1]`` to logits ``(B, K)``; it is copied.
        method: A name of ``list_adapters()``.
        inplace: Adapt ``model`` itself instead of a copy of it.
        norm: What takes the place of every BatchNorm layer before the method is set up:
            ``unmix-tns``, ``iabn`` or ``robust`` (see ``tta.norm_layers``); ``None``: nothing.
        norm_options: Keyword arguments of that layer; its ``seed`` is the method's if not given.
        window: Batches with fewer images go into a sliding window of so many, and the method adapts
            once each time it has been filled (see ``tta.window``); 1: no window.
        guard: An action (``"rollback"``, ``"fallback"``, ``"freeze"``, ``"watch"``), options by
            name, or a ``tta.guard.GuardConfig``; ``None``: no guard. A guard keeps a copy of the
            source model.
        budget: Options by name or a ``tta.budget.BudgetConfig``; ``None``: no limit.
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
        quicken(model)
    return create_adapter(
        method,
        model,
        chosen,
        norm=norm,
        norm_options=norm_options,
        window=window,
        guard=guard,
        budget=budget,
    )
