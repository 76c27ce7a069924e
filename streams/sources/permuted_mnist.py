"""Permuted Fashion-MNIST: ten fixed orders of the pixels as domains; the images are embedded.

The permuted task of Goodfellow et al.: An empirical investigation of catastrophic forgetting in
gradient-based neural networks, 2013, arXiv:1312.6211, on Fashion-MNIST's test images, so that no
download is needed. ``permutation_3`` is the same order in every run and on every machine.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from streams import membership
from streams.clean import CleanImages
from streams.errors import StreamError
from streams.order import rng
from streams.sources import fashion_mnist_c
from streams.types import CLEAN, Domain, Ints, Provenance

if TYPE_CHECKING:
    from torch import Tensor

_SIDE, _PAD = 28, 2
_PREFIX = "permutation_"
_MOST = 1000


@dataclass(frozen=True, kw_only=True)
class PermutedImages:
    """Images with the pixels of their inner 28x28 in another order; the border stays black.

    Attributes:
        clean: The images, 32x32 with a border of two pixels.
        seed: Seed of all permutations.
    """

    clean: CleanImages
    seed: int = 0
    name: str = "permuted Fashion-MNIST test"
    num_classes: int = 10

    @property
    def labels(self) -> Ints:
        """Labels ``(N,)``."""
        return self.clean.labels

    @property
    def provenance(self) -> Provenance:
        """The images and the seed."""
        detail = {"clean": self.clean.name, "permutations": "of 28x28 pixels"}
        return Provenance(kind="generated", detail=detail | {"seed": str(self.seed)})

    @property
    def digest(self) -> str:
        """Hash of the images and the seed."""
        return hashlib.sha256(f"{self.clean.digest}/permuted/{self.seed}".encode()).hexdigest()

    def domains(self, corruptions: Sequence[str], severity: int | Sequence[int]) -> list[Domain]:
        """``permutation_1`` to ``permutation_10``, or those asked for, to ``permutation_1000``."""
        asked = [name for name in corruptions if _number(name) > 0]
        names = asked or [f"{_PREFIX}{number}" for number in range(1, 11)]
        have = [Domain(name=name, corruption=name, severity=0) for name in names]
        return membership.choose(have, corruptions, severity, self.name)

    def check(self, domain: Domain) -> None:
        """Raise ``StreamError`` for a name that is no permutation."""
        if domain != CLEAN and not _number(domain.corruption):
            raise StreamError(
                f"{self.name} has no domain {domain.name!r}; write {_PREFIX}1 to {_PREFIX}{_MOST}"
            )

    def images(self, positions: Ints, domain: Domain) -> Tensor:
        """Images ``(B, 3, 32, 32)`` uint8."""
        images = self.clean.read(positions)
        if domain == CLEAN:
            return images
        inner = images[:, :, _PAD:-_PAD, _PAD:-_PAD]
        order = _order(self.seed, _number(domain.corruption))
        inner.copy_(inner.flatten(2)[:, :, list(order)].view(inner.shape))
        return images


def open_source(data_dir: Path | None = None) -> PermutedImages:
    """The embedded images; ``data_dir`` is not needed and not read."""
    return PermutedImages(clean=fashion_mnist_c.open_source().clean)


def _number(name: str) -> int:
    """The number of a permutation, 0 for any other name."""
    digits = name.removeprefix(_PREFIX)
    valid = name.startswith(_PREFIX) and digits.isdecimal() and str(int(digits)) == digits
    return int(digits) if valid and int(digits) <= _MOST else 0


@lru_cache(maxsize=32)
def _order(seed: int, number: int) -> tuple[int, ...]:
    return tuple(rng(seed, "pixel permutation", number).permutation(_SIDE * _SIDE).tolist())
