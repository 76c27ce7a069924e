"""Clean images as a stream of one domain."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from streams import membership
from streams.clean import OverClean
from streams.errors import StreamError
from streams.types import CLEAN, Domain, Ints, Provenance

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class CleanSource(OverClean):
    """Images without corruption; the one domain is ``clean``."""

    @property
    def provenance(self) -> Provenance:
        """The images and their digest."""
        detail = {"clean": self.clean.name, **self.clean.facts, "digest": self.clean.digest[:16]}
        return Provenance(kind="official", detail=detail)

    @property
    def digest(self) -> str:
        """Hash of the images."""
        return self.clean.digest

    def domains(self, corruptions: Sequence[str], severity: int | Sequence[int]) -> list[Domain]:
        """The one domain, whatever the default is."""
        return membership.choose([CLEAN], corruptions, severity, self.name)

    def check(self, domain: Domain) -> None:
        """Raise ``StreamError`` for anything but the clean images."""
        if domain != CLEAN:
            raise StreamError(f"{self.name} has clean images alone, not {domain.name!r}")

    def images(self, positions: Ints, domain: Domain) -> Tensor:
        """Images ``(B, 3, H, W)`` uint8."""
        return self.clean.read(positions)
