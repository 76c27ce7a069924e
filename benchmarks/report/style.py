"""One look per method, the same in every chart of a page and in the figures for paper."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

# After Okabe and Ito, and Tol: told apart with any kind of colour vision, on white and on dark.
LIGHT = (
    *("#0072b2", "#d55e00", "#009e73", "#b0578d"),
    *("#c98a00", "#3aa3dc", "#4b3a9e", "#8a5a44"),
)
DARK = (
    *("#5aa9f0", "#ff8a4c", "#35c99a", "#eb9fcb"),
    *("#f5c04a", "#9bdcff", "#a99bff", "#cfa58e"),
)
REFERENCE = "source"
REFERENCE_LIGHT, REFERENCE_DARK = "#6b7280", "#a3acb9"
# How much nearer to the ground each further entry of a method is, and at most.
LIGHTER, MOST = 0.28, 0.6
# Name in plotly, marker in matplotlib, character for legends.
_SYMBOLS = (
    ("circle", "o", "●"),
    ("square", "s", "■"),
    ("diamond", "D", "◆"),
    ("triangle-up", "^", "▲"),
    ("triangle-down", "v", "▼"),
    ("cross", "P", "✚"),
    ("x", "X", "✖"),
    ("star", "*", "★"),
)
_DASHES = (("solid", "-"), ("dash", "--"), ("dot", ":"), ("dashdot", "-."))


@dataclass(frozen=True)
class Style:
    """Look of a method.

    Attributes:
        colour: Position in ``LIGHT`` and ``DARK``; -1 for the reference.
        symbol: Marker of plotly.
        marker: Marker of matplotlib.
        sign: The marker as a character.
        dash: Line of plotly.
        line: Line of matplotlib.
        variant: Place among the entries of the method in a ranking.
    """

    colour: int
    symbol: str
    marker: str
    sign: str
    dash: str
    line: str
    variant: int = 0

    @property
    def open(self) -> bool:
        """Whether the marker is not filled."""
        return self.colour < 0 or self.variant % 2 == 1

    @property
    def paper(self) -> str:
        """Colour on white; further variants are lighter."""
        colour = REFERENCE_LIGHT if self.colour < 0 else LIGHT[self.colour]
        share = min(LIGHTER * self.variant, MOST)
        parts = (int(colour[at : at + 2], 16) for at in (1, 3, 5))
        return "#" + "".join(f"{round(part + share * (255 - part)):02x}" for part in parts)

    def varied(self, variant: int) -> Style:
        """The look of another entry of the method: another line, a lighter colour."""
        names = [line for _, line in _DASHES]
        line = names[(names.index(self.line) + variant) % len(names)]
        return replace(self, variant=variant, line=line)


def styles(methods: Iterable[str], *, shift: int = 0) -> dict[str, Style]:
    """A look for each method, by its place among the names; the source model is grey.

    Args:
        methods: Names.
        shift: Markers to move on by, for names whose colours others have too.
    """
    made = {}
    names = list(dict.fromkeys(methods))
    for place, name in enumerate(name for name in names if name != REFERENCE):
        turn, colour = divmod(place, len(LIGHT))
        # Each turn of the colours moves on by one marker: no pair comes twice.
        symbol = _SYMBOLS[(colour + turn + shift) % len(_SYMBOLS)]
        made[name] = Style(colour, *symbol, *_DASHES[turn % len(_DASHES)])
    if REFERENCE in names:
        made[REFERENCE] = Style(-1, "circle-open", "o", "○", "dash", "--")
    return made
