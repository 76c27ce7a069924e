"""The leaderboard of a group as cells of text, with what to sort them by."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from benchmarks.leaderboard import BEST, error_cell, group_columns, standing
from benchmarks.leaderboard_columns import COLUMNS
from benchmarks.leaderboard_stats import NOISE
from benchmarks.report.data import Entry, Group

# Column to heading and decimals, in the order of the table; shown where any row has a value.
_HEADS = {
    "p_vs_best": ("p", 3),
    "seeds": ("seeds", 0),
    "source_error_pct": ("source %", 2),
    "first_visit_error_pct": ("first visit %", 2),
    "last_visit_error_pct": ("last visit %", 2),
    "clean_error_pct": ("clean % after", 2),
    "source_clean_error_pct": ("clean % source", 2),
    "retention_pct": ("retention %", 1),
    "worst_domain_error_pct": ("worst domain", 1),
    "auroc_pct": ("AUROC %", 2),
    "fpr95_pct": ("FPR95 %", 2),
    "h_score_pct": ("H-score %", 2),
    "online_error_pct": ("online error %", 2),
    "segment_error_pct": ("segments %", 2),
    "ece_pct": ("ECE %", 2),
    "nll": ("NLL", 3),
    "selected_fraction": ("selected", 2),
    "forwards_per_image": ("passes / image", 2),
    "seconds_per_1k": ("s / 1,000", 2),
    "peak_mem_mib": ("MiB", 0),
}
# Where all entries agree, a line above the table says it once.
_SHARED = ("source_error_pct", "source_clean_error_pct", "seeds")
_LEFT = ("method", "error_pct", "worst_domain_error_pct")


@dataclass(frozen=True, kw_only=True)
class Column:
    """One column: key of the row, heading, definition, and whether its text is set left."""

    key: str
    head: str
    title: str
    left: bool


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One cell: its text, the number it is sorted by, and a remark beside the text."""

    text: str
    value: float | str | None
    mark: str = ""
    title: str = ""


@dataclass(frozen=True, kw_only=True)
class Table:
    """A group's leaderboard; ``shared`` is what all entries have in common."""

    columns: tuple[Column, ...]
    rows: tuple[tuple[Entry, tuple[Cell, ...]], ...]
    shared: tuple[tuple[str, str], ...]


def leaderboard_table(group: Group) -> Table:
    """The table of a group."""
    heads = dict(_HEADS)
    if group.learning:
        learning = {key: (head, 2) for head, key in group_columns([group.first]).items()}
        del heads["worst_domain_error_pct"]
        heads = {"p_vs_best": heads.pop("p_vs_best"), **learning, **heads}
    lines = [entry.row for entry in group.entries]
    shared, shown = [], []
    for key, (head, digits) in heads.items():
        values = [line.get(key) for line in lines]
        if all(value is None for value in values):
            continue
        texts = {_text(value, digits) for value in values}
        if key in _SHARED and len(texts) == 1:
            shared.append((head, texts.pop()))
        else:
            shown.append(key)
    columns = [
        Column(key=key, head=head, title=_meaning(key), left=key in _LEFT)
        for key, head in (
            *(("rank", "#"), ("method", "method"), ("error_pct", "error %")),
            *((key, heads[key][0]) for key in shown),
        )
    ]
    rows = []
    for entry in group.entries:
        row = entry.row
        cells = [
            Cell(text=str(row["rank"]), value=row["rank"]),
            Cell(text=entry.label, value=entry.label),
            _error(row),
            *(_cell(row, key, heads[key][1]) for key in shown),
        ]
        rows.append((entry, tuple(cells)))
    facts = (
        ("batch size", row["batch_size"]),
        ("reset", row["reset_policy"]),
        ("images", row["num_examples"]),
        ("predictions", row["num_samples"]),
    )
    shared += [(name, str(value)) for name, value in facts if value not in (None, "")]
    return Table(columns=tuple(columns), rows=tuple(rows), shared=tuple(shared))


def _error(row: dict[str, Any]) -> Cell:
    standing_ = standing(row)
    title = ""
    if standing_ and standing_ != BEST:
        title = (
            f"p = {row['p_vs_best']:.2f}, not below {NOISE}: the seeds do not tell it from the best"
        )
    return Cell(text=error_cell(row), value=row["error_pct"], mark=standing_, title=title)


def _cell(row: dict[str, Any], key: str, digits: int) -> Cell:
    value = row.get(key)
    text = _text(value, digits)
    if key == "worst_domain_error_pct" and value is not None:
        text = f"{row['worst_domain']} {text}"
    if key == "forwards_per_image" and value is not None:
        back = row.get("backwards_per_image") or 0.0
        return Cell(text=f"{text} + {back:.{digits}f}", value=value + back)
    if key == "p_vs_best" and value is not None and value < 0.001:
        text = "< 0.001"
    return Cell(text=text, value=value)


def _text(value: Any, digits: int) -> str:
    return "" if value is None else f"{value:,.{digits}f}"


def _meaning(key: str) -> str:
    meaning = COLUMNS[key][1].replace("`", "")
    back = COLUMNS["backwards_per_image"][1]
    return f"{meaning} + {back}" if key == "forwards_per_image" else meaning
