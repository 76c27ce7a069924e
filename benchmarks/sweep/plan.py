"""A sweep as data: one TOML file, and the cells that it stands for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from benchmarks.errors import UsageError
from benchmarks.spec import one_line
from benchmarks.toml import TomlError, parse_toml
from tta.config import did_you_mean

Value = bool | int | float | str
# Options of methods; a list is written as on the command line, with commas.
Options = dict[str, Value | tuple[Value, ...]]


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Fields(_Strict):
    """``[common]``: what `tta-bench run` takes beside the grid, under the names it has there.

    The last three are of learning streams alone, and those above ``data_dir`` of all other streams.
    """

    severity: int | tuple[int, ...] | None = None
    corruptions: tuple[str, ...] | None = None
    shuffle: bool | None = None
    order: str | None = None
    subset: str | None = None
    open_set: str | None = None
    open_ratio: float | None = None
    norm: str | None = None
    norm_set: dict[str, float | int | str] | None = None
    window: int | None = None
    guard: str | None = None
    guard_set: dict[str, Value] | None = None
    estimate: bool | None = None
    budget: dict[str, float | int] | None = None
    layout: str | None = None
    amp: str | None = None
    compile: bool | None = None
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    source_dir: str | None = None
    dtype: str | None = None
    data_dir: str | None = None
    device: str | None = None
    batch_size: int | None = Field(default=None, ge=1)
    source_images: int | None = None
    source_set: dict[str, int | str] | None = None
    setting_set: dict[str, float | int | str] | None = None
    num_tasks: int | None = None
    eval_every: int | None = None
    carry: bool | None = None

    def given(self) -> dict[str, Any]:
        """The fields that were given."""
        fields = {name: getattr(self, name) for name in Fields.model_fields}
        return {name: value for name, value in fields.items() if value is not None}


class Match(_Strict):
    """Cells that an override is for: names or patterns, one or a list; left out: any."""

    method: tuple[str, ...] = ("*",)
    stream: tuple[str, ...] = ("*",)
    setting: tuple[str, ...] = ("*",)
    backbone: tuple[str, ...] = ("*",)
    seed: tuple[int, ...] | None = None

    @field_validator("*", mode="before")
    @classmethod
    def _listed(cls, value: Any) -> Any:
        return [value] if isinstance(value, str | int) else value


class Override(Fields):
    """``[[overrides]]``: fields and options of some cells; a later one goes over an earlier one."""

    match: Match
    num_examples: int | None = Field(default=None, ge=1)
    set: Options = {}

    @field_validator("set", mode="before")
    @classmethod
    def _flat(cls, value: Any) -> Any:
        return flat(value)


class Resources(_Strict):
    """What one cell gets.

    Attributes:
        cpus: Cores, and threads of torch; the numbers of a run may depend on it.
        gpus: Share of a GPU, for Ray and Slurm.
        memory_mib: Memory, for Ray and Slurm.
    """

    cpus: int = Field(default=1, ge=1)
    gpus: float = Field(default=0, ge=0)
    memory_mib: int | None = Field(default=None, ge=1)


class Sweep(_Strict):
    """One sweep file.

    Attributes:
        title: What it is for.
        methods: Names and patterns, as ``--method`` takes them.
        streams: Streams, or learning streams.
        settings: Settings; by default ``continual``, and ``sequential`` of learning streams.
        backbones: Backbones; by default the stream's.
        checkpoints: Weights file by backbone.
        seeds: Seeds.
        num_examples: First images of a domain, or training images of a task, that take part.
        common: Fields of all cells.
        set: Options of methods: ``lr`` of all, ``deyo.lr`` of one.
        grid: Field of ``common``, or option, to its values: all combinations are run.
        overrides: Exceptions.
        resources: What one cell gets.
    """

    title: str = ""
    methods: tuple[str, ...] = Field(min_length=1)
    streams: tuple[str, ...] = Field(min_length=1)
    settings: tuple[str, ...] = ()
    backbones: tuple[str, ...] = ()
    checkpoints: dict[str, str] = {}
    seeds: tuple[int, ...] = Field(default=(0,), min_length=1)
    num_examples: int | None = Field(default=None, ge=1)
    common: Fields = Fields()
    set: Options = {}
    grid: dict[str, tuple[Any, ...]] = {}
    overrides: tuple[Override, ...] = ()
    resources: Resources = Resources()

    @field_validator("set", "grid", mode="before")
    @classmethod
    def _flat(cls, value: Any) -> Any:
        return flat(value)

    @model_validator(mode="after")
    def _checkpoints_of_backbones(self) -> Sweep:
        if strange := sorted(set(self.checkpoints) - set(self.backbones)):
            raise ValueError(f"checkpoints names {strange[0]!r}, which is not among the backbones")
        return self


def flat(value: Any) -> Any:
    """``deyo.lr = 1`` in TOML is a table in a table; here it is one key."""
    return dict(_flatten("", value)) if isinstance(value, Mapping) else value


def _flatten(prefix: str, table: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from _flatten(f"{prefix}{key}.", value)
        else:
            yield f"{prefix}{key}", value


def parse(name: str, text: str) -> Sweep:
    """A sweep from the text of its file.

    Args:
        name: What the file is called, for messages.
        text: TOML.

    Raises:
        UsageError: If it is not valid TOML, or a field is wrong, with the nearest valid name.
    """
    try:
        return Sweep(**parse_toml(text))
    except TomlError as error:
        raise UsageError(f"{name}: {error}") from error
    except ValidationError as error:
        raise UsageError(f"{name}: {_words(error)}") from error


def sweeps() -> dict[str, Sweep]:
    """The sweeps of the package by name."""
    folder = files("benchmarks").joinpath("sweeps")
    found = sorted(e.name for e in folder.iterdir() if e.name.endswith(".toml"))
    return {
        name.removesuffix(".toml"): parse(name, folder.joinpath(name).read_text("utf-8"))
        for name in found
    }


def find(name: str) -> Sweep:
    """A sweep of the package, or the file that is named.

    Raises:
        UsageError: If there is none, or it is wrong.
    """
    if name.endswith(".toml"):
        try:
            return parse(name, Path(name).read_text("utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"cannot read {name}: {error}") from error
    known = sweeps()
    if name not in known:
        raise UsageError(
            f"unknown sweep {name!r}{did_you_mean(name, known)}; "
            f"known: {', '.join(known)}, or a FILE.toml"
        )
    return known[name]


_TABLES: dict[str, type[BaseModel]] = {
    "common": Fields,
    "resources": Resources,
    "overrides": Override,
    "match": Match,
}


def _words(error: ValidationError) -> str:
    """The first problem, an unknown key before others; with the nearest key."""
    problems = error.errors()
    first = next((p for p in problems if p["type"] == "extra_forbidden"), problems[0])
    where = ".".join(map(str, first["loc"]))
    if first["type"] == "missing":
        return f"{where} is missing"
    if first["type"] != "extra_forbidden":
        return one_line(error)
    *tables, key = (part for part in first["loc"] if isinstance(part, str))
    known = list((_TABLES[tables[-1]] if tables else Sweep).model_fields)
    inside = f" in {'.'.join(tables)}" if tables else ""
    return f"unknown key {key!r}{inside}{did_you_mean(key, known)}; known: {', '.join(known)}"
