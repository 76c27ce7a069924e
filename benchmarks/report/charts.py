"""The charts of a group, as plotly figures without colours: the page gives them its theme.

A figure is a dict with ``data`` and ``layout``, or with ``missing``, which says why there is none.
``meta`` of a trace names its entry, so that the page can filter it and give it its method's look.
"""

from __future__ import annotations

import numpy as np

from benchmarks.leaderboard_columns import domain_names
from benchmarks.report.data import Group
from benchmarks.report.over_steps import NO_STEPS, over_steps
from benchmarks.report.series import axis_of, error_line, moments, points, row_values, selected_line
from benchmarks.report.traces import Figure, Trace, domain_labels, plain, tick

# More columns than this leave no room for numbers in the cells of the heat map.
MAX_WRITTEN = 24
# Bins with fewer images say little of the method's accuracy.
MIN_BIN = 10
# 1, 2 and 5 in every decade: of those that plotly shows by itself only the first is in full size.
TICKS = [round(step * 10.0**decade, 4) for decade in range(-3, 5) for step in (1, 2, 5)]


def charts(group: Group) -> dict[str, Figure]:
    """Every chart of a group on a stream that is not one of learning, by name."""
    axis = axis_of(group)
    return {
        "steps": over_steps(group, axis, error_line, "error %", "No run has steps."),
        "domains": domains(group),
        "pareto": pareto(group),
        "retention": retention(group),
        "selected": over_steps(
            group,
            axis,
            selected_line,
            "images learnt from %",
            "No method of this group selects the images that it learns from.",
        ),
        "calibration": calibration(group),
        "heat": heat(group),
    }


def domains(group: Group) -> Figure:
    """Error of each domain."""
    columns = domain_names(group.first)
    traces = []
    for entry in group.entries:
        mean, deviation = moments([row_values(run.row, columns) for run in entry.runs])
        traces.append(
            {
                "type": "scatter",
                "mode": "lines+markers",
                "name": plain(entry.label),
                "x": domain_labels(columns),
                "y": points(mean),
                "error_y": {
                    "type": "data",
                    "array": points(deviation),
                    "visible": len(entry.runs) > 1,
                },
                "hovertemplate": "%{y:.2f}",
                "meta": {"entry": entry.number, "kind": "points"},
            }
        )
    layout = {
        "hovermode": "x unified",
        "xaxis": {"type": "category", "tickangle": -45 if len(columns) > 3 else 0},
        "yaxis": {"title": {"text": "error %"}, "rangemode": "tozero"},
        "height": 440,
    }
    return {"data": traces, "layout": layout}


def pareto(group: Group) -> Figure:
    """Error against cost; ``meta.x`` of a trace has the cost in each unit."""
    traces: list[Trace] = []
    costs: list[float | None] = []
    for entry in group.entries:
        row = entry.row
        forwards, backwards = row.get("forwards_per_image"), row.get("backwards_per_image")
        x = {
            "passes": None if forwards is None else round(forwards + (backwards or 0), 3),
            "seconds": None
            if row.get("seconds_per_1k") is None
            else round(row["seconds_per_1k"], 4),
        }
        costs += x.values()
        half = row.get("error_pct_ci95")
        traces.append(
            {
                "type": "scatter",
                "mode": "markers+text",
                "name": plain(entry.label),
                "x": [x["passes"]],
                "y": [round(row["error_pct"], 2)],
                "error_y": {
                    "type": "data",
                    "array": [None if half is None else round(half, 2)],
                    "visible": half is not None,
                },
                "text": [plain(entry.label)],
                "textposition": "top right",
                "hovertemplate": "<b>%{text}</b><br>cost %{x:.4~g}<br>error %{y:.2f} %"
                "<extra></extra>",
                "meta": {"entry": entry.number, "kind": "point", "x": x},
            }
        )
    layout = {
        "hovermode": "closest",
        "xaxis": {
            "type": "log" if all(cost is None or cost > 0 for cost in costs) else "linear",
            "tickvals": TICKS,
        },
        "yaxis": {"title": {"text": "error %"}},
        "height": 440,
    }
    return {"data": traces, "layout": layout}


def retention(group: Group) -> Figure:
    """Error on the clean images after the run, against the source model's."""
    known = [e for e in group.entries if e.row.get("clean_error_pct") is not None]
    if not known:
        return {"missing": "The clean images of this stream are not known to the runs."}
    known.sort(key=lambda entry: float(entry.row["clean_error_pct"]))
    traces = []
    for entry in known:
        _, deviation = moments([row_values(run.row, ["clean_error_pct"]) for run in entry.runs])
        ends = [entry.row.get("source_clean_error_pct"), entry.row["clean_error_pct"]]
        traces.append(
            {
                "type": "scatter",
                "mode": "lines+markers",
                "name": plain(entry.label),
                "x": [None if end is None else round(end, 2) for end in ends],
                "y": [tick(entry)] * 2,
                "error_x": {
                    "type": "data",
                    "array": [0, round(float(deviation[0]), 2)],
                    "visible": len(entry.runs) > 1,
                },
                "hovertemplate": "%{x:.2f} %",
                "meta": {"entry": entry.number, "kind": "pair"},
            }
        )
    layout = {
        "hovermode": "closest",
        "xaxis": {"title": {"text": "clean error %: source, then after the run"}},
        "yaxis": {"type": "category", "autorange": "reversed"},
        "height": 120 + 30 * len(known),
    }
    return {"data": traces, "layout": layout}


def calibration(group: Group) -> Figure:
    """Accuracy over confidence, by bin; the legend has the expected calibration error."""
    traces = []
    for entry in group.entries:
        bins = [run.steps.bins for run in entry.runs if run.steps is not None]
        if not bins:
            continue
        count, correct, confidence = np.sum(bins, axis=0)
        there = count >= MIN_BIN
        if not there.any():
            continue
        share = 100 * count[there] / count.sum()
        ece = entry.row.get("ece_pct")
        traces.append(
            {
                "type": "scatter",
                "mode": "lines+markers",
                "name": plain(entry.label),
                "x": points(100 * confidence[there] / count[there]),
                "y": points(100 * correct[there] / count[there]),
                "customdata": points(share),
                "marker": {"size": [round(5 + 1.3 * value**0.5, 1) for value in share.tolist()]},
                "hovertemplate": "confidence %{x:.1f} %<br>accuracy %{y:.1f} %<br>"
                "%{customdata:.1f} % of the images",
                "meta": {
                    "entry": entry.number,
                    "kind": "points",
                    "note": "" if ece is None else f"ECE {ece:.1f}",
                },
            }
        )
    if not traces:
        return {"missing": NO_STEPS}
    layout = {
        "hovermode": "closest",
        "xaxis": {"title": {"text": "confidence %"}, "range": [0, 102]},
        "yaxis": {"title": {"text": "accuracy %"}, "range": [0, 102]},
        "shapes": [{"type": "line", "x0": 0, "y0": 0, "x1": 100, "y1": 100, "layer": "below"}],
        "height": 520,
    }
    return {"data": traces, "layout": layout}


def heat(group: Group) -> Figure:
    """Methods by domains: error, and in ``meta.difference`` that less the source model's."""
    columns = domain_names(group.first)
    errors = np.stack([row_values(entry.row, columns) for entry in group.entries])
    difference = None
    if group.source is not None:
        difference = [points(row) for row in errors - row_values(group.source.row, columns)]
    trace = {
        "type": "heatmap",
        "x": domain_labels(columns),
        "y": [tick(entry) for entry in group.entries],
        "z": [points(row) for row in errors],
        "texttemplate": "%{z:.1f}" if len(columns) <= MAX_WRITTEN else "",
        "hovertemplate": "%{y}<br>%{x}: %{z:.2f} %<extra></extra>",
        "xgap": 1,
        "ygap": 1,
        "meta": {
            "entries": [entry.number for entry in group.entries],
            "kind": "heat",
            "difference": difference,
        },
    }
    layout = {
        "xaxis": {"type": "category", "side": "top", "tickangle": -45, "showgrid": False},
        "yaxis": {"type": "category", "autorange": "reversed", "showgrid": False},
        "margin": {"b": 6},
        "height": 150 + 30 * len(group.entries),
    }
    return {"data": [trace], "layout": layout, "width": 200 + 46 * len(columns)}
