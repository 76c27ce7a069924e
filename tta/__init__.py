"""Test-time adaptation of any ``torch.nn.Module``.

``adapter = tta.wrap(model, "tent")``, then ``logits = adapter(x)``: a call adapts and predicts.
Importing this package imports neither torch nor anything heavier; the first use does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tta.errors import AdapterError, BackboneError

if TYPE_CHECKING:
    from tta.adapter import Adapter, Needs
    from tta.config import AdapterConfig
    from tta.factory import adapter_config, create_adapter, list_adapters, wrap

__all__ = [
    "Adapter",
    "AdapterConfig",
    "AdapterError",
    "BackboneError",
    "Needs",
    "adapter_config",
    "create_adapter",
    "list_adapters",
    "wrap",
]

_HOMES = {
    "Adapter": "tta.adapter",
    "AdapterConfig": "tta.config",
    "Needs": "tta.adapter",
    "adapter_config": "tta.factory",
    "create_adapter": "tta.factory",
    "list_adapters": "tta.factory",
    "wrap": "tta.factory",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'tta' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
