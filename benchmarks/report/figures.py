"""Figures for paper: one file for each chart and ranking, as PNG and PDF with embedded fonts."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.errors import UsageError
from benchmarks.files import atomic_write
from benchmarks.leaderboard_columns import DOMAIN_PREFIX, domain_names
from benchmarks.report.charts import MIN_BIN
from benchmarks.report.data import Entry, Group, Results
from benchmarks.report.over_steps import MAX_NAMED
from benchmarks.report.series import Axis, axis_of, error_line, moments, row_values
from benchmarks.report.style import REFERENCE_LIGHT, Style, styles

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Widths in inches: one column of a two-column paper, and the text of one.
COLUMN, TEXT = 3.4, 7.0
DPI = 300
_SETTINGS: Any = {
    "font.size": 8,
    "axes.titlesize": 8,
    "legend.fontsize": 7,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e5e7eb",
    "grid.linewidth": 0.6,
    "axes.linewidth": 0.6,
    "lines.linewidth": 1.2,
    "lines.markersize": 4.5,
    # TrueType, embedded: publishers refuse Type 3.
    "pdf.fonttype": 42,
    "figure.constrained_layout.use": True,
}
Looks = Mapping[str, Style]
Draw = Callable[["Axes", Group, Looks], bool]


def save_figures(results: Results, folder: Path, formats: Sequence[str]) -> tuple[Path, ...]:
    """Draw every figure that the results have the numbers for.

    Args:
        results: What ``data.read`` found; groups on learning streams get a leaderboard alone.
        folder: Folder for the files, ``<figure>-<stream>-<setting>-<backbone>.<format>``; made
            where it is not there.
        formats: ``png`` (300 dots an inch), ``pdf`` or both.

    Returns:
        The files.

    Raises:
        UsageError: If they cannot be written.
    """
    from matplotlib import rc_context

    looks = styles(results.methods(learning=False))
    learners = styles(results.methods(learning=True))
    written = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with rc_context(_SETTINGS):
            for group, name in zip(results.groups, _names(results.groups), strict=True):
                figures = {"leaderboard": FIGURES["leaderboard"]} if group.learning else FIGURES
                for kind, (draw, width, height) in figures.items():
                    made = _figure(width, height(group))
                    if draw(made.axes[0], group, learners if group.learning else looks):
                        paths = [folder / f"{kind}-{name}.{form}" for form in formats]
                        written += [_save(made, path) for path in paths]
    except OSError as error:
        raise UsageError(
            f"cannot write figures to {folder} ({error.strerror}); name another --figures"
        ) from error
    return tuple(written)


def _figure(width: float, height: float) -> Figure:
    # A figure of its own, without pyplot: no window, no global state.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    figure.subplots()
    return figure


def _save(figure: Figure, path: Path) -> Path:
    # Without a date the same results give the same file.
    extra: dict[str, Any] = {"metadata": {"CreationDate": None}} if path.suffix == ".pdf" else {}
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format=path.suffix[1:], dpi=DPI, **extra)
    return path


def _names(groups: Sequence[Group]) -> list[str]:
    names: list[str] = []
    for group in groups:
        parts = (group.first[key] for key in ("stream", "setting", "backbone"))
        name = re.sub(r"[^A-Za-z0-9.]+", "-", "-".join(map(str, parts))).strip("-")
        same = sum(other == name or other.startswith(f"{name}--") for other in names)
        names.append(f"{name}--{same + 1}" if same else name)
    return names


def _look(entry: Entry, looks: Looks) -> tuple[Style, dict[str, Any]]:
    look = looks[entry.method].varied(entry.variant)
    filled = "none" if look.open else look.paper
    return look, {"color": look.paper, "markerfacecolor": filled, "label": _text(entry.label)}


def _text(label: str) -> str:
    # A pair of dollar signs would be read as a formula.
    return label.replace("$", r"\$")


def _leaderboard(axes: Axes, group: Group, looks: Looks) -> bool:
    entries = group.entries
    errors = [float(entry.row["error_pct"]) for entry in entries]
    halves = [entry.row.get("error_pct_ci95") or 0.0 for entry in entries]
    places = np.arange(len(entries))
    colours = [_look(entry, looks)[0].paper for entry in entries]
    axes.barh(places, errors, xerr=halves, color=colours, height=0.7, error_kw={"elinewidth": 0.8})
    for place, error, half in zip(places, errors, halves, strict=True):
        axes.annotate(
            f"{error:.1f}",
            (error + half, float(place)),
            (3, 0),
            textcoords="offset points",
            va="center",
            fontsize=7,
        )
    axes.set_yticks(places, [_text(entry.label) for entry in entries])
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    axes.margins(x=0.12)
    axes.set_xlim(left=0)
    axes.set_xlabel("error %")
    return True


def _steps(axes: Axes, group: Group, looks: Looks) -> bool:
    axis = axis_of(group)
    if axis is None:
        return False
    for entry in group.entries:
        line = error_line(entry, axis)
        if line is None:
            continue
        look, said = _look(entry, looks)
        mean, low, high = (np.array(part, np.float64) for part in (line.mean, line.low, line.high))
        axes.plot(axis.centres, mean, linestyle=look.line, **said)
        if len(entry.runs) > 1:
            axes.fill_between(axis.centres, low, high, color=look.paper, alpha=0.1, linewidth=0)
    _stripes(axes, axis)
    axes.set_ylim(bottom=0)
    axes.set_ylabel("error %")
    _legend(axes)
    return True


def _stripes(axes: Axes, axis: Axis) -> None:
    axes.set_xlim(-0.5, axis.steps - 0.5)
    if not axis.bands or len(axis.bands) > MAX_NAMED:
        axes.set_xlabel("step of the stream")
        return
    for band in axis.bands[1::2]:
        axes.axvspan(band.first - 0.5, band.end - 0.5, color="0.95", linewidth=0, zorder=0)
    middles = [(band.first + band.end - 1) / 2 for band in axis.bands]
    names = [_text(band.name) for band in axis.bands]
    axes.set_xticks(middles, names, rotation=45, ha="right", rotation_mode="anchor")
    axes.grid(visible=False, axis="x")


def _pareto(axes: Axes, group: Group, looks: Looks) -> bool:
    points = []
    for entry in group.entries:
        forwards = entry.row.get("forwards_per_image")
        if forwards is None:
            continue
        cost = forwards + (entry.row.get("backwards_per_image") or 0.0)
        points.append((cost, float(entry.row["error_pct"])))
        look, said = _look(entry, looks)
        half = entry.row.get("error_pct_ci95") or 0.0
        axes.errorbar(*points[-1], yerr=half, fmt=look.marker, elinewidth=0.8, zorder=3, **said)
    if not points:
        return False
    front: list[tuple[float, float]] = []
    for cost, error in sorted(points):
        if not front or error < front[-1][1]:
            front.append((cost, error))
    axes.step(*zip(*front, strict=True), where="post", color="0.4", linestyle=":", linewidth=1)
    if all(cost > 0 for cost, _ in points):
        axes.set_xscale("log")
        costs = [cost for cost, _ in points]
        decades = range(-3, 6)
        ticks = [step * 10.0**decade for decade in decades for step in (1, 2, 5)]
        inside = [tick for tick in ticks if min(costs) / 1.5 <= tick <= max(costs) * 1.5]
        axes.set_xticks(inside, [f"{tick:g}" for tick in inside])
        axes.set_xticks([], minor=True)
    axes.set_xlabel("forwards + backwards per image")
    axes.set_ylabel("error %")
    _legend(axes)
    return True


def _retention(axes: Axes, group: Group, looks: Looks) -> bool:
    known = [entry for entry in group.entries if entry.row.get("clean_error_pct") is not None]
    if not known:
        return False
    known.sort(key=lambda entry: float(entry.row["clean_error_pct"]))
    for place, entry in enumerate(known):
        look, said = _look(entry, looks)
        after = float(entry.row["clean_error_pct"])
        _, deviation = moments([row_values(run.row, ["clean_error_pct"]) for run in entry.runs])
        before = entry.row.get("source_clean_error_pct")
        if before is not None:
            axes.plot([before, after], [place, place], color=look.paper)
            axes.plot([before], [place], "|", color=REFERENCE_LIGHT, markersize=8)
        axes.errorbar(
            after, place, xerr=float(deviation[0]), fmt=look.marker, elinewidth=0.8, **said
        )
    axes.set_yticks(range(len(known)), [_text(entry.label) for entry in known])
    axes.invert_yaxis()
    axes.set_xlabel("clean error %: source (tick), after the run")
    return True


def _calibration(axes: Axes, group: Group, looks: Looks) -> bool:
    drawn = False
    axes.plot([0, 100], [0, 100], color="0.6", linestyle=":", linewidth=0.8)
    for entry in group.entries:
        bins = [run.steps.bins for run in entry.runs if run.steps is not None]
        if not bins:
            continue
        count, correct, confidence = np.sum(bins, axis=0)
        there = count >= MIN_BIN
        look, said = _look(entry, looks)
        ece = entry.row.get("ece_pct")
        said["label"] += "" if ece is None else f" ({ece:.1f})"
        x, y = 100 * confidence[there] / count[there], 100 * correct[there] / count[there]
        axes.plot(x, y, linestyle=look.line, marker=look.marker, markersize=3, **said)
        drawn = True
    axes.set_xlim(0, 100)
    axes.set_ylim(0, 100)
    axes.set_xlabel("confidence %")
    axes.set_ylabel("accuracy %")
    _legend(axes, "method (ECE %)")
    return drawn


def _heat(axes: Axes, group: Group, looks: Looks) -> bool:
    columns = domain_names(group.first)
    errors = np.stack([row_values(entry.row, columns) for entry in group.entries])
    image = axes.imshow(errors, cmap="Blues", aspect="auto")
    names = [_text(name.removeprefix(DOMAIN_PREFIX)) for name in columns]
    axes.set_xticks(range(len(columns)), names, rotation=45, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(errors)), [_text(entry.label) for entry in group.entries])
    axes.grid(visible=False)
    if len(columns) <= 16:
        middle = (np.nanmin(errors) + np.nanmax(errors)) / 2
        for (row, column), error in np.ndenumerate(errors):
            if not np.isnan(error):
                ink = "white" if error > middle else "black"
                text = f"{error:.1f}"
                axes.text(column, row, text, ha="center", va="center", fontsize=6, color=ink)
    axes.figure.colorbar(image, ax=axes, label="error %", pad=0.01)
    return True


def _legend(axes: Axes, title: str | None = None) -> None:
    axes.legend(
        title=title, loc="upper left", bbox_to_anchor=(1, 1), frameon=False, borderaxespad=0.2
    )


def _rows(least: float, each: float) -> Callable[[Group], float]:
    return lambda group: least + each * len(group.entries)


# Name to drawing, width and height in inches.
FIGURES: dict[str, tuple[Draw, float, Callable[[Group], float]]] = {
    "leaderboard": (_leaderboard, COLUMN, _rows(0.6, 0.2)),
    "steps": (_steps, TEXT, _rows(2.6, 0.0)),
    "pareto": (_pareto, COLUMN + 1, _rows(2.6, 0.0)),
    "retention": (_retention, COLUMN, _rows(0.6, 0.2)),
    "calibration": (_calibration, COLUMN + 1, _rows(2.8, 0.0)),
    "heat": (_heat, TEXT, _rows(1.1, 0.2)),
}
