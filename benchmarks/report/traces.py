"""What the charts are made of: plain dicts for plotly, with names that it shows as they are."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any

from benchmarks.leaderboard_columns import DOMAIN_PREFIX
from benchmarks.report.data import Entry
from benchmarks.report.series import Points

Figure = dict[str, Any]
Trace = dict[str, Any]
MAX_LABEL = 32


def band(entry: Entry, x: Sequence[float], low: Points, high: Points) -> Trace:
    """The area between two lines."""
    known = [(*ends, at) for *ends, at in zip(low, high, x, strict=True) if None not in ends]
    return {
        "type": "scatter",
        "mode": "lines",
        "x": [at for _, _, at in known] + [at for _, _, at in known[::-1]],
        "y": [upper for _, upper, _ in known] + [lower for lower, _, _ in known[::-1]],
        "fill": "toself",
        "line": {"width": 0},
        "hoverinfo": "skip",
        "meta": {"entry": entry.number, "kind": "band"},
    }


def domain_labels(columns: Sequence[str]) -> list[str]:
    """Names of the domains of per-domain columns."""
    return [plain(name.removeprefix(DOMAIN_PREFIX)) for name in columns]


def tick(entry: Entry) -> str:
    """A short name that no other entry of the group has."""
    short = len(entry.label) <= MAX_LABEL
    return plain(entry.label if short else f"{entry.label[:MAX_LABEL]}… #{entry.row['rank']}")


def plain(text: str) -> str:
    """Text that plotly shows as it is: it takes some tags of HTML for its own."""
    return html.escape(text, quote=False)
