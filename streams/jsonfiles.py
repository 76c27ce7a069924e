"""Small JSON files that appear whole or not at all."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from streams.errors import StreamError


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        StreamError: If the file cannot be read or holds something else.
    """
    try:
        value = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise StreamError(f"{path} cannot be read as JSON ({' '.join(str(error).split())})") from (
            error
        )
    if not isinstance(value, dict):
        raise StreamError(f"{path} must hold a JSON object, it holds a {type(value).__name__}")
    return value


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON object atomically."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(json.dumps(value, indent=2, ensure_ascii=False) + "\n")
            file.flush()
            os.fsync(file.fileno())
        Path(name).chmod(0o644)
        Path(name).replace(path)
    finally:
        Path(name).unlink(missing_ok=True)
