"""Images of a stream, made again from the spec of a run."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from streams.types import Domain, Stream

# Sizes that keep a page small: images of a domain, their side in pixels, domains.
IMAGES = 4
SIDE = 64
MAX_DOMAINS = 30
_FIELDS = (
    *("setting", "severity", "corruptions", "num_examples", "batch_size", "seed", "shuffle"),
    *("data_dir", "setting_options", "order", "source_options", "open_set", "open_ratio"),
)


@dataclass(frozen=True, kw_only=True)
class Strip:
    """A few images of one domain, side by side in one picture.

    Attributes:
        domain: Name of the domain.
        severity: Severity; 0 for clean images.
        src: The picture as a data URI.
        count: Images in it.
    """

    domain: str
    severity: int
    src: str
    count: int


@dataclass(frozen=True, kw_only=True)
class Picture:
    """What a stream looks like; ``missing`` says why it is not shown.

    Attributes:
        strips: A strip for each domain, in the order of the stream.
        left_out: Domains that are not shown for want of room.
        num_classes: Classes to choose from.
        missing: One line, empty where there are strips.
    """

    strips: tuple[Strip, ...] = ()
    left_out: int = 0
    num_classes: int | None = None
    missing: str = ""


def picture(spec: Mapping[str, Any]) -> Picture:
    """The first images of each domain, as the run saw them.

    Args:
        spec: ``spec.json`` of a run on a stream that is not one of learning.
    """
    import streams
    from streams.errors import StreamError

    fields = {key: spec[key] for key in _FIELDS if key in spec}
    try:
        stream = streams.create(spec["stream"], **fields)
    except (StreamError, OSError, KeyError, TypeError) as error:
        return Picture(missing=f"Its data is not on this machine: {_line(error)}")
    shown = stream.domains[:MAX_DOMAINS]
    try:
        strips = [_strip(stream, number, domain) for number, domain in enumerate(shown)]
    except (StreamError, OSError) as error:
        return Picture(num_classes=stream.num_classes, missing=f"Cannot be read: {_line(error)}")
    return Picture(
        strips=tuple(strip for strip in strips if strip is not None),
        left_out=len(stream.domains) - len(shown),
        num_classes=stream.num_classes,
    )


def _strip(stream: Stream, number: int, domain: Domain) -> Strip | None:
    plan = stream.plan
    places = np.flatnonzero(plan.domain_ids == number)
    if not len(places):
        return None  # a setting may leave a domain out
    # The same images in every domain, where the domains share them.
    positions = plan.positions[places].astype(np.int64)
    first = np.unique(positions, return_index=True)[1][:IMAGES]
    placed: Any = getattr(stream.source, "images_at", None)
    if placed is None:
        images = stream.source.images(positions[first], domain)
    else:
        images = placed(positions[first], domain, places[first])
    return Strip(
        domain=domain.name,
        severity=domain.severity,
        src=_data_uri(images.numpy()),
        count=len(first),
    )


def _data_uri(images: np.ndarray[Any, Any]) -> str:
    """Images ``(B, C, H, W)`` uint8 in a row; those of photographs become small JPEGs."""
    from PIL import Image

    photographs = max(images.shape[2:]) > SIDE
    parts = []
    for image in images:
        pixels = image[0] if len(image) == 1 else image.transpose(1, 2, 0)
        part = Image.fromarray(pixels).convert("RGB")
        if photographs:
            part.thumbnail((SIDE, SIDE))
        parts.append(part)
    width, height = parts[0].size
    row = Image.new("RGB", (width * len(parts), height))
    for place, part in enumerate(parts):
        row.paste(part, (place * width, 0))
    grey = all(np.array_equal(image[0], channel) for image in images for channel in image)
    file = io.BytesIO()
    kind = "jpeg" if photographs else "png"
    (row.convert("L") if grey else row).save(file, kind, **({"quality": 85} if photographs else {}))
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
