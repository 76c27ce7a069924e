"""Published figures beside ours: which are reproduced, which are not, which were not run."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from importlib.resources import files
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, Literal

import tta
from benchmarks.files import write_json
from benchmarks.own_figures import own_figures
from benchmarks.reproduce_plan import NETWORKS, arguments, images
from benchmarks.spec import RunSpec, resolve
from tta.factory import adapters
from tta.published import Published

Status = Literal["reproduced", "not reproduced", "not run"]
MARKS: dict[Status, str] = {"reproduced": "✓", "not reproduced": "✗", "not run": "\N{EN DASH}"}
TOLERANCE = 0.5
"""Percentage points that any figure may be off."""
RULE = (
    "A figure is reproduced where ours lies within 0.5 points of it, within two of its published "
    "standard deviations, or within half the 95 % interval of our seeds where there are three or "
    "more: the widest of these counts."
)
_RECORDED = "reproduced.json"
# Two-sided 95 % points of Student's t, by degrees of freedom.
_STUDENT = {2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}
_FACTS = ("provenance", "device", "version_tta_bench", "version_torch")


@dataclass(frozen=True, kw_only=True)
class Ours:
    """What we measured for a figure.

    Attributes:
        error_pct: Mean over seeds, and over the runs that make up one figure.
        std: Sample standard deviation over seeds; ``None`` for one seed.
        seeds: Number of seeds.
        run_ids: Ids of all runs in it.
        facts: Provenance of the images, device and versions.
        note: Why it differs, where that is known.
    """

    error_pct: float
    std: float | None
    seeds: int
    run_ids: tuple[str, ...]
    facts: Mapping[str, str] = field(default_factory=dict)
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Reproduction:
    """One published figure and how it stands here."""

    method: str
    figure: Published
    ours: Ours | None

    @property
    def status(self) -> Status:
        """Whether it was run, and whether it came out."""
        if self.ours is None:
            return "not run"
        near = abs(self.difference or 0.0) <= self.tolerance + 1e-9
        return "reproduced" if near else "not reproduced"

    @property
    def difference(self) -> float | None:
        """Ours minus theirs, in percentage points."""
        return None if self.ours is None else self.ours.error_pct - self.figure.error_pct

    @property
    def tolerance(self) -> float:
        """Points that it may be off, by ``RULE``."""
        widths = [TOLERANCE, 2 * (self.figure.std or 0.0)]
        if self.ours is not None and self.ours.std is not None and self.ours.seeds > 2:
            student = _STUDENT.get(self.ours.seeds - 1, 2.262)
            widths.append(student * self.ours.std / self.ours.seeds**0.5)
        return max(widths)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        figure, ours = self.figure, self.ours
        return {
            "status": self.status,
            "method": self.method,
            "figure": figure.key,
            "published_error_pct": figure.error_pct,
            "published_std": figure.std,
            "published_seeds": figure.seeds,
            "options": dict(figure.options),
            "source": figure.source,
            "place": figure.place,
            "note": figure.note,
            "error_pct": ours and ours.error_pct,
            "std": ours and ours.std,
            "seeds": ours and ours.seeds,
            "difference": self.difference,
            "tolerance": self.tolerance,
            "run_ids": list(ours.run_ids) if ours else [],
            "facts": dict(ours.facts) if ours else {},
            "our_note": ours.note if ours else "",
        }


def published(method: str) -> tuple[Published, ...]:
    """What others published for a method, and then this repository's own figures."""
    module = import_module(adapters.get(method).__module__)
    theirs: tuple[Published, ...] = getattr(module, "PUBLISHED", ())
    return (*theirs, *own_figures(method))


def reproduce(
    methods: Sequence[str] | None = None,
    *,
    protocol: str | None = None,
    rows: Sequence[Mapping[str, Any]] = (),
    recorded: Sequence[Mapping[str, Any]] | None = None,
) -> list[Reproduction]:
    """Set every published figure beside ours.

    Args:
        methods: Methods; all by default.
        protocol: Part of ``stream/protocol/backbone`` that a figure must have.
        rows: Rows of finished runs; a figure that they hold is taken from them.
        recorded: What was measured before, for the others; the shipped record by default.
    """
    known = read_record() if recorded is None else recorded
    made = []
    for method in methods or tta.list_adapters():
        for figure in published(method):
            if protocol is None or protocol in figure.key:
                ours = measured(method, figure, rows) or _from_record(method, figure, known)
                made.append(Reproduction(method=method, figure=figure, ours=ours))
    return made


def measured(method: str, figure: Published, rows: Sequence[Mapping[str, Any]]) -> Ours | None:
    """Our figure from finished runs; ``None`` unless all that make it up are there for a seed."""
    specs = [resolve(**fields) for fields in arguments(method, figure)]
    network = NETWORKS.get(figure.backbone)
    if not specs or network is None:
        return None
    found: list[dict[int, Mapping[str, Any]]] = []
    for spec in specs:
        fitting = [
            row
            for row in rows
            if _fits(row, spec, network.normalisation) and _whole(row, images(figure))
        ]
        found.append({row["seed"]: row for row in fitting})
    seeds = sorted(set(found[0]).intersection(*found))
    if not seeds:
        return None
    errors = [fmean(rows_of[seed]["error_pct"] for rows_of in found) for seed in seeds]
    used = [rows_of[seed] for seed in seeds for rows_of in found]
    return Ours(
        error_pct=fmean(errors),
        std=stdev(errors) if len(errors) > 1 else None,
        seeds=len(seeds),
        run_ids=tuple(row["run_id"] for row in used),
        facts={key: str(used[0][key]) for key in _FACTS},
        note=_note(figure, str(used[0]["provenance"])),
    )


def _note(figure: Published, provenance: str) -> str:
    theirs = figure.stream.endswith("-c") and not figure.stream.startswith("fashion")
    generated = theirs and not provenance.startswith("official")
    return "generated images, not the official archive" if generated else ""


def _fits(row: Mapping[str, Any], spec: RunSpec, normalisation: str) -> bool:
    """Whether a row is a run of the spec, with any seed."""
    if row["method"] != spec.method or row["protocol"] != spec.protocol:
        return False
    config = {**json.loads(row["config"]), "seed": spec.seed}
    asked = json.loads(json.dumps({**spec.config, "seed": spec.seed}))
    guarded = row.get("guard") or row.get("budget")
    plain = not guarded and (row.get("norm"), row.get("window"), row["dtype"]) == (
        None,
        1,
        "float32",
    )
    same = (row["backbone"], row["normalisation"]) == (spec.backbone, normalisation)
    return bool(config == asked and plain and same)


def _whole(row: Mapping[str, Any], asked: int) -> bool:
    """Whether the run saw as many images as the figure; label shift draws with replacement."""
    share = 0.8 if row["setting"] == "label-shift" else 1.0
    return bool(share * asked <= row["num_examples"] <= asked)


def read_record(path: Path | None = None) -> list[dict[str, Any]]:
    """The recorded figures; the shipped file by default."""
    text = (path or files("benchmarks").joinpath(_RECORDED)).read_text("utf-8")
    entries: list[dict[str, Any]] = json.loads(text)["figures"]
    return entries


def write_record(path: Path, found: Sequence[Reproduction]) -> None:
    """Write what was measured, for ``read_record``; notes of an earlier record in the file stay."""
    before = read_record(path) if path.is_file() else []
    entries = []
    for item in found:
        if item.ours is None:
            continue
        ours = item.ours
        earlier = _entry(item.method, item.figure, before) or {}
        entries.append(
            {
                **_identity(item.method, item.figure),
                "error_pct": round(ours.error_pct, 4),
                "std": None if ours.std is None else round(ours.std, 4),
                "seeds": ours.seeds,
                "run_ids": list(ours.run_ids),
                "facts": dict(ours.facts),
                "note": ours.note or earlier.get("note", ""),
            }
        )
    write_json(path, {"figures": entries})


def _from_record(
    method: str, figure: Published, recorded: Sequence[Mapping[str, Any]]
) -> Ours | None:
    entry = _entry(method, figure, recorded)
    if entry is None:
        return None
    values = {key: entry[key] for key in ("error_pct", "std", "seeds", "facts", "note")}
    return Ours(run_ids=tuple(entry["run_ids"]), **values)


def _entry(
    method: str, figure: Published, recorded: Sequence[Mapping[str, Any]]
) -> Mapping[str, Any] | None:
    wanted = _identity(method, figure)
    fitting = (e for e in recorded if all(e[key] == value for key, value in wanted.items()))
    return next(fitting, None)


def _identity(method: str, figure: Published) -> dict[str, Any]:
    """What tells a figure from all others; where it stands may be worded anew."""
    return {
        "method": method,
        "figure": figure.key,
        "source": figure.source,
        "options": dict(figure.options),
    }
