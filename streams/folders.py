"""Images in folders as a source: decoded batch by batch, one domain or several."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from streams import membership
from streams.clean import check_labels
from streams.errors import StreamError
from streams.readers.class_folders import folders_of, list_classes
from streams.readers.images import EVALUATION, DecodedImages, Prepare, read_image
from streams.types import Domain, Ints, Provenance

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class FolderImages:
    """Image files and their classes.

    Attributes:
        name: Name for results.
        root: Folder that ``files`` are relative to.
        files: Path of each image.
        labels: Class of each image ``(N,)``.
        num_classes: Number of classes.
        parts: Domains, each with the positions of its images; they may not overlap.
        prepare: Resize and crop.
        class_ids: Of a subset of ImageNet, which of the 1,000 each class is; labels number the
            classes within these, and a model of 1,000 classes answers with these logits.
        kind: ``official`` for a published archive, else ``arrays``.
        cache: Images decoded last.
    """

    name: str
    root: Path
    files: Sequence[str]
    labels: Ints
    num_classes: int
    parts: Mapping[str, Ints]
    prepare: Prepare = EVALUATION
    class_ids: tuple[int, ...] | None = None
    kind: str = "official"
    cache: DecodedImages = field(default_factory=DecodedImages, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_labels(self.labels, self.num_classes, str(self.root))

    @property
    def provenance(self) -> Provenance:
        """The folder, how many images it has, and how they are prepared."""
        kind = "official" if self.kind == "official" else "arrays"
        detail = {
            "files": f"{self.root.name}, {len(self.files)} images",
            "list": self.digest[:16],
            "prepared": str(self.prepare),
        }
        return Provenance(kind=kind, detail=detail)  # type: ignore[arg-type]

    @cached_property
    def digest(self) -> str:
        """Hash of files, labels, domains and preparation; the pixels are not read for it."""
        made = hashlib.sha256("\n".join(self.files).encode())
        made.update(np.ascontiguousarray(self.labels, dtype="<i8").tobytes())
        made.update(f"{list(self.parts)}/{self.prepare}/{self.class_ids}".encode())
        return made.hexdigest()

    def domains(self, corruptions: Sequence[str], severity: int | Sequence[int]) -> list[Domain]:
        """The domains asked for; all of them by default."""
        have = [Domain(name=name, corruption=name, severity=0) for name in self.parts]
        return membership.choose(have, corruptions, severity, self.name)

    def members(self, domain: Domain) -> Ints:
        """Positions of a domain's images."""
        return self.parts[domain.corruption]

    def check(self, domain: Domain) -> None:
        """Raise ``StreamError`` for a domain that is not there."""
        if domain.corruption not in self.parts:
            raise StreamError(
                f"{self.name} has no domain {domain.name!r}; it has {', '.join(self.parts)}"
            )

    def images(self, positions: Ints, domain: Domain) -> Tensor:
        """Images ``(B, 3, H, W)`` uint8.

        Raises:
            StreamError: For an image that is missing or damaged, with its path and position.
        """
        import torch

        out = np.stack([self._image(position) for position in positions.tolist()])
        return torch.from_numpy(out).permute(0, 3, 1, 2).contiguous()

    def _image(self, position: int) -> NDArray[np.uint8]:
        path = self.root / self.files[position]
        return self.cache.get(
            position, lambda: read_image(path, self.prepare, f"{path} (image {position})")
        )


def open_class_folders(
    name: str, root: Path, classes: Mapping[str, int], what: str, *, class_ids: tuple[int, ...]
) -> FolderImages:
    """A published set of class folders that is one domain.

    Args:
        name: Name of the stream, and of its domain.
        root: The folder of class folders.
        classes: Label of each folder that may be there.
        what: What the classes are, for messages.
        class_ids: Which of the 1,000 classes each label is; all 1,000 need no mask.

    Raises:
        StreamError: For a folder that is no class, or one without images.
    """
    found = list_classes(root, classes, what)
    return FolderImages(
        name=name,
        root=root,
        files=tuple(file for file, _ in found),
        labels=np.array([label for _, label in found], dtype=np.int64),
        num_classes=len(class_ids),
        parts={name: np.arange(len(found))},
        class_ids=None if class_ids == tuple(range(1000)) else class_ids,
    )


def find_folder(base: Path, names: Sequence[str], classes: Mapping[str, int]) -> Path | None:
    """The first of ``base/<name>`` and ``base`` that holds a class folder; ``None`` without one."""
    for folder in (*(base / name for name in names), base):
        if any(name in classes for name in folders_of(folder)):
            return folder
    return None
