"""The bridge to Avalanche 0.6, both ways; Avalanche is imported when it is used, never patched.

From Avalanche: ``from_avalanche`` builds any of its strategies, ``as_avalanche_benchmark`` gives it
our streams, ``AvalancheLife`` lets it live one, with the reports of a native ``Life``
(``make_life`` builds both from options). To
Avalanche: ``AdapterStrategy`` is any of our adapters as a strategy that adapts while it is
evaluated, ``as_plugin`` any of our plug-ins in a stock script.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from continual.avalanche_data import as_avalanche_benchmark
from continual.avalanche_life import AvalancheLife, make_life
from continual.avalanche_plugin import as_plugin
from continual.avalanche_strategy import from_avalanche

if TYPE_CHECKING:
    AdapterStrategy: Any

__all__ = [
    "AdapterStrategy",
    "AvalancheLife",
    "as_avalanche_benchmark",
    "as_plugin",
    "from_avalanche",
    "make_life",
]


def __getattr__(name: str) -> Any:
    # The class derives from one of Avalanche's: it cannot be made before Avalanche is imported.
    if name != "AdapterStrategy":
        raise AttributeError(f"module 'continual.avalanche' has no attribute {name!r}")
    from continual.avalanche_adapter import adapter_strategy_class

    return adapter_strategy_class()
