"""Clean images, and the source that corrupts them on the fly."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from streams import corruptions
from streams.errors import StreamError
from streams.types import CLEAN, Domain, Ints, Provenance

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class CleanImages:
    """Images without corruption.

    Attributes:
        name: What they are ("Fashion-MNIST test").
        labels: Labels ``(N,)`` in ``[0, num_classes)``.
        num_classes: Number of classes.
        read: Images ``(B, 3, H, W)`` uint8 at positions ``(B,)``.
        digest: Hash of pixels and labels.
        ids: Image ids ``(N,)`` that key the corruptions; the positions where ``None``.
        facts: What else the provenance says of the images.
        raw: One image ``(H, W, 3)`` uint8 by position, before it is resized and cropped; what
            ``read`` gives where ``None``.
    """

    name: str
    labels: Ints
    num_classes: int
    read: Callable[[Ints], Tensor]
    digest: str
    ids: Ints | None = None
    facts: Mapping[str, str] = field(default_factory=dict)
    raw: Callable[[int], NDArray[np.uint8]] | None = None

    def __post_init__(self) -> None:
        check_labels(self.labels, self.num_classes, self.name)


@dataclass(frozen=True, kw_only=True)
class OverClean:
    """What a source over clean images has from them."""

    clean: CleanImages

    @property
    def name(self) -> str:
        """Name of the clean images."""
        return self.clean.name

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return self.clean.num_classes

    @property
    def labels(self) -> Ints:
        """Labels ``(N,)``."""
        return self.clean.labels


@dataclass(frozen=True, kw_only=True)
class GeneratedSource(OverClean):
    """Corruptions of clean images by our engine.

    Attributes:
        profile: Parameter table of the corruptions.
        corruption_seed: Seed of their draws.
        jpeg_quality: Quality at which a corrupted image is encoded and decoded again, as the
            files of ImageNet-C were; ``None`` leaves it out.
    """

    profile: str = "cifar"
    corruption_seed: int = 0
    jpeg_quality: int | None = None

    @cached_property
    def provenance(self) -> Provenance:
        """Images, generator and version, parameter table, seed, re-encoding, kind of frost."""
        encoded = {} if self.jpeg_quality is None else {"encoded": f"JPEG {self.jpeg_quality}"}
        return Provenance(
            kind="generated",
            detail={
                "clean": self.clean.name,
                **self.clean.facts,
                **encoded,
                "generator": f"tta-bench {corruptions.GENERATOR_VERSION}",
                "parameters": self.profile,
                "seed": str(self.corruption_seed),
                "frost": corruptions.frost_source(),
            },
        )

    @cached_property
    def digest(self) -> str:
        """Hash of the clean images and of everything that the corruption depends on."""
        text = f"{self.clean.digest}/{self.provenance}/{corruptions.frost_digest()}"
        return hashlib.sha256(text.encode()).hexdigest()

    def check(self, domain: Domain) -> None:
        """Raise ``StreamError`` for a corruption or severity that the engine does not have."""
        from streams.corruptions.registry import find, find_level

        if domain != CLEAN:
            find(domain.corruption)
            find_level(self.profile, domain.corruption, domain.severity)

    def images(self, positions: Ints, domain: Domain) -> Tensor:
        """Images ``(B, 3, H, W)`` uint8, corrupted as the domain says."""
        clean = self.clean.read(positions)
        if domain.corruption == "none":
            return clean
        ids = positions if self.clean.ids is None else self.clean.ids[positions]
        made = corruptions.corrupt(
            clean,
            domain.corruption,
            domain.severity,
            ids=ids.tolist(),
            seed=self.corruption_seed,
            profile=self.profile,
        )
        if self.jpeg_quality is None:
            return made
        return corruptions.recompress(made, quality=self.jpeg_quality)


@dataclass(frozen=True)
class InMemory:
    """Reads arrays ``(N, H, W, 3)`` uint8 by position."""

    images: NDArray[np.uint8]

    def __call__(self, positions: Ints) -> Tensor:
        """Images ``(B, 3, H, W)`` uint8."""
        import torch

        # Indexed by numpy: torch takes neither negative strides nor read-only arrays.
        return torch.from_numpy(self.images[positions]).permute(0, 3, 1, 2).contiguous()


def in_memory(
    images: NDArray[np.uint8],
    labels: Ints,
    *,
    name: str,
    num_classes: int,
    digest: str | None = None,
) -> CleanImages:
    """Clean images from arrays ``(N, H, W, 3)`` uint8 and labels ``(N,)``."""
    return CleanImages(
        name=name,
        labels=labels,
        num_classes=num_classes,
        read=InMemory(images),
        digest=digest or digest_arrays(images, labels),
    )


def digest_arrays(*arrays: NDArray[np.generic]) -> str:
    """Hex SHA-256 over shapes, types and bytes."""
    made = hashlib.sha256()
    for array in arrays:
        made.update(f"{array.shape}{array.dtype.str}".encode())
        made.update(np.ascontiguousarray(array).data)
    return made.hexdigest()


def check_labels(labels: Ints, num_classes: int, where: str) -> None:
    """Raise ``StreamError`` at the first label outside ``[0, num_classes)``."""
    wrong = np.flatnonzero((labels < 0) | (labels >= num_classes))
    if len(wrong):
        raise StreamError(
            f"{where}: label {labels[wrong[0]]} at index {wrong[0]} is out of range: "
            f"there are {num_classes} classes, 0 to {num_classes - 1}"
        )
