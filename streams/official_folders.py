"""Published ImageNet corruptions: <corruption>/<severity>/<wnid>/*.JPEG, read as they are."""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from streams.errors import StreamError
from streams.imagenet import selection_5k
from streams.imagenet_classes import WHAT
from streams.readers.class_folders import folders_of, list_classes
from streams.readers.images import Prepare, read_image
from streams.robustbench_bridge import imagenet_class_to_id
from streams.types import Domain, Ints, Provenance

if TYPE_CHECKING:
    from torch import Tensor

NUM_CLASSES = 1000
_AS_IT_IS = Prepare(resize=None, height=224, width=224)


@dataclass(frozen=True, kw_only=True)
class OfficialFolders:
    """Official images, 224x224, read as they are.

    Attributes:
        name: Name for results.
        root: The folder of corruptions.
        groups: Folders between the two that archives unpack to where they are not joined into one.
        files: ``<wnid>/<file>`` of each image. With all of them sorted by file name, hence mixed in
            class; a subset is in the order of its list.
        labels: Class of each image.
        subset: ``full`` or ``robustbench-5k``.
    """

    name: str
    root: Path
    groups: tuple[str, ...]
    files: tuple[str, ...]
    labels: Ints
    subset: str
    num_classes: int = NUM_CLASSES

    @property
    def provenance(self) -> Provenance:
        """The official archive, identified by its list of files."""
        detail = {"files": f"{self.root.name}, {len(self.files)} an image set"}
        detail |= {"list": self.digest[:16], "subset": self.subset}
        return Provenance(kind="official", detail=detail)

    @cached_property
    def digest(self) -> str:
        """Hash of the list of files."""
        return hashlib.sha256("\n".join(self.files).encode()).hexdigest()

    def check(self, domain: Domain) -> None:
        """Raise ``StreamError`` for a corruption and severity without a folder."""
        folder = self._folder(domain)
        if not folder.is_dir():
            raise StreamError(f"{folder} is missing: {self.name} has no {domain.name} there")

    def images(self, positions: Ints, domain: Domain) -> Tensor:
        """Images ``(B, 3, 224, 224)`` uint8.

        Raises:
            StreamError: For an image that is missing, does not decode or has another size, with its
                path and position.
        """
        import torch

        folder = self._folder(domain)
        out = np.empty((len(positions), 224, 224, 3), dtype=np.uint8)
        for row, position in enumerate(positions.tolist()):
            path = folder / self.files[position]
            out[row] = read_image(path, _AS_IT_IS, str(path))
        return torch.from_numpy(out).permute(0, 3, 1, 2).contiguous()

    def _folder(self, domain: Domain) -> Path:
        below = Path(domain.corruption, str(domain.severity))
        for group in self.groups:
            if (self.root / group / below).is_dir():
                return self.root / group / below
        return self.root / below


def open_official(
    name: str,
    base: Path,
    *,
    corruptions: Collection[str],
    groups: tuple[str, ...] = (),
    subset: str = "full",
) -> OfficialFolders | None:
    """Open ``<name>/<corruption>/<severity>`` below ``base``; ``None`` where nothing is there.

    One image set is listed, not all 75: the archives hold the same images in each.

    Args:
        name: Name of the data set and of its folder; ``base`` may be that folder.
        base: The data folder.
        corruptions: Names of the data set's corruptions; other folders are passed over.
        groups: Folders between the two that archives unpack to where they are not joined.
        subset: ``full`` or ``robustbench-5k``.

    Raises:
        StreamError: For a class folder that is empty or not one of the 1,000, or an image of the
            subset that is not there.
    """
    root = base / name if (base / name).is_dir() else base
    first = _first_set(root, groups, corruptions)
    if first is None:
        return None
    found = list_classes(first, imagenet_class_to_id(), WHAT)
    if subset != "full":
        files = [Path(file).name for file, _ in found]
        found = [found[i] for i in selection_5k(files, [label for _, label in found], str(first))]
    return OfficialFolders(
        name=name,
        root=root,
        groups=groups,
        files=tuple(file for file, _ in found),
        labels=np.array([label for _, label in found], dtype=np.int64),
        subset=subset,
    )


def _first_set(root: Path, groups: tuple[str, ...], corruptions: Collection[str]) -> Path | None:
    """The first folder ``<corruption>/<severity>``, by name."""
    for above in (root, *(root / group for group in groups)):
        for corruption in (name for name in folders_of(above) if name in corruptions):
            for severity in "12345":
                if (above / corruption / severity).is_dir():
                    return above / corruption / severity
    return None
