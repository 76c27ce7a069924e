"""The page: what is embedded in it, and how it is written."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.errors import UsageError
from benchmarks.files import asked_for
from benchmarks.report import style
from benchmarks.report.charts import MIN_BIN, charts
from benchmarks.report.data import Entry, Group, Results
from benchmarks.report.events import MIN_IMAGES, MIN_STEPS, NEAR, collapses
from benchmarks.report.learning import learning_charts
from benchmarks.report.samples import Picture, picture
from benchmarks.report.tables import Table, leaderboard_table

TEMPLATES = Path(__file__).parent / "templates"
# More lines than this say nothing that these do not.
MAX_EVENTS = 200
# A script element ends at "</script>" wherever it stands; none of these means anything to JSON.
_ESCAPES = {ord(sign): f"\\u{ord(sign):04x}" for sign in "<>&\u2028\u2029"}


@dataclass(frozen=True, kw_only=True)
class Look:
    """A stream's sample images, and the rankings that saw them."""

    labels: tuple[str, ...]
    picture: Picture


def check_out(out: Path) -> None:
    """Refuse what cannot become a page before anything is read.

    Raises:
        UsageError: For another suffix than ``.html``, or a folder.
    """
    if out.suffix.lower() not in (".html", ".htm"):
        raise UsageError(f"{out} is no .html: a report is a page")
    if out.is_dir():
        raise UsageError(f"{out} is a folder: name a file for the report")


def render(results: Results, title: str) -> str:
    """The whole page as text."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from plotly.offline import get_plotlyjs

    pictures = [Picture() if group.learning else _picture(group) for group in results.groups]
    events = [
        event
        for group, seen in zip(results.groups, pictures, strict=True)
        for event in collapses(group, seen.num_classes)
    ]
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    looks = _styles(results)
    return environment.get_template("report.html.j2").render(
        title=title,
        summary=_summary(results),
        groups=_tables(results),
        adaptation=[group for group in results.groups if not group.learning],
        learning=[group for group in results.groups if group.learning],
        events=events[:MAX_EVENTS],
        more_events=max(0, len(events) - MAX_EVENTS),
        min_bin=MIN_BIN,
        near=round(100 * NEAR),
        min_steps=MIN_STEPS,
        min_images=MIN_IMAGES,
        no_chance=_without_chance(results, pictures),
        failed=results.failed,
        looks=_looks(results, pictures),
        methods={name: looks[name] for name in sorted(looks)},
        settings=_distinct(results, "setting"),
        streams=_distinct(results, "stream"),
        palette=_palette(),
        data=embedded(payload(results, looks)),
        code="\n".join((TEMPLATES / name).read_text("utf-8") for name in ("charts.js", "page.js")),
        css=(TEMPLATES / "report.css").read_text("utf-8"),
        plotly=get_plotlyjs(),
    )


def write(page: str, out: Path) -> int:
    """Write the page whole or not at all; its size in bytes.

    Raises:
        UsageError: If it cannot be written.
    """
    with asked_for(out, "--out") as temporary:
        temporary.write_text(page, "utf-8")
    return out.stat().st_size


def payload(results: Results, looks: Mapping[str, style.Style]) -> dict[str, Any]:
    """What the page's code reads: entries, charts by ranking, and every run's row and spec."""
    runs = [
        (entry, run) for group in results.groups for entry in group.entries for run in entry.runs
    ]
    columns = list(dict.fromkeys(key for _, run in runs for key in run.row))
    return {
        "palette": _palette(),
        "methods": {name: asdict(look) for name, look in looks.items()},
        "groups": [
            {"label": group.label, "learning": group.learning, "charts": _charts(group)}
            for group in results.groups
        ],
        "entries": [
            _entry(entry, number)
            for number, group in enumerate(results.groups)
            for entry in group.entries
        ],
        "columns": columns,
        "runs": [
            {
                "entry": entry.number,
                "row": [run.row.get(key) for key in columns],
                "spec": run.spec,
                "folder": None if run.folder is None else run.folder.name,
            }
            for entry, run in runs
        ],
    }


def embedded(value: Any) -> str:
    """JSON that may stand in a script element: numbers are finite, nothing in it closes it."""
    text = json.dumps(_finite(value), separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.translate(_ESCAPES)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value


def _charts(group: Group) -> dict[str, Any]:
    return learning_charts(group) if group.learning else charts(group)


def _entry(entry: Entry, number: int) -> dict[str, Any]:
    row = entry.row
    said = (entry.label, row["config"], row["protocol"], row["backbone"], row["provenance"])
    return {
        "group": number,
        "method": entry.method,
        "setting": row["setting"],
        "stream": row["stream"],
        "label": entry.label,
        "variant": entry.variant,
        "text": " ".join([*said, *(run.row["run_id"] for run in entry.runs)]).lower(),
    }


def _styles(results: Results) -> dict[str, style.Style]:
    # The two kinds stand in no chart together: each begins with the first colours.
    adaptation = style.styles(results.methods(learning=False))
    return style.styles(results.methods(learning=True), shift=3) | adaptation


def _tables(results: Results) -> list[tuple[Group, Table]]:
    return [(group, leaderboard_table(group)) for group in results.groups]


def _picture(group: Group) -> Picture:
    spec = next((run.spec for run in group.runs if run.spec is not None), None)
    if spec is None:
        return Picture(missing="No spec.json was found: the folders of its runs are not here.")
    return picture(spec)


def _looks(results: Results, pictures: Sequence[Picture]) -> list[Look]:
    """Pictures, each once: rankings of one stream see the same images."""
    seen: dict[Picture, list[str]] = {}
    for group, made in zip(results.groups, pictures, strict=True):
        if not group.learning:
            seen.setdefault(made, []).append(group.label)
    return [Look(labels=tuple(labels), picture=made) for made, labels in seen.items()]


def _without_chance(results: Results, pictures: Sequence[Picture]) -> list[str]:
    pairs = zip(results.groups, pictures, strict=True)
    return [g.label for g, seen in pairs if not g.learning and seen.num_classes is None]


def _summary(results: Results) -> str:
    def count(number: int, word: str) -> str:
        return f"{number:,} {word}{'s' * (number != 1)}"

    seeds = sorted({int(run.row["seed"]) for run in results.runs})
    versions = sorted({str(run.row["version_tta_bench"]) for run in results.runs})
    parts = [
        count(len(results.runs), "run"),
        count(len(_styles(results)), "method"),
        count(len(results.groups), "ranking"),
        f"seed{'s' * (len(seeds) > 1)} {_numbers(seeds)}",
        f"tta-bench {', '.join(versions)}",
    ]
    return " · ".join(parts)


def _numbers(values: Sequence[int]) -> str:
    """The ends of neighbours, else the numbers."""
    together = len(values) > 2 and values[-1] - values[0] == len(values) - 1
    return f"{values[0]} to {values[-1]}" if together else ", ".join(map(str, values))


def _distinct(results: Results, key: str) -> list[str]:
    return sorted({str(run.row[key]) for run in results.runs})


def _palette() -> dict[str, Any]:
    return {
        "light": list(style.LIGHT),
        "dark": list(style.DARK),
        "reference": {"light": style.REFERENCE_LIGHT, "dark": style.REFERENCE_DARK},
    }
