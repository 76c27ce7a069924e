"""From names to plug-ins: one strategy, or several joined by ``+``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from continual.plugin import Plugin
from tta.registry import Registry

strategies: Registry[type[Plugin]] = Registry(
    "strategy", "continual.strategies", "continual.strategies"
)


def list_strategies(pattern: str = "*") -> list[str]:
    """Sorted names of the strategies that match a shell wildcard."""
    return strategies.names(pattern)


def strategy_config(name: str) -> type[Any]:
    """The ``Config`` class of a strategy.

    Raises:
        AdapterError: If there is none of that name, with the nearest name.
    """
    return strategies.get(name).Config


def create_plugins(
    names: str | Sequence[str], options: Mapping[str, Mapping[str, Any]] | None = None
) -> list[Plugin]:
    """Plug-ins in the order of their names.

    Args:
        names: Names, or one text such as ``"refresh+der-pp"``.
        options: Options of each by its name; defaults for those that are not there.

    Raises:
        AdapterError: For a wrong name or option, with the nearest one.
    """
    parts = names.split("+") if isinstance(names, str) else list(names)
    given = options or {}
    made = []
    for name in parts:
        found = strategies.get(name)
        made.append(found(found.Config.create(given.get(name, {}))))
    return made
