"""Frozen, versioned experiment definitions: one TOML file each, everything that fixes a number.

A file never changes once released; another choice is another version.
"""

from __future__ import annotations

from functools import lru_cache
from importlib.resources import files
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from benchmarks.errors import UsageError
from benchmarks.toml import TomlError, parse_toml


class Protocol(BaseModel):
    """What a protocol file says."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    version: int
    description: str
    stream: str
    setting: str
    corruptions: tuple[str, ...]
    severity: tuple[int, ...]
    batch_size: int
    shuffle: bool
    num_examples: int | None = None
    setting_options: dict[str, float | int | str] = {}
    order: str = "default"
    source_options: dict[str, int | str | None] = {}
    backbone: str | None = None

    @property
    def id(self) -> str:
        """``<name>-v<version>``, the file's stem."""
        return f"{self.name}-v{self.version}"


@lru_cache(maxsize=1)
def protocols() -> dict[str, Protocol]:
    """All protocols by id."""
    found = {}
    for entry in sorted(files(__name__).iterdir(), key=lambda entry: entry.name):
        if entry.name.endswith(".toml"):
            protocol = _parse(entry.name, entry.read_text("utf-8"))
            found[protocol.id] = protocol
    return found


def protocol_for(stream: str, setting: str) -> Protocol | None:
    """The newest protocol named after a stream and setting; others are chosen by their name."""
    fitting = [p for p in protocols().values() if p.name == f"{stream}-{setting}"]
    return max(fitting, key=lambda p: p.version, default=None)


@lru_cache(maxsize=1)
def presets() -> dict[str, dict[str, dict[str, Any]]]:
    """Options by method and stream, as the papers or their code set them."""
    text = files("benchmarks").joinpath("presets.toml").read_text("utf-8")
    made: dict[str, dict[str, dict[str, Any]]] = parse_toml(text)
    return made


def _parse(file: str, text: str) -> Protocol:
    try:
        protocol = Protocol(**parse_toml(text))
    except (TomlError, ValidationError) as error:
        raise UsageError(f"protocol {file} is damaged: {str(error).splitlines()[0]}") from error
    if f"{protocol.id}.toml" != file:
        raise UsageError(f"protocol {file} calls itself {protocol.id}: rename the file")
    return protocol
