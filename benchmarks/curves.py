"""Accuracy on each task over a life, as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.errors import UsageError
from benchmarks.learning_results import EVALS, read_evals
from continual.evaluate import Evaluation
from streams.jsonfiles import load_json

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAX_COLUMNS = 3
MAX_LEGEND = 12


def find_runs(roots: Sequence[Path]) -> list[Path]:
    """Folders of runs on learning streams, finished or not, below the given ones.

    Raises:
        UsageError: If a folder is missing, or none holds such a run.
    """
    found: list[Path] = []
    for root in roots:
        if not root.exists():
            raise UsageError(f"{root} does not exist; run 'tta-bench run --out {root} …' first")
        found += [file.parent for file in sorted(root.rglob(EVALS))]
    if not found:
        raise UsageError(
            f"no run on a learning stream in {', '.join(map(str, roots))}: there is no {EVALS}"
        )
    return list(dict.fromkeys(found))


def save_png(runs: Sequence[Path], path: Path, *, masked: bool = False) -> Path:
    """Draw a panel for each run: accuracy on each task's test over the items of the stream.

    Unlabelled segments are grey bands, requests to forget dashed lines; the thick black line is
    the mean over all tasks.

    Args:
        runs: Folders of runs.
        path: File to write, ``.png``; its folder must be there.
        masked: Predict among the task's own classes (task-incremental).

    Raises:
        UsageError: For another suffix, a folder that is not there, or a damaged run.
    """
    if path.suffix.lower() != ".png":
        raise UsageError(f"{path} is no .png: curves are saved as PNG")
    if not path.parent.is_dir():
        raise UsageError(f"{path.parent} is no folder: create it first")
    read = [(_title(run), *read_evals(run)) for run in runs]
    # A figure of its own, without pyplot: no window, no global state.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = min(MAX_COLUMNS, len(read))
    lines = -(-len(read) // columns)
    figure = Figure(figsize=(1.5 + 4.5 * columns, 3.2 * lines), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(lines, columns, squeeze=False, sharey=True).ravel()
    for axes, (title, evaluations, names) in zip(panels, read, strict=False):
        _draw(axes, evaluations, names, masked)
        axes.set_title(title, fontsize=8)
    for axes in panels[len(read) :]:
        axes.set_axis_off()
    form = "task-incremental" if masked else "class-incremental"
    panels[0].set_ylabel(f"accuracy %, {form}")
    if len(read[0][2]) <= MAX_LEGEND:
        panels[len(read) - 1].legend(fontsize=6, loc="upper left", bbox_to_anchor=(1, 1))
    part = path.with_name(f".{path.name}.part")
    try:
        figure.savefig(part, format="png", dpi=120)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    return path


def places(evaluations: Sequence[Evaluation]) -> list[float]:
    """Where each evaluation lies on the axis of items: item ``i`` goes from ``i`` to ``i + 1``.

    Evaluations in the middle of an experience lie between by their step.
    """
    starts: dict[int, int] = {}
    ends: dict[int, int] = {}
    reached = 0
    for e in evaluations:
        starts.setdefault(e.item, reached)
        ends[e.item] = reached = e.step
    made = []
    for e in evaluations:
        length = ends[e.item] - starts[e.item]
        inside = (e.step - starts[e.item]) / length if e.kind == "step" and length else 1.0
        made.append(e.item + inside)
    return made


def _draw(
    axes: Axes, evaluations: Sequence[Evaluation], names: Sequence[str], masked: bool
) -> None:
    x = places(evaluations)
    hits = np.array([e.masked if masked else e.correct for e in evaluations], dtype=np.float64)
    total = np.array([e.total for e in evaluations], dtype=np.float64)
    accuracy = 100 * hits / np.maximum(total, 1)
    for number, name in enumerate(names):
        axes.plot(x, accuracy[:, number], linewidth=1, marker=".", markersize=3, label=name)
    axes.plot(x, accuracy.mean(1), color="black", linewidth=1.8, label="mean")
    for e in evaluations:
        if e.kind == "segment":
            axes.axvspan(e.item, e.item + 1, color="0.9", zorder=0)
        elif e.kind == "forget":
            axes.axvline(e.item + 1, color="tab:red", linestyle="--", linewidth=0.8)
    axes.set_xlabel("items of the stream")
    axes.set_ylim(-2, 102)


def _title(run: Path) -> str:
    try:
        spec: dict[str, Any] = load_json(run / "spec.json")
        return f"{spec['method']}, s{spec['seed']}\n{spec['stream']}, {spec['setting']}"
    except (OSError, ValueError, KeyError) as error:
        raise UsageError(f"{run / 'spec.json'} cannot be read; run it again") from error
