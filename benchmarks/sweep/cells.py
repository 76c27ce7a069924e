"""From a sweep to its cells: one fully said run each, without building any of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from benchmarks.errors import UsageError
from benchmarks.spec import one_line
from benchmarks.sweep.plan import Fields, Match, Options, Override, Sweep

if TYPE_CHECKING:
    from benchmarks.learning_spec import LearningSpec
    from benchmarks.spec import RunSpec

_OF_LEARNING = ("num_tasks", "eval_every", "carry")
_OF_ALL = ("data_dir", "device", "batch_size", "source_images", "source_set", "setting_set")
_PATHS = ("data_dir", "checkpoint", "source_dir")
_ByMethod = Mapping[str, Mapping[str, str]]


@dataclass(frozen=True)
class Cell:
    """One run of a sweep.

    Attributes:
        spec: The run.
        key: Identity that needs no data: of the spec, the local paths it names, and our version.
            Other than ``run_id`` it is known before stream and weights are there. Where it is equal
            so is ``run_id``, unless data or weights were changed in place.
        by_pattern: Whether a pattern brought the method in, so that it may not fit the backbone.
    """

    spec: RunSpec | LearningSpec
    key: str
    by_pattern: bool = False

    @property
    def title(self) -> str:
        """A readable name."""
        spec = self.spec
        return f"{spec.method} {spec.stream} {spec.setting} {spec.backbone} s{spec.seed}"

    @property
    def facts(self) -> dict[str, Any]:
        """What the store keeps of a run that is not finished."""
        names = ("method", "stream", "setting", "seed")
        return {name: getattr(self.spec, name) for name in names} | {"label": self.spec.backbone}


@dataclass(frozen=True)
class _Kind:
    """How names and options become specs, of streams or of learning streams.

    Attributes:
        names: The methods.
        by_pattern: Those of them that a pattern brought in.
        share: From options to options of each method.
        make: ``resolve`` of the kind.
    """

    names: Sequence[str]
    by_pattern: set[str]
    share: Callable[[Options], _ByMethod]
    make: Callable[..., Any]


def expand(sweep: Sweep, *, data_dir: Path | None = None) -> list[Cell]:
    """All cells, seed by seed, each once; the order depends on the file alone.

    Args:
        sweep: The sweep.
        data_dir: Instead of what the file says.

    Raises:
        UsageError: For a wrong name or value of any cell, or an override that is for none.
        streams.StreamError: For a wrong stream, setting or severity.
        tta.AdapterError: For a wrong method, option or backbone.
    """
    from benchmarks.machine import package_version

    version = package_version("tta-bench")
    learning = _learning(sweep)
    kind = _learners(sweep) if learning else _adapters(sweep)
    base = kind.share(sweep.set)
    points = [(fields, kind.share(options)) for fields, options in _points(sweep)]
    overrides = [(item, kind.share(item.set)) for item in sweep.overrides]
    unused = dict(enumerate(sweep.overrides, start=1))
    cells: dict[str, Cell] = {}
    for seed, stream, backbone, setting, method, (fields, shared) in product(
        sweep.seeds,
        sweep.streams,
        sweep.backbones or ("",),
        sweep.settings or ("sequential" if learning else "continual",),
        kind.names,
        points,
    ):
        given = {"num_examples": sweep.num_examples, **sweep.common.given(), **fields}
        options = {**base[method], **shared[method]}
        for number, (override, more) in enumerate(overrides, start=1):
            if _matches(override.match, (method, stream, setting, backbone), seed):
                unused.pop(number, None)
                given |= _changes(override)
                options |= more[method]
        if data_dir is not None:
            given["data_dir"] = str(data_dir)
        spec = kind.make(
            method,
            stream,
            setting=setting,
            backbone=backbone or None,
            checkpoint=sweep.checkpoints.get(backbone),
            seed=seed,
            options=options,
            **given,
        )
        cell = Cell(spec, _key(spec, version), method in kind.by_pattern)
        cells.setdefault(cell.key, cell)
    for number, override in unused.items():
        match = override.match.model_dump(exclude_defaults=True)
        raise UsageError(f"override {number} is for no cell of the sweep: match = {match}")
    _check_names([cell.spec for cell in cells.values()])
    return list(cells.values())


def _learning(sweep: Sweep) -> bool:
    """Whether the sweep is of learning streams; what would say nothing there is refused."""
    from benchmarks.learning_cli import is_learning, refuse

    kinds = {is_learning(stream) for stream in sweep.streams}
    if len(kinds) > 1:
        raise UsageError(
            f"{', '.join(sweep.streams)}: a sweep takes streams or learning streams, not both; "
            "make two sweeps, they may share --out"
        )
    learning = kinds.pop()
    strange = set(_OF_LEARNING)
    if learning:
        strange = set(Fields.model_fields) - {*_OF_ALL, *_OF_LEARNING}
    why = "has no effect on a learning stream" if learning else "is for learning streams"
    for table in (sweep.common.given(), sweep.grid, *(o.given() for o in sweep.overrides)):
        refuse({key: True for key in table if key in strange}, why)
    return learning


def _adapters(sweep: Sweep) -> _Kind:
    from benchmarks.cli_options import guard_options, source_options
    from benchmarks.spec import resolve
    from benchmarks.words import read_methods, read_options, read_split

    names, by_pattern = read_methods(read_split(list(sweep.methods)))

    def make(method: str, stream: str, **given: Any) -> RunSpec:
        severity = given.pop("severity", None)
        pairs = {key: str(value) for key, value in given.pop("source_set", {}).items()}
        watched = (given.pop("guard", None), given.pop("guard_set", {}))
        return resolve(
            method,
            stream,
            severity=(severity,) if isinstance(severity, int) else severity,
            source_options=source_options(given.pop("subset", None), pairs),
            setting_options=given.pop("setting_set", None),
            norm_options=given.pop("norm_set", None),
            guard=guard_options(*watched, given.pop("estimate", False)),
            compiled=given.pop("compile", False),
            **given,
        )

    return _Kind(names, by_pattern, lambda options: read_options(_pairs(options), names), make)


def _learners(sweep: Sweep) -> _Kind:
    from benchmarks.learning_cli import read_learners, share_out
    from benchmarks.learning_spec import resolve_learning
    from benchmarks.words import read_split

    methods, by_pattern = read_learners(read_split(list(sweep.methods)))

    def make(method: str, stream: str, **given: Any) -> LearningSpec:
        return resolve_learning(
            method,
            stream,
            source_options=given.pop("source_set", None),
            setting_options=given.pop("setting_set", None),
            **given,
        )

    names = [method.name for method in methods]
    return _Kind(names, by_pattern, lambda options: share_out(_pairs(options), methods), make)


def _points(sweep: Sweep) -> Iterator[tuple[dict[str, Any], Options]]:
    """Fields and options of each point of the grid."""
    for values in product(*sweep.grid.values()):
        point = dict(zip(sweep.grid, values, strict=True))
        fields = {key: value for key, value in point.items() if key in Fields.model_fields}
        try:
            read = Fields(**fields).given()
        except ValidationError as error:
            raise UsageError(f"grid: {one_line(error)}") from error
        yield read, {key: value for key, value in point.items() if key not in fields}


def _pairs(options: Options) -> list[str]:
    """Options as words of ``--set``."""

    def text(value: Any) -> str:
        return ",".join(map(text, value)) if isinstance(value, tuple | list) else str(value)

    return [f"{key}={text(value)}" for key, value in options.items()]


def _changes(override: Override) -> dict[str, Any]:
    changed = override.given()
    if override.num_examples is not None:
        changed["num_examples"] = override.num_examples
    return changed


def _matches(match: Match, names: Sequence[str], seed: int) -> bool:
    wanted = (match.method, match.stream, match.setting, match.backbone)
    return (match.seed is None or seed in match.seed) and all(
        any(fnmatchcase(name, pattern) for pattern in patterns)
        for name, patterns in zip(names, wanted, strict=True)
    )


def _key(spec: RunSpec | LearningSpec, version: str) -> str:
    local = [str(getattr(spec, name, None)) for name in _PATHS]
    return spec.identity(*local, _changed(spec.checkpoint), version)


def _changed(checkpoint: str | None) -> str:
    """Size and time of a weights file, where it is on this machine."""
    try:
        found = Path(checkpoint or "").stat()
    except OSError:
        return ""
    return f"{found.st_size} {found.st_mtime_ns}" if checkpoint else ""


def _check_names(specs: Sequence[RunSpec | LearningSpec]) -> None:
    """Refuse the names that a spec takes as they are, before anything runs."""
    from benchmarks.spec import RunSpec

    for backbone, checkpoint in dict.fromkeys((s.backbone, s.checkpoint) for s in specs):
        _check_backbone(backbone, checkpoint)
    streams = [s for s in specs if isinstance(s, RunSpec)]
    for stream, names in dict.fromkeys((s.stream, s.corruptions) for s in streams):
        _check_corruptions(stream, names)
    from streams.factory import choose_domains

    for planned in dict.fromkeys((s.setting, s.corruptions, s.severity, s.order) for s in streams):
        choose_domains(*planned)


def _check_backbone(name: str, checkpoint: str | None) -> None:
    """A name of our own is loaded; of ``timm:NAME`` and the like the first word is checked."""
    from continual.models import is_model
    from tta.backbone_sources import SOURCES
    from tta.backbones import load

    kind, colon, _ = name.partition(":")
    if not is_model(name) and not (colon and kind in SOURCES):
        load(name, checkpoint=None if checkpoint is None else Path(checkpoint))


def _check_corruptions(stream: str, names: Sequence[str]) -> None:
    """Other streams than the corrupted ones know their domains by their data."""
    from streams.corruptions.names import CORRUPTIONS, EXTRA_CORRUPTIONS
    from tta.config import did_you_mean

    known = (*CORRUPTIONS, *EXTRA_CORRUPTIONS)
    for name in names if stream.endswith("-c") else ():
        if name not in known:
            near = did_you_mean(name, known)
            raise UsageError(f"unknown corruption {name!r}{near}; known: {', '.join(known)}")
