"""``tuned.toml``: what tuning found, and how a run takes it up without having seen its own test."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from benchmarks.errors import UsageError
from benchmarks.files import asked_for
from benchmarks.runner import open_stream
from benchmarks.spec import RunSpec, one_line
from benchmarks.toml import TomlError, parse_toml
from streams.types import Ints, Stream

FILE = "tuned.toml"
_STREAM_FIELDS = (
    *("setting", "corruptions", "severity", "num_examples", "skip_examples", "setting_options"),
    *("order", "source_options", "batch_size", "shuffle", "seed"),
)
# What a field is where the file does not name it.
_ABSENT: dict[str, Any] = {
    "num_examples": None,
    "setting_options": {},
    "source_options": {},
    "open_set": None,
}


class TunedMethod(BaseModel):
    """The best trial of a method.

    Attributes:
        trials: How many were run; 1 where the method has nothing to search.
        best_trial: Its number; 0 is the method's own config.
        error_pct: Its error on the tuning stream.
        default_error_pct: That of trial 0.
        options: Its values of what was searched.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    trials: int
    best_trial: int
    error_pct: float
    default_error_pct: float
    options: dict[str, int | float]


class Tuned(BaseModel):
    """A tuning's outcome.

    Attributes:
        format: Version of this file.
        stream: Stream that the options are for.
        backbone: Its backbone.
        trials: The budget of each method.
        seed: Seed of the tuning.
        protocol: Protocol of the tuning stream.
        stream_hash: Its hash.
        tuning_stream: The fields of a run that make it.
        methods: By name.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = 1
    stream: str
    backbone: str
    trials: int
    seed: int
    protocol: str
    stream_hash: str
    tuning_stream: dict[str, Any]
    methods: dict[str, TunedMethod]

    def options(self, method: str) -> dict[str, Any]:
        """The options of a method.

        Raises:
            UsageError: If it was not tuned.
        """
        name = method.replace("_", "-")
        if name not in self.methods:
            raise UsageError(
                f"{method!r} was not tuned, only {', '.join(self.methods)}: name it in 'tta-bench "
                "tune' too, or run it without --tuned"
            )
        return dict(self.methods[name].options)

    def mark(self, specs: Sequence[RunSpec]) -> list[RunSpec]:
        """Runs that say that they are tuned, and on what.

        A method that has nothing to search stays as it is.

        Args:
            specs: Runs with ``options`` in their config, which differ in method and seed alone.

        Raises:
            UsageError: If the options are for another stream or backbone, or the tuning stream
                shows images of a run under a corruption of that run.
        """
        words = {spec.seed: self._words(spec) for spec in {s.seed: s for s in specs}.values()}
        return [
            spec.model_copy(
                update={
                    "tuned_trials": self.methods[spec.method].trials,
                    "tuned_on": words[spec.seed],
                }
            )
            if self.methods[spec.method].options
            else spec
            for spec in specs
        ]

    def _words(self, spec: RunSpec) -> str:
        for name in ("stream", "backbone"):
            if getattr(spec, name) != getattr(self, name):
                raise UsageError(
                    f"the options of --tuned are for {name} {getattr(self, name)}, not for "
                    f"{getattr(spec, name)}: tune again"
                )
        tuning = open_stream(spec.model_copy(update=_ABSENT | self.tuning_stream))
        if tuning.hash != self.stream_hash:
            raise UsageError(
                "the data or the code has changed since the tuning of --tuned: its stream has "
                f"hash {tuning.hash[:12]} now and {self.stream_hash[:12]} then; tune again"
            )
        stream = open_stream(spec)
        images = shared_images(tuning, stream)
        if len(images) and (both := shared_domains(tuning, stream)):
            raise UsageError(
                f"--tuned saw {len(images)} images of this run under {both[0]}: that would be "
                "tuning on the test; show fewer with --num-examples, or tune again"
            )
        same = ", same images" if len(images) else ""
        return f"{self.protocol} ({self.stream_hash[:12]}{same})"


def stream_fields(spec: RunSpec) -> dict[str, Any]:
    """The fields of a run that make its stream, as plain values; empty ones are left out."""
    values = spec.model_dump(mode="json", include=set(_STREAM_FIELDS))
    return {name: values[name] for name in _STREAM_FIELDS if values[name] not in (None, {})}


def shared_images(one: Stream, other: Stream) -> Ints:
    """Ids of the images that both show, by ``Batch.index``.

    Ids of two sources (another subset, say) cannot be compared: all of ``other`` count as shared.
    """
    bases = [getattr(stream.source, "base", stream.source) for stream in (one, other)]
    ids: Ints = np.unique(other.plan.positions)
    return ids if bases[0].digest != bases[1].digest else np.intersect1d(ids, one.plan.positions)


def shared_domains(one: Stream, other: Stream) -> list[str]:
    """Corruptions that both have, whatever the severity."""
    names = {domain.corruption for domain in other.domains}
    return [name for name in dict.fromkeys(d.corruption for d in one.domains) if name in names]


def write_tuned(path: Path, tuned: Tuned) -> None:
    """Write the file, whole or not at all.

    Raises:
        UsageError: If it cannot be written.
    """
    text = "# Written by 'tta-bench tune'. Use: tta-bench run --tuned FILE …\n"
    with asked_for(path, "--out") as temporary:
        temporary.write_text(text + _toml(tuned.model_dump()), "utf-8")


def read_tuned(path: Path) -> Tuned:
    """Read the file.

    Raises:
        UsageError: If it is missing, damaged or of another format.
    """
    try:
        return Tuned(**parse_toml(path.read_text("utf-8")))
    except (OSError, UnicodeDecodeError, TomlError) as error:
        raise UsageError(f"cannot read {path} ({error}); write it with 'tta-bench tune'") from error
    except ValidationError as error:
        raise UsageError(f"{path} was not written by this 'tune': {one_line(error)}") from error


def _toml(values: Mapping[str, Any], where: str = "") -> str:
    """Numbers, text, lists and tables as TOML: JSON's form of all but the tables is TOML's too."""
    tables = {key: value for key, value in values.items() if isinstance(value, Mapping)}
    lines = [
        f"{_key(key)} = {json.dumps(value, ensure_ascii=False)}"
        for key, value in values.items()
        if key not in tables
    ]
    for key, value in tables.items():
        path = f"{where}{_key(key)}"
        lines += [f"\n[{path}]", _toml(value, f"{path}.").rstrip("\n")]
    return "\n".join(lines) + "\n"


def _key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else json.dumps(name)
