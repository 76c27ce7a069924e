"""Charts over the steps of a stream."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.report.data import Entry, Group
from benchmarks.report.series import Axis, Band, Line
from benchmarks.report.traces import Figure, Trace, band, plain

# More stretches than this get numbers on the axis, not names.
MAX_NAMED = 40
NO_STEPS = "No steps.parquet was found for this group: the folders of its runs are not here."


def over_steps(
    group: Group,
    axis: Axis | None,
    line_of: Callable[[Entry, Axis], Line | None],
    title: str,
    missing: str,
) -> Figure:
    """Lines over the steps, with bands over the seeds and stripes for the domains.

    Args:
        group: The group.
        axis: Its axis.
        line_of: The line of an entry; ``None`` leaves it out.
        title: Title of the vertical axis.
        missing: What to say where no entry has a line.
    """
    if axis is None:
        return {"missing": NO_STEPS}
    lines = [(entry, line) for entry in group.entries if (line := line_of(entry, axis)) is not None]
    if not lines:
        return {"missing": missing}
    # The reference lies below the others.
    lines.sort(key=lambda pair: pair[0].method != "source")
    x = axis.centres
    traces = [_hover_names(axis)] if axis.bands else []
    for entry, line in lines:
        if any(run.steps is not None for run in entry.runs[1:]):
            traces.append(band(entry, x, line.low, line.high))
        traces.append(
            {
                "type": "scatter",
                "mode": "lines+markers" if len(x) == 1 else "lines",
                "name": plain(entry.label),
                "x": x,
                "y": line.mean,
                "hovertemplate": "%{y:.1f}",
                "meta": {"entry": entry.number, "kind": "line"},
            }
        )
    note = _axis_note(axis)
    if group.source is None and title.startswith("error"):
        traces.insert(0, _source_level(group, x))
        note.append("dashed: mean error of the source model, of which there is no run")
    layout = {
        "hovermode": "x unified",
        "xaxis": {
            "title": {"text": "step of the stream"},
            "range": [-0.5, axis.steps - 0.5],
            "showgrid": not axis.bands,
            "unifiedhovertitle": {"text": "step %{x}"},
            **_names(axis.bands),
        },
        "yaxis": {"title": {"text": title}, "rangemode": "tozero"},
        "shapes": [_shade(band) for band in axis.bands[1::2]] if _distinct(axis.bands) else [],
        "height": 440,
    }
    return {"data": traces, "layout": layout, "note": "; ".join(note)}


def _hover_names(axis: Axis) -> Trace:
    """An invisible line that says the domain where you point."""
    return {
        "type": "scatter",
        "mode": "lines",
        "x": axis.centres,
        "y": [0.0] * len(axis.starts),
        "line": {"width": 0},
        "customdata": [plain(name) for name in axis.names],
        "hovertemplate": "<b>%{customdata}</b><extra></extra>",
        "meta": {"entry": None, "kind": "names"},
    }


def _source_level(group: Group, x: Sequence[float]) -> Trace:
    level = group.first.get("source_error_pct")
    return {
        "type": "scatter",
        "mode": "lines",
        "name": "source, mean",
        "x": [x[0], x[-1]],
        "y": [level, level],
        "hovertemplate": "%{y:.1f}",
        "meta": {"entry": None, "kind": "line"},
    }


def _distinct(bands: Sequence[Band]) -> bool:
    return 1 < len(bands) <= 2 * MAX_NAMED


def _names(bands: Sequence[Band]) -> dict[str, Any]:
    if not bands or len(bands) > MAX_NAMED:
        return {}
    return {
        "title": {"text": "steps, by domain"},
        "tickvals": [(band.first + band.end - 1) / 2 for band in bands],
        "ticktext": [plain(band.name) for band in bands],
        "tickangle": -45 if len(bands) > 3 else 0,
    }


def _shade(band: Band) -> dict[str, Any]:
    return {
        "type": "rect",
        "layer": "below",
        "xref": "x",
        "yref": "paper",
        "x0": band.first - 0.5,
        "x1": band.end - 0.5,
        "y0": 0,
        "y1": 1,
        "line": {"width": 0},
    }


def _axis_note(axis: Axis) -> list[str]:
    said = []
    if len(axis.starts) < axis.steps:
        said.append(f"{axis.steps} steps pooled into {len(axis.starts)} points")
    if not axis.bands:
        said.append("no domain bands: batches hold several domains, or the order differs by seed")
    elif len(axis.bands) > MAX_NAMED:
        said.append(f"{len(axis.bands)} stretches of a domain, named where you point")
    return said
