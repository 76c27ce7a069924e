"""Small JSON files that appear whole or not at all."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from streams.errors import StreamError
from streams.secrets import without_secrets

# The largest that we write, the list of contents of ImageNet-C, has some 10 MB.
_MOST = 256 << 20


def load_json(path: Path) -> Any:
    """The value of a JSON file.

    Raises:
        OSError: If it cannot be read.
        ValueError: If it is no JSON, nested too deeply, or larger than any that we write.
    """
    with path.open("rb") as file:
        data = file.read(_MOST + 1)
    if len(data) > _MOST:
        raise ValueError(f"it has more than {_MOST:,} bytes")
    return parse_json(data.decode("utf-8"))


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text.

    Raises:
        ValueError: If it is no JSON, or nested too deeply.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        StreamError: If the file cannot be read or holds something else.
    """
    try:
        value = load_json(path)
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
            file.write(json.dumps(without_secrets(value), indent=2, ensure_ascii=False) + "\n")
            file.flush()
            os.fsync(file.fileno())
        Path(name).chmod(0o644)
        Path(name).replace(path)
    finally:
        Path(name).unlink(missing_ok=True)
