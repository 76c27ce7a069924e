"""Files that appear whole or not at all."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.errors import UsageError
from streams.secrets import without_secrets


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON file atomically, without secrets."""
    with atomic_write(path) as temporary:
        text = json.dumps(without_secrets(value), indent=2, ensure_ascii=False)
        temporary.write_text(text + "\n", "utf-8")


@contextmanager
def asked_for(path: Path, instead: str = "file") -> Iterator[Path]:
    """``atomic_write`` of a file that the user named; its folder is made.

    Args:
        path: The file.
        instead: What to name another of, where it cannot be written.

    Raises:
        UsageError: If it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as temporary:
            yield temporary
    except OSError as error:
        raise UsageError(
            f"cannot write {path} ({error.strerror}); name another {instead}"
        ) from error


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """A temporary path beside ``path`` that replaces it when the block ends well."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
