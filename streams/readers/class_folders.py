"""Images in folders, one folder a class."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from streams.errors import StreamError
from streams.readers.images import SUFFIXES


def list_classes(root: Path, classes: Mapping[str, int], what: str) -> list[tuple[str, int]]:
    """Files ``<class folder>/<name>`` below ``root`` and their classes, sorted by file name.

    Args:
        root: The folder of class folders.
        classes: Class of each folder that may be there.
        what: What the classes are, for messages.

    Raises:
        StreamError: For a folder that is no class, a class folder without images, or none at all.
    """
    found: list[tuple[str, str]] = []
    for folder in folders_of(root):
        if folder not in classes:
            raise StreamError(f"{root / folder} is not one of {what}; move it elsewhere")
        found += [(name, folder) for name in images_of(root / folder)]
    if not found:
        raise StreamError(f"{root} holds no class folder; unpack the archive again")
    # By file name first: names of the validation set mix the classes, whole folders do not.
    found.sort()
    return [(f"{folder}/{name}", classes[folder]) for name, folder in found]


def interleaved(found: list[tuple[str, int]]) -> list[tuple[str, int]]:
    """The first image of every class, then the second of every class, and so on.

    Files whose names start with their class come class by class otherwise, and the first N of them
    would be of a few classes.
    """
    seen: dict[int, int] = {}
    ranks = []
    for _, label in found:
        seen[label] = seen.get(label, -1) + 1
        ranks.append(seen[label])
    return [found[i] for i in sorted(range(len(found)), key=lambda i: (ranks[i], found[i][1]))]


def folders_of(root: Path) -> list[str]:
    """Sorted names of the folders in a folder, hidden ones left out; none where it is missing."""
    try:
        with os.scandir(root) as entries:
            return sorted(e.name for e in entries if e.is_dir() and not e.name.startswith("."))
    except OSError:
        return []


def images_of(folder: Path) -> list[str]:
    """Names of the images in a folder.

    Raises:
        StreamError: If there is none.
    """
    with os.scandir(folder) as entries:
        names = [entry.name for entry in entries if _is_image(entry.name)]
    if not names:
        raise StreamError(f"{folder} is empty; unpack the archive again")
    return names


def has_images(folder: Path) -> bool:
    """Whether a folder holds an image itself."""
    with os.scandir(folder) as entries:
        return any(_is_image(entry.name) for entry in entries)


def _is_image(name: str) -> bool:
    return not name.startswith(".") and f".{name.rpartition('.')[2].lower()}" in SUFFIXES
