"""The questions that ``compare`` asks of two runs: each finds the causes of one kind."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from benchmarks.compare_words import USUALLY
from streams.jsonfiles import parse_json

# The two settings that differ in the reset alone.
_RESETS = {"continual", "reset"}
_RESET_OPTIONS = ("episodic", "reset_every")
_STATISTICS = ("statistics", "batch_statistics")
_NORM_STATISTICS = (*_STATISTICS, "alpha", "prior", "momentum")
_STREAM_FIELDS = {
    "domains": ("corruptions", "severity", "order"),
    "open set": ("open_set", "open_ratio"),
    "tasks": ("num_tasks",),
    "evaluation": ("eval_every",),
    "carry": ("carry",),
    "batch size": ("batch_size",),
}


@dataclass(frozen=True, kw_only=True)
class Cause:
    """One thing that differs.

    Attributes:
        kind: A key of ``compare_words.USUALLY``.
        says: What differs, A's value first.
        usually: What that usually does to the number.
    """

    kind: str
    says: str
    usually: str


class Pair:
    """Two runs: their rows, and their specs where they are known."""

    def __init__(
        self,
        row_a: Mapping[str, Any],
        row_b: Mapping[str, Any],
        spec_a: Mapping[str, Any],
        spec_b: Mapping[str, Any],
    ) -> None:
        self.rows = (row_a, row_b)
        both = bool(spec_a and spec_b)
        # The row speaks first: it says what came out of the spec.
        self.a, self.b = (
            {**(spec if both else {}), **row} for spec, row in ((spec_a, row_a), (spec_b, row_b))
        )
        self.specs = (spec_a, spec_b) if both else None
        self.configs = (_flat(row_a), _flat(row_b))

    def causes(self) -> list[Cause]:
        """All that differs, each cause once."""
        found: list[tuple[str, str]] = [*self._stream(), *self._model()]
        found += self._options() if self.same("method") else [("method", self._methods())]
        found += [(kind, self.words(kind)) for kind in ("dtype", "seed") if not self.same(kind)]
        found.append(("device", self.listed("device", "threads")))
        versions = sorted({k for k in (*self.a, *self.b) if k.startswith("version_")})
        found.append(("versions", self.listed(*versions)))
        return [Cause(kind=k, says=says, usually=USUALLY[k]) for k, says in found if says]

    # What was shown --------------------------------------------------------------------------

    def _stream(self) -> Iterator[tuple[str, str]]:
        if not self.same("stream"):
            yield "stream", self.words("stream")
            return
        found = {
            "setting": self._setting(),
            "reset policy": self._resets(),
            "subset size": self._subset(),
            **{kind: self.listed(*fields) for kind, fields in _STREAM_FIELDS.items()},
        }
        if not self.specs and not found["tasks"] and not found["setting"]:
            found["domains"] = found["domains"] or self._domains()
        yield from found.items()
        pixels = self.listed("provenance", "shuffle", "skip_examples")
        images = "; ".join(filter(None, (pixels, self._source())))
        explained = any(found.values()) or not self.same("seed")
        if not images and not explained and not self.same("stream_hash"):
            images = f"{self.hashes('stream_hash')}: other files, labels or order, equally named"
        yield "images", images

    def _setting(self) -> str:
        if not self.same("setting"):
            named = {self.a["setting"], self.b["setting"]}
            return "" if named <= _RESETS else self.words("setting")
        options = self.within("setting_options", but=("reset",))
        return options and f"options of {self.a['setting']}: {options}"

    def _resets(self) -> str:
        keys = _RESET_OPTIONS if self.same("method") else ()
        return "; ".join(filter(None, (self.listed("reset_policy"), self._changed(keys))))

    def _subset(self) -> str:
        if self.same("num_examples"):
            return ""
        if self.specs:
            given = [(s.get("num_examples"), s.get("source_options")) for s in self.specs]
            drawn = not self.same("seed") or not self.same("setting")
            if given[0] == given[1] and drawn:
                return ""  # drawn with replacement: how many distinct ones is chance
        subset = self.within("source_options", only="subset")
        return f"{self.words('num_examples')} distinct images" + (subset and f"; {subset}")

    def _domains(self) -> str:
        names = [{k[10:] for k in row if k.startswith("error_pct_")} for row in self.rows]
        only = [", ".join(sorted(names[i] - names[1 - i])) or "none" for i in (0, 1)]
        return "" if names[0] == names[1] else f"only in A: {only[0]}; only in B: {only[1]}"

    def _source(self) -> str:
        return self.within("source_options", but=("subset",))

    # The model -------------------------------------------------------------------------------

    def _model(self) -> Iterator[tuple[str, str]]:
        named = self.same("backbone")
        by_seed = self.a.get("weights_by_seed") and not self.same("seed")
        yield "backbone", self.listed("backbone")
        if named and not by_seed and not self.same("weight_hash"):
            said = "" if self.same("weights") else f"{self.words('weights')}; "
            yield "weights", said + self.hashes("weight_hash")
        # Another network brings its own constants: no cause besides, unless they were chosen.
        if named or self.listed("mean", "std"):
            yield "normalisation", self.listed("normalisation")
        norms = _NORM_STATISTICS if self.a["method"] == "norm" else _STATISTICS
        found = self.listed("norm", "norm_options", "window", "guard", "budget")
        changed = self._changed(norms) if self.same("method") else ""
        yield "BN mode", "; ".join(filter(None, (found, changed)))

    # The method ------------------------------------------------------------------------------

    def _methods(self) -> str:
        rates = [config.get("lr") for config in self.configs]
        said = [self.words("method")]
        if None not in rates and rates[0] != rates[1]:
            said.append(f"learning rate {_plain(rates[0])} against {_plain(rates[1])}")
        if not self.same("predicts"):
            said.append(f"logits from {self.words('predicts')}")
        return "; ".join([*said, *filter(None, [self.listed("source_data")])])

    def _options(self) -> list[tuple[str, str]]:
        norms = _NORM_STATISTICS if self.a["method"] == "norm" else _STATISTICS
        keys = [
            k
            for k in {**self.configs[0], **self.configs[1]}
            if k not in (*norms, *_RESET_OPTIONS, "learner.batch_size")
        ]
        rates = [key for key in keys if key.rpartition(".")[2] == "lr"]
        found = [
            ("logits", self.listed("predicts")),
            ("learning rate", self._changed(rates)),
            ("method options", self._changed([key for key in keys if key not in rates])),
        ]
        # Where fewer images are shown more are hidden: that is the subset's doing.
        if self.same("num_examples") or self.listed("source_images"):
            found.append(("source data", self.listed("source_data")))
        return found

    def _changed(self, keys: Sequence[str]) -> str:
        a, b = self.configs
        return "; ".join(
            f"{key} {self._value(key, a)} against {self._value(key, b)}"
            for key in keys
            if a.get(key) != b.get(key)
        )

    def _value(self, key: str, config: Mapping[str, Any]) -> str:
        value = config.get(key)
        usual = key in self._defaults and _listed(self._defaults[key]) == value
        return _plain(value) + (" (default)" if usual else "")

    @cached_property
    def _defaults(self) -> dict[str, Any]:
        """What a run takes where nothing is set; nothing for a method that is not installed."""
        import tta
        from benchmarks.protocols import presets

        method, stream = self.a["method"], self.a["stream"]
        try:
            config = tta.adapter_config(method)().to_dict()
        except tta.AdapterError:
            return {}
        return {**config, **presets().get(method, {}).get(stream, {})}

    # Reading ---------------------------------------------------------------------------------

    def same(self, key: str) -> bool:
        """Whether both say the same."""
        return bool(self.a.get(key) == self.b.get(key))

    def words(self, key: str) -> str:
        """``A against B``."""
        return f"{_plain(self.a.get(key))} against {_plain(self.b.get(key))}"

    def hashes(self, key: str) -> str:
        """The same for hashes, shortened."""
        a, b = (str(run.get(key))[:12] for run in (self.a, self.b))
        return f"{key.replace('_', ' ')} {a} against {b}"

    def listed(self, *keys: str) -> str:
        """``key A against B`` for those that differ; the name is left out where it is alone."""
        found = [key for key in keys if not self.same(key)]
        if len(keys) == 1:
            return self.words(keys[0]) if found else ""
        names = (key.removeprefix("version_").replace("_", " ") for key in found)
        return "; ".join(f"{n} {self.words(k)}" for n, k in zip(names, found, strict=True))

    def within(self, key: str, *, but: Sequence[str] = (), only: str | None = None) -> str:
        """``name A against B`` for the options under a field of the specs."""
        a, b = self.a.get(key) or {}, self.b.get(key) or {}
        names = [n for n in {**a, **b} if n not in but and only in (None, n)]
        return "; ".join(
            f"{n} {_plain(a.get(n))} against {_plain(b.get(n))}"
            for n in names
            if a.get(n) != b.get(n)
        )


def _flat(row: Mapping[str, Any]) -> dict[str, Any]:
    """The method's options by name, ``part.name`` in a learner's; the seed is not one."""
    made = {}
    for key, value in parse_json(row.get("config") or "{}").items():
        inner = value if isinstance(value, dict) else {None: value}
        made.update({f"{key}.{name}" if name else key: v for name, v in inner.items()})
    return {key: value for key, value in made.items() if key.rpartition(".")[2] != "seed"}


def _listed(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _plain(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{key}={_plain(item)}" for key, item in value.items()) or "none"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_plain, value))
    return "none" if value is None else str(value)
