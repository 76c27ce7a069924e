"""TOML from a text that somebody else wrote."""

from __future__ import annotations

import sys
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

TomlError = tomllib.TOMLDecodeError


def parse_toml(text: str) -> dict[str, Any]:
    """The tables of a TOML text.

    Raises:
        TomlError: If it is no TOML, or nested too deeply.
    """
    try:
        tables: dict[str, Any] = tomllib.loads(text)
    except RecursionError:
        raise TomlError("it is nested too deeply") from None
    return tables
