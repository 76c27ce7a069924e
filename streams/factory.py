"""From a name and a protocol to a stream."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from inspect import signature
from operator import index
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from streams import membership, settings
from streams.corruptions.names import CORRUPTIONS
from streams.domain_orders import arrange
from streams.errors import StreamError
from streams.scan import scan
from streams.types import Domain, ImageSource, Stream

if TYPE_CHECKING:
    import torch

_SOURCES = scan("streams.sources", "stream")
DEFAULT_BATCH_SIZE = 200


def list_streams() -> list[str]:
    """Sorted names of the streams."""
    return _SOURCES.names()


def list_settings() -> list[str]:
    """Sorted names of the settings."""
    return settings.list_settings()


def create(
    name: str,
    *,
    setting: str = "continual",
    severity: int | Sequence[int] = 5,
    corruptions: Sequence[str] | None = None,
    num_examples: int | None = None,
    skip_examples: int = 0,
    batch_size: int = DEFAULT_BATCH_SIZE,
    seed: int = 0,
    shuffle: bool = True,
    data_dir: Path | str | None = None,
    dtype: torch.dtype | None = None,
    setting_options: Mapping[str, float | int | str] | None = None,
    order: str = "default",
    source_options: Mapping[str, Any] | None = None,
    open_set: str | None = None,
    open_ratio: float = 1.0,
) -> Stream:
    """Open a source of images and plan a stream over it; no image is read yet.

    Args:
        name: A name of ``list_streams()``.
        setting: A name of ``list_settings()``.
        severity: One severity or several, 1 to 5; with several, each is visited in turn.
        corruptions: Names in the order of the stream; the 15 standard ones by default.
        num_examples: First images of the source that take part; all by default.
        skip_examples: Images of every domain that are left out before these.
        batch_size: Samples a step.
        seed: Seed of every permutation; the pixels do not depend on it.
        shuffle: Whether images are permuted inside a domain.
        data_dir: Folder of the data; embedded streams need none.
        dtype: Floating type of the images, float32 by default.
        setting_options: Options of the setting; see ``streams.settings.options``.
        order: Order of the corruptions, a name of ``streams.domain_orders.ORDERS``; the default is
            the standard order, or that of ``corruptions``.
        source_options: Options of the source, such as ``subset="robustbench-5k"`` of ImageNet-C.
        open_set: Unknown images to mix in: ``held-out:0,3,7``, ``stream:NAME`` or ``noise``; see
            ``streams.open_set.mix``.
        open_ratio: Unknown images for each known one.

    Raises:
        StreamError: For a wrong name or value, or where the data is missing or damaged.
    """
    module = _SOURCES.load(name)
    names = membership.default_names(module, corruptions)
    chosen = choose_domains(setting, names, severity, order)
    source = open_stream_source(name, data_dir, source_options)
    stream = plan_stream(
        name,
        source,
        membership.own_domains(source, chosen, setting),
        setting=setting,
        num_examples=num_examples,
        skip_examples=skip_examples,
        batch_size=batch_size,
        seed=seed,
        shuffle=shuffle,
        dtype=dtype,
        setting_options=setting_options,
    )
    if open_set is None:
        return stream
    from streams.open_set import mix

    return mix(stream, open_set, open_ratio, None if data_dir is None else Path(data_dir))


def open_stream_source(
    name: str, data_dir: Path | str | None = None, options: Mapping[str, Any] | None = None
) -> ImageSource:
    """The source of a stream.

    Raises:
        StreamError: For a wrong name or option, or where the data is missing or damaged.
    """
    module = _SOURCES.load(name)
    folder = Path(data_dir) if data_dir is not None else None
    made: ImageSource = module.open_source(folder, **_options_of(name, module, options))
    return made


def _options_of(
    name: str, module: ModuleType, given: Mapping[str, Any] | None
) -> Mapping[str, Any]:
    """The options, if the source takes them.

    Raises:
        StreamError: For an option that it does not have.
    """
    known = [key for key in signature(module.open_source).parameters if key != "data_dir"]
    for key in given or {}:
        if key not in known:
            have = f"it has {', '.join(known)}" if known else "it has none"
            raise StreamError(f"stream {name!r} has no option {key!r}; {have}")
    return given or {}


def plan_stream(
    name: str,
    source: ImageSource,
    domains: Sequence[Domain],
    *,
    setting: str,
    num_examples: int | None,
    batch_size: int,
    seed: int,
    shuffle: bool,
    dtype: torch.dtype | None,
    skip_examples: int = 0,
    setting_options: Mapping[str, float | int | str] | None = None,
) -> Stream:
    """Plan a stream over an open source.

    Raises:
        StreamError: For a size that the source does not have, or a domain it cannot give.
    """
    total = membership.most_images(source, domains)
    skip = whole("skip_examples", skip_examples)
    if not 0 <= skip < total:
        raise StreamError(f"skip_examples={skip} is out of range: {name} has {total} images")
    count = total - skip if num_examples is None else whole("num_examples", num_examples)
    batch_size, seed = whole("batch_size", batch_size), whole("seed", seed)
    if not 1 <= count <= total - skip:
        left = f" left after {skip}" if skip else ""
        raise StreamError(
            f"num_examples={count} is out of range: {name} has {total - skip} images{left}"
        )
    if batch_size < 1:
        raise StreamError(f"batch_size={batch_size} is out of range: it must be at least 1")
    if len({d.name for d in domains}) != len(domains):
        raise StreamError("a domain is named twice: give each corruption and severity once")
    for domain in domains:
        source.check(domain)
    options = settings.changed_options(setting, setting_options)
    own_plan: Any = getattr(source, "plan", None)
    if own_plan is not None and (setting != "continual" or options):
        raise StreamError(f"{name} has an order of its own: leave the setting out, not {setting!r}")
    request = settings.Request(
        domains=tuple(domains),
        positions=membership.first_images(source, domains, count, skip),
        labels=source.labels,
        batch_size=batch_size,
        seed=seed,
        shuffle=shuffle,
        options=options,
    )
    return Stream(
        name=name,
        source=source,
        plan=(
            membership.restrict(settings.make_plan(setting, request), source, batch_size)
            if own_plan is None
            else own_plan(request)
        ),
        setting=setting,
        batch_size=batch_size,
        seed=seed,
        dtype=dtype,
        options=options,
    )


def choose_domains(
    setting: str,
    corruptions: Sequence[str] | None,
    severity: int | Sequence[int],
    order: str = "default",
) -> list[Domain]:
    """Domains that a setting visits, in the named order of corruptions.

    Raises:
        StreamError: For a wrong setting, order, corruption or severity.
    """
    given = CORRUPTIONS if corruptions is None else corruptions
    names = arrange([given] if isinstance(given, str) else given, order)
    return (settings.domain_maker(setting) or domains_of)(names, severity)


def domains_of(corruptions: Sequence[str], severity: int | Sequence[int]) -> list[Domain]:
    """Domains of every corruption at every severity, severities outermost.

    Raises:
        StreamError: For a severity outside 1 to 5 or an empty choice.
    """
    given = severity if isinstance(severity, Iterable) else [severity]
    severities = [whole("severity", value) for value in given]
    corruptions = [corruptions] if isinstance(corruptions, str) else corruptions
    for value in severities:
        if value not in range(1, 6):
            raise StreamError(f"severity={value} is out of range: it must be 1, 2, 3, 4 or 5")
    if not severities or not len(corruptions):
        raise StreamError("a stream needs at least one corruption and one severity")
    several = len(severities) > 1
    return [
        Domain(name=f"{name}_{value}" if several else name, corruption=name, severity=value)
        for value in severities
        for name in corruptions
    ]


def whole(name: str, value: Any) -> int:
    """A Python integer from any integer.

    Raises:
        StreamError: For a value that is no integer.
    """
    try:
        return index(value)
    except TypeError:
        raise StreamError(f"{name}={value!r} must be an integer") from None
