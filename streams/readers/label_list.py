"""Text files that give images their classes, one a line."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from streams.errors import StreamError

_WNID = re.compile(r"n\d{8}\b")


def read_pairs(path: Path, num_classes: int) -> list[tuple[str, int]]:
    """Lines ``path label``.

    Args:
        path: The list.
        num_classes: Labels are 0 to ``num_classes - 1``.

    Raises:
        StreamError: For a line of another form, a label out of range, a path that comes twice, or
            one class folder under two labels, with the number of the line.
    """
    found: dict[str, int] = {}
    folders: dict[str, int] = {}
    for number, line in _lines(path):
        name, _, label = line.rpartition(" ")
        where = f"{path} line {number}"
        if not name or not label.isdigit():
            raise StreamError(f"{where} is {line[:60]!r}, expected 'path label'")
        if int(label) >= num_classes:
            raise StreamError(f"{where}: label {label} is out of range: 0 to {num_classes - 1}")
        if name in found:
            raise StreamError(f"{where}: {name} comes twice; fetch the list again")
        folder = name.rpartition("/")[0]
        if folder and folders.setdefault(folder, int(label)) != int(label):
            raise StreamError(
                f"{where}: {folder} has label {label}, and {folders[folder]} before; "
                "the list is mixed up, fetch it again"
            )
        found[name] = int(label)
    if not found:
        raise StreamError(f"{path} is empty; fetch it again")
    return list(found.items())


def read_validation_labels(path: Path, classes: Mapping[str, int]) -> dict[str, int]:
    """Class of each ImageNet validation image by its name without ending.

    Three forms are told apart line by line: a name with a wnid (``LOC_val_solution.csv``, also in
    any text), a name with an index from 0 (``val.txt``), and a bare wnid, line ``n`` being image
    ``n`` (``imagenet_2012_validation_synset_labels.txt``).

    Raises:
        StreamError: For a line of another form, an unknown class, or a name that comes twice, with
            the number of the line. The development kit's ground truth (bare numbers) is refused: it
            counts the classes in an order of its own.
    """
    made: dict[str, int] = {}
    for number, line in _lines(path):
        where = f"{path} line {number}"
        words = line.replace(",", " ").split()
        if number == 1 and words[0] == "ImageId":
            continue
        if words[0].isdigit():
            raise StreamError(
                f"{where} is a bare number: the development kit's ground truth counts the classes "
                "in another order than models do; give LOC_val_solution.csv"
            )
        bare = bool(_WNID.fullmatch(words[0]))
        name = f"ILSVRC2012_val_{number:08d}" if bare else words[0].partition(".")[0]
        label = words[0] if bare else words[1] if len(words) > 1 else ""
        if label.isdigit() and int(label) < len(classes):
            index = int(label)
        elif label in classes:
            index = classes[label]
        else:
            raise StreamError(f"{where} names no class: {line[:60]!r}; fetch the list again")
        if name in made:
            raise StreamError(f"{where}: {name} comes twice; fetch the list again")
        made[name] = index
    if not made:
        raise StreamError(f"{path} is empty; fetch it again")
    return made


def _lines(path: Path) -> list[tuple[int, str]]:
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise StreamError(f"{path} cannot be read as text; fetch it again") from error
    return [(n, line.strip()) for n, line in enumerate(text.splitlines(), 1) if line.strip()]
