"""Open set: images of unknown classes mixed into a stream, labelled -1.

Three kinds: ``held-out:0,3,7`` takes classes of the stream itself out of the model's answer,
``stream:NAME`` brings the images of another data set, ``noise`` brings uniform noise.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from streams import corruptions as engine
from streams.clean import GeneratedSource
from streams.errors import StreamError
from streams.open_images import Foreign, Noise, open_foreign
from streams.open_order import mixed_plan
from streams.types import CLEAN, UNKNOWN, Domain, ImageSource, Ints, Provenance, Stream

if TYPE_CHECKING:
    from torch import Tensor

_SHIFT = 1 << 40  # ids of other images never meet those of the stream
_PROFILES = {32: "cifar", 64: "tiny-imagenet"}
KINDS = "held-out:0,3,7, stream:NAME or noise"


@dataclass(frozen=True, kw_only=True)
class OpenSource:
    """A source whose images may be of unknown classes.

    Attributes:
        base: The source of the known images; its positions come first.
        other: Unknown images from elsewhere, at the positions behind those of ``base``.
        labels: Labels ``(N,)`` within the known classes; ``UNKNOWN`` for the others.
        num_classes: Number of known classes.
        class_ids: Which logits of a model of all classes the known ones are, or ``None``.
        kind: What was asked for.
        ratio: Unknown images for each known one, as asked for.
    """

    base: ImageSource
    other: Noise | Foreign | None
    labels: Ints
    num_classes: int
    class_ids: tuple[int, ...] | None
    kind: str
    ratio: float

    @property
    def name(self) -> str:
        """Name of the known images."""
        return self.base.name

    @property
    def provenance(self) -> Provenance:
        """That of the known images, and where the unknown ones come from."""
        said = self.base.provenance
        other = self.other.words if self.other is not None else {}
        mixture = {"open_set": self.kind, "unknown_per_known": f"{self.ratio:g}", **other}
        return Provenance(kind=said.kind, detail={**said.detail, **mixture})

    @cached_property
    def digest(self) -> str:
        """Hash of both kinds of images."""
        other = "" if not isinstance(self.other, Foreign) else self.other.source.digest
        text = f"{self.base.digest}/{self.kind}/{self.ratio!r}/{other}"
        return hashlib.sha256(text.encode()).hexdigest()

    def check(self, domain: Domain) -> None:
        """Raise ``StreamError`` for a domain that the known images do not have."""
        self.base.check(domain)

    def images(self, positions: Ints, domain: Domain) -> Tensor:
        """Images ``(B, 3, H, W)`` uint8."""
        import torch

        count = len(self.base.labels)
        known, foreign = np.flatnonzero(positions < count), np.flatnonzero(positions >= count)
        parts = []
        if len(known):
            parts.append(self.base.images(positions[known], domain))
        if len(foreign):
            parts.append(self._others(positions[foreign] - count, domain))
        order = np.argsort(np.concatenate([known, foreign]))
        return torch.cat(parts)[torch.from_numpy(order)]

    def _others(self, numbers: Ints, domain: Domain) -> Tensor:
        assert self.other is not None
        height, width = self._size
        images = self.other.images(numbers, height, width)
        if not self.other.corrupted or not domain.severity:
            return images
        profile, seed, quality = _strengths(self.base, height)
        images = engine.corrupt(
            images,
            domain.corruption,
            domain.severity,
            ids=(numbers + _SHIFT).tolist(),
            seed=seed,
            profile=profile,
        )
        return images if quality is None else engine.recompress(images, quality=quality)

    @cached_property
    def _size(self) -> tuple[int, int]:
        """Rows and columns of the stream's images, by its first."""
        try:
            self.base.check(CLEAN)
            domain = CLEAN
        except StreamError:
            domain = self._first_domain
        height, width = self.base.images(np.zeros(1, dtype=np.int64), domain).shape[2:]
        return int(height), int(width)

    @property
    def _first_domain(self) -> Domain:
        own: Any = getattr(self.base, "domains", None)
        arrays: Any = getattr(self.base, "arrays", None)
        if own is not None:
            first: Domain = own(engine.CORRUPTIONS, 5)[0]
            return first
        name = next(iter(arrays)) if arrays else engine.CORRUPTIONS[0]
        return Domain(name=name, corruption=name, severity=0 if arrays else 5)


def mix(stream: Stream, kind: str, ratio: float = 1.0, data_dir: Path | None = None) -> Stream:
    """A stream with unknown images between the known ones.

    In each domain (in each visit of one) unknown images are spread uniformly at random among the
    known ones, keyed by the stream's seed; none comes twice in a visit. Where the domains are
    shuffled together they are spread over the whole stream, in the domain of the image before.

    Args:
        stream: Known images, and with ``held-out`` the unknown ones too.
        kind: ``held-out:0,3,7`` (labels), ``stream:NAME`` (a name of ``list_streams()``; images
            resized to the side of the stream and corrupted alike) or ``noise``.
        ratio: Unknown images for each known one; fewer where there are not as many.
        data_dir: Folder of the other stream's data.

    Raises:
        StreamError: For a wrong kind, class or ratio, data that is missing, or a stream that
            cannot be mixed.
    """
    if not math.isfinite(ratio) or ratio <= 0:
        raise StreamError(f"open_ratio={ratio} is out of range: it must be above 0")
    if getattr(stream.source, "images_at", None) is not None:
        raise StreamError(f"{stream.name} has an order of its own: no open set can be mixed in")
    base, plan = stream.source, stream.plan
    word, _, detail = kind.partition(":")
    if word == "held-out":
        source = _held_out(base, kind, detail, ratio)
    elif word == "stream" and detail:
        other = open_foreign(detail, data_dir)
        _check_alike(base, plan.domains)
        source = _with(base, other, kind, ratio)
    elif kind == "noise":
        source = _with(base, Noise(count=math.ceil(ratio * len(base.labels))), kind, ratio)
    else:
        raise StreamError(f"open_set={kind!r} is none of {KINDS}")
    known = source.labels[plan.positions] >= 0
    extra = np.arange(len(base.labels), len(source.labels))

    def pool(domain: int) -> Ints:
        if word != "held-out":
            return extra
        return np.unique(plan.positions[~known & (plan.domain_ids == domain)]).astype(np.int64)

    made = mixed_plan(
        plan, known, pool, ratio=ratio, seed=stream.seed, batch_size=stream.batch_size
    )
    unknown = int((source.labels[made.positions] < 0).sum())
    if not 0 < unknown < len(made.positions):
        raise StreamError(f"open_set={kind!r} leaves {unknown} unknown of {len(made.positions)}")
    return replace(stream, source=source, plan=made)


def _held_out(base: ImageSource, kind: str, detail: str, ratio: float) -> OpenSource:
    words = [word.strip() for word in detail.split(",") if word.strip()]
    if not words or not all(word.isdecimal() for word in words):
        raise StreamError(f"open_set={kind!r} must name labels, such as held-out:0,3,7")
    held = sorted({int(word) for word in words})
    kept = [label for label in range(base.num_classes) if label not in held]
    if held[-1] >= base.num_classes or len(kept) < 2:
        raise StreamError(
            f"open_set={kind!r} is out of range: {base.name} has labels 0 to "
            f"{base.num_classes - 1}, and two must be known"
        )
    table = np.full(base.num_classes, UNKNOWN, dtype=np.int64)
    table[kept] = np.arange(len(kept))
    own: Sequence[int] | None = getattr(base, "class_ids", None)
    return OpenSource(
        base=base,
        other=None,
        labels=table[base.labels],
        num_classes=len(kept),
        class_ids=tuple(kept if own is None else (own[label] for label in kept)),
        kind="held-out:" + ",".join(map(str, held)),
        ratio=ratio,
    )


def _with(base: ImageSource, other: Noise | Foreign, kind: str, ratio: float) -> OpenSource:
    unknown = np.full(other.count, UNKNOWN, dtype=np.int64)
    return OpenSource(
        base=base,
        other=other,
        labels=np.concatenate([base.labels, unknown]),
        num_classes=base.num_classes,
        class_ids=getattr(base, "class_ids", None),
        kind=kind,
        ratio=ratio,
    )


def _check_alike(base: ImageSource, domains: Sequence[Domain]) -> None:
    """Raise ``StreamError`` for a corruption that the engine does not have."""
    from streams.corruptions.registry import find

    for domain in domains:
        if domain.severity:
            try:
                find(domain.corruption)
            except StreamError as error:
                raise StreamError(
                    f"{base.name} has corruptions that cannot be made for other images ({error}); "
                    "use held-out classes or noise"
                ) from None


def _strengths(base: ImageSource, side: int) -> tuple[str, int, int | None]:
    """Table, seed and JPEG quality of the corruptions of a source, or of one of that side."""
    if isinstance(base, GeneratedSource):
        return base.profile, base.corruption_seed, base.jpeg_quality
    profile = _PROFILES.get(side, "imagenet")
    return profile, 0, 85 if profile == "imagenet" else None
