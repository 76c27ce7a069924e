"""Corrupted images as ``.npy`` files, one per corruption, in the layout of CIFAR-10-C."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from streams.clean import check_labels
from streams.errors import StreamError
from streams.provenance import read_marker
from streams.readers.npy import open_array, open_images, read_labels
from streams.types import CLEAN, Domain, Ints, Provenance

if TYPE_CHECKING:
    from torch import Tensor

SEVERITIES = 5


@dataclass(frozen=True, kw_only=True)
class NpyCorruptions:
    """A folder of ``<corruption>.npy`` and ``labels.npy``, memory-mapped.

    A file holds either ``N`` images of one severity, or ``5 N``: severity ``s`` in the rows from
    ``(s - 1) N`` to ``s N``. ``clean.npy`` with ``N`` images is optional.

    Attributes:
        folder: The folder.
        name: Name for results.
        labels: Labels ``(N,)``.
        num_classes: Number of classes.
        kind: ``official`` for a published archive, ``generated`` for a set that says so, else
            ``arrays``.
        made: What a generated set says of its making.
    """

    folder: Path
    name: str
    labels: Ints
    num_classes: int
    kind: str = "arrays"
    made: Mapping[str, str] = field(default_factory=dict)

    @property
    def provenance(self) -> Provenance:
        """The folder's name, a digest of its content, and how it was generated where it was."""
        detail = {"files": f"{self.folder.name}/*.npy", "digest": self.digest[:16]}
        kind = self.kind if self.kind in ("official", "generated") else "arrays"
        return Provenance(kind=kind, detail=detail | dict(self.made))  # type: ignore[arg-type]

    @cached_property
    def digest(self) -> str:
        """Hash of labels and, per file, its shape and 64 evenly spread rows.

        All rows of CIFAR-10-C are 2.9 GB; the spread sample tells archives apart without reading
        them.
        """
        made = hashlib.sha256(self.labels.tobytes())
        for path in sorted(self.folder.glob("*.npy")):
            if path.stem == "labels":
                continue
            try:
                array = open_images(path)
            except StreamError:
                continue  # not images; a run that asks for the file gets the error
            rows = np.unique(np.linspace(0, len(array) - 1, 64).astype(np.int64))
            made.update(f"{path.stem}{array.shape}".encode() + array[rows].tobytes())
        return made.hexdigest()

    def check(self, domain: Domain) -> None:
        """Raise ``StreamError`` for a corruption or severity that the folder does not hold."""
        self._rows(domain)

    def images(self, positions: Ints, domain: Domain) -> Tensor:
        """Images ``(B, 3, H, W)`` uint8."""
        import torch

        array, first = self._rows(domain)
        return torch.from_numpy(array[first + positions]).permute(0, 3, 1, 2).contiguous()

    def _rows(self, domain: Domain) -> tuple[NDArray[np.uint8], int]:
        file = "clean" if domain == CLEAN else domain.corruption
        path = self.folder / f"{file}.npy"
        if not path.is_file():
            have = sorted(p.stem for p in self.folder.glob("*.npy") if p.stem != "labels")
            raise StreamError(
                f"{path.name} is missing from {self.folder}; it has {', '.join(have) or 'none'}"
            )
        array, count = _open_once(path.resolve(), path.stat().st_mtime_ns), len(self.labels)
        if len(array) == count:
            if domain != CLEAN and domain.severity != SEVERITIES:
                raise StreamError(
                    f"{path} holds one severity ({count} images for {count} labels), taken as 5: "
                    f"severity {domain.severity} is not in it"
                )
            return array, 0
        if domain == CLEAN:
            raise StreamError(f"{path} has {len(array)} images, {count} labels ask for {count}")
        if len(array) != SEVERITIES * count:
            raise StreamError(
                f"{path} has {len(array)} images; {count} labels ask for {count} (one severity) "
                f"or {SEVERITIES * count} (five)"
            )
        return array, (domain.severity - 1) * count


def open_npy_folder(
    folder: Path, *, name: str, num_classes: int | None = None, kind: str = "arrays"
) -> NpyCorruptions:
    """Open a folder of corrupted arrays; nothing but the labels is read.

    A folder with the mark of ``tta-bench data generate`` is ``generated`` whatever ``kind`` says.

    Raises:
        StreamError: For missing or damaged labels, or a label out of range.
    """
    labels = read_labels(folder / "labels.npy")
    made = read_marker(folder)
    if made is not None:
        kind = "generated"
        num_classes = made.num_classes if num_classes is None else num_classes
    labels = _labels_of_one_severity(folder, labels, certain=kind in ("official", "generated"))
    classes = int(labels.max()) + 1 if num_classes is None else num_classes
    check_labels(labels, classes, str(folder / "labels.npy"))
    return NpyCorruptions(
        folder=folder,
        name=name,
        labels=labels,
        num_classes=classes,
        kind=kind,
        made=made.detail if made is not None else {},
    )


def _labels_of_one_severity(folder: Path, labels: Ints, certain: bool) -> Ints:
    """Labels once, where the file repeats them for each of five severities."""
    if len(labels) % SEVERITIES:
        return labels
    once: Ints = labels[: len(labels) // SEVERITIES].copy()
    if not (labels.reshape(SEVERITIES, -1) == once).all():
        return labels
    if certain:
        return once
    rows = {len(open_array(p)) for p in folder.glob("*.npy") if p.stem not in ("labels", "clean")}
    if SEVERITIES * len(labels) in rows:
        return labels
    for period in (p for p in range(1, len(once)) if len(once) % p == 0):
        if (once[period:] == once[:-period]).all():
            raise StreamError(
                f"{folder / 'labels.npy'} repeats every {period} rows: its {len(labels)} rows may "
                f"be one severity or five of {len(once)}; keep {len(once)} labels if they are "
                "five, permute images and labels if they are one"
            )
    return once


@lru_cache(maxsize=64)
def _open_once(path: Path, mtime_ns: int) -> NDArray[np.uint8]:
    return open_images(path)


def missing(names: Mapping[str, str]) -> str:
    """One line that lists files or folders that would do, with their origin and size."""
    return "; or ".join(f"{what} ({where})" for what, where in names.items())
