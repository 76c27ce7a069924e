"""The charts of a group on a learning stream: accuracy over the items, and by task."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.curves import places
from benchmarks.learning_results import EVALS, read_evals
from benchmarks.report.data import Entry, Group
from benchmarks.report.series import Points, moments, points
from benchmarks.report.traces import Figure, band, plain
from continual.evaluate import Evaluation

Read = tuple[list[Evaluation], list[str]]
MISSING = f"No {EVALS} was found for this group: the folders of its runs are not here."


def learning_charts(group: Group) -> dict[str, Figure]:
    """``curve``, and ``matrix`` with one figure for each entry."""
    read = [(entry, made) for entry in group.entries if (made := _evaluations(entry))]
    if not read:
        return {"curve": {"missing": MISSING}, "matrix": {"missing": MISSING}}
    return {"curve": _curve(read), "matrix": {"entries": [_matrix(*pair) for pair in read]}}


def _evaluations(entry: Entry) -> list[Read]:
    """Evaluations of the entry's runs that have as many as the first."""
    folders = [run.folder for run in entry.runs if run.folder and (run.folder / EVALS).is_file()]
    read = [read_evals(folder) for folder in folders]
    return [one for one in read if len(one[0]) == len(read[0][0])]


def _curve(read: Sequence[tuple[Entry, list[Read]]]) -> Figure:
    traces: list[dict[str, Any]] = []
    for entry, runs in read:
        mean, deviation = moments([_accuracy(evaluations).mean(1) for evaluations, _ in runs])
        x = [round(place, 2) for place in places(runs[0][0])]
        if len(runs) > 1:
            low, high = points(mean - deviation), points(mean + deviation)
            traces.append(band(entry, x, low, high))
        traces.append(
            {
                "type": "scatter",
                "mode": "lines+markers",
                "name": plain(entry.label),
                "x": x,
                "y": points(mean),
                "customdata": [plain(_after(evaluation)) for evaluation in runs[0][0]],
                "hovertemplate": "%{y:.1f}",
                "meta": {"entry": entry.number, "kind": "line"},
            }
        )
    layout = {
        "hovermode": "x unified",
        "xaxis": {"title": {"text": "items of the stream done"}},
        "yaxis": {"title": {"text": "accuracy %, mean over all tasks"}, "rangemode": "tozero"},
        "height": 440,
    }
    return {"data": traces, "layout": layout}


def _matrix(entry: Entry, runs: Sequence[Read]) -> Figure:
    evaluations, names = runs[0]
    ends = [n for n, evaluation in enumerate(evaluations) if evaluation.kind != "step"]
    mean, _ = moments([_accuracy(made)[ends] for made, _ in runs])
    same = all(other == names for _, other in runs)
    z: list[Points] = [points(row) for row in mean]
    trace = {
        "type": "heatmap",
        "x": [plain(name) if same else f"task {n}" for n, name in enumerate(names, start=1)],
        "y": [plain(f"{n + 1}. {_after(evaluations[end])}") for n, end in enumerate(ends)],
        "z": z,
        "texttemplate": "%{z:.0f}" if len(names) <= 24 else "",
        "hovertemplate": "%{y}<br>%{x}: %{z:.2f} %<extra></extra>",
        "xgap": 1,
        "ygap": 1,
        "meta": {"kind": "accuracy"},
    }
    layout = {
        "xaxis": {"type": "category", "side": "top", "tickangle": -45, "showgrid": False},
        "yaxis": {"type": "category", "autorange": "reversed", "showgrid": False},
        "margin": {"b": 6},
        "height": 130 + 28 * len(ends),
    }
    width = 240 + 56 * len(names)
    return {"entry": entry.number, "data": [trace], "layout": layout, "width": width}


def _accuracy(evaluations: Sequence[Evaluation]) -> np.ndarray[Any, np.dtype[np.float64]]:
    correct = np.array([evaluation.correct for evaluation in evaluations], dtype=np.float64)
    total = np.array([evaluation.total for evaluation in evaluations], dtype=np.float64)
    made: np.ndarray[Any, np.dtype[np.float64]] = 100 * correct / np.maximum(total, 1)
    return made


def _after(evaluation: Evaluation) -> str:
    return "before the first" if evaluation.kind == "before" else evaluation.name
