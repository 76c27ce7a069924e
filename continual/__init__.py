"""Continual learning on the same streams: strategies as plug-ins, Avalanche both ways.

``continual.Learner`` is the native loop, plain torch; ``continual.from_avalanche`` and
``continual.AdapterStrategy`` cross over to Avalanche and import it when they are used. Importing
this package imports neither torch nor Avalanche.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from continual.avalanche import (
        AdapterStrategy,
        as_avalanche_benchmark,
        as_plugin,
        from_avalanche,
    )
    from continual.factory import create_plugins, list_strategies, strategy_config
    from continual.learner import Learner, LearnerConfig
    from continual.life import Life
    from continual.plugin import Plugin, PluginConfig

__all__ = [
    "AdapterStrategy",
    "Learner",
    "LearnerConfig",
    "Life",
    "Plugin",
    "PluginConfig",
    "as_avalanche_benchmark",
    "as_plugin",
    "create_plugins",
    "from_avalanche",
    "list_strategies",
    "strategy_config",
]

_HOMES = {
    "AdapterStrategy": "continual.avalanche",
    "Learner": "continual.learner",
    "LearnerConfig": "continual.learner",
    "Life": "continual.life",
    "Plugin": "continual.plugin",
    "PluginConfig": "continual.plugin",
    "as_avalanche_benchmark": "continual.avalanche",
    "as_plugin": "continual.avalanche",
    "create_plugins": "continual.factory",
    "from_avalanche": "continual.avalanche",
    "list_strategies": "continual.factory",
    "strategy_config": "continual.factory",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'continual' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
