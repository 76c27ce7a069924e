"""The file that marks a folder of arrays as generated, so that nobody takes it for the official."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from streams.errors import StreamError
from streams.jsonfiles import read_json

MARKER = "provenance.json"
KEYS = ("clean", "generator", "parameters", "seed", "frost")
"""What the pixels depend on beside image id, corruption and severity; frost by its origin."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Marker:
    """What a generated set says of itself.

    Attributes:
        detail: The values of ``KEYS``.
        num_classes: Number of classes of the clean images.
    """

    detail: Mapping[str, str]
    num_classes: int


def read_marker(folder: Path) -> Marker | None:
    """The mark of a folder; ``None`` where it has none.

    Raises:
        StreamError: If the mark is there and cannot be read: what the folder holds is unknown.
    """
    path = folder / MARKER
    if not path.exists():
        return None
    value = read_json(path)
    known = all(isinstance(value.get(key), str) for key in KEYS)
    if value.get("kind") != "generated" or not known or not isinstance(value.get("classes"), int):
        raise StreamError(
            f"{path} does not say how the set was generated; move the folder away and make it "
            "again with 'tta-bench data generate'"
        )
    return Marker(detail={key: value[key] for key in KEYS}, num_classes=value["classes"])
