"""A plan as a picture: domains and labels over the steps of a stream."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from streams.errors import StreamError
from streams.order import Plan
from streams.types import UNKNOWN, AnyInts, Stream

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAX_COLUMNS = 800
MAX_NAMES = 40


def shares(
    plan: Plan, values: AnyInts, kinds: int, columns: int = MAX_COLUMNS
) -> NDArray[np.float64]:
    """Share of each value over time.

    Args:
        plan: The plan.
        values: A value in ``[0, kinds)`` for each sample ``(N,)``.
        kinds: Number of values.
        columns: Columns at most; each holds whole steps.

    Returns:
        ``(kinds, C)`` with columns that sum to one.
    """
    columns = min(columns, len(plan))
    step = np.repeat(np.arange(len(plan)), np.diff(plan.offsets))
    column = step * columns // len(plan)
    counts = np.bincount(values * columns + column, minlength=kinds * columns)
    table = counts.reshape(kinds, columns).astype(np.float64)
    table /= table.sum(axis=0)
    return table


def save_png(stream: Stream, path: Path | str) -> Path:
    """Draw which domains and which labels each step of a stream holds; resets are dashed lines.

    Args:
        stream: The stream; no image is read.
        path: File to write, ``.png``; its folder must be there.

    Raises:
        StreamError: For another suffix or a folder that is not there.
    """
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise StreamError(f"{path} is no .png: a picture of a plan is saved as PNG")
    if not path.parent.is_dir():
        raise StreamError(f"{path.parent} is no folder: create it first")
    # A figure of its own, without pyplot: no window, no global state.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    plan, kinds = stream.plan, len(stream.domains)
    height = 2.6 + 0.16 * (min(kinds, MAX_NAMES) + min(stream.num_classes, MAX_NAMES))
    figure = Figure(figsize=(10, height), layout="constrained")
    FigureCanvasAgg(figure)
    above, below = figure.subplots(2, 1, sharex=True)
    labels = stream.source.labels[plan.positions]
    classes = [str(number) for number in range(stream.num_classes)]
    if (labels == UNKNOWN).any():
        labels = np.where(labels == UNKNOWN, stream.num_classes, labels)
        classes.append("unknown")
    _draw(above, shares(plan, plan.domain_ids, kinds), [d.name for d in plan.domains], plan)
    _draw(below, shares(plan, labels, len(classes)), classes, plan)
    above.set_title(
        f"{stream.name}, {stream.setting}, batch size {stream.batch_size}, seed {stream.seed}"
    )
    above.set_ylabel("domain")
    below.set_ylabel("label")
    below.set_xlabel("step")
    part = path.with_name(f".{path.name}.part")
    try:
        figure.savefig(part, format="png", dpi=120)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    return path


def _draw(axes: Axes, table: NDArray[np.float64], names: list[str], plan: Plan) -> None:
    size, steps = len(names), len(plan)
    axes.imshow(
        table,
        aspect="auto",
        interpolation="nearest",
        cmap="Greys",
        vmin=0,
        vmax=max(float(np.quantile(table[table > 0], 0.95)), 1e-9),
        extent=(0, steps, size - 0.5, -0.5),
    )
    shown = range(0, size, -(-size // MAX_NAMES))
    axes.set_yticks(list(shown), [names[at] for at in shown], fontsize=7)
    # More resets than columns would only be a grey veil.
    if len(plan.reset_steps) <= MAX_COLUMNS // 4:
        for step in plan.reset_steps:
            axes.axvline(step, linestyle="--", linewidth=0.6, color="tab:red")
