"""Why two runs give two numbers: what differs, each cause once, the usually heaviest first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.compare_causes import Cause, Pair
from benchmarks.compare_words import USUALLY

DOMAIN = "error_pct_"
_LARGEST = 5
_ORDER = tuple(USUALLY)
_NUMBERS = ("error_pct", "nll", "brier", "entropy", "clean_error_pct")
# With these alone the same work was done.
_ROUNDING = {"device", "versions"}


@dataclass(frozen=True, kw_only=True)
class Gap:
    """An error of both runs in percent; ``None`` where a run has none."""

    name: str
    a: float | None
    b: float | None

    @property
    def points(self) -> float | None:
        """B minus A, in percentage points."""
        return None if self.a is None or self.b is None else self.b - self.a


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two runs side by side.

    Attributes:
        runs: Method, protocol, backbone, seed and id of each.
        causes: What differs, the usually heaviest first.
        error: The headline error.
        source: The unadapted model's error.
        domains: The domains with the largest differences, largest first.
        verdict: What follows, in a sentence or two.
    """

    runs: tuple[str, str]
    causes: tuple[Cause, ...]
    error: Gap
    source: Gap
    domains: tuple[Gap, ...]
    verdict: str

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


def compare(
    row_a: Mapping[str, Any],
    row_b: Mapping[str, Any],
    spec_a: Mapping[str, Any] | None = None,
    spec_b: Mapping[str, Any] | None = None,
) -> Comparison:
    """Say what differs between two finished runs, and what that usually does.

    What follows from a difference is not named again: another number of images also changes the
    protocol's name and the stream's hash, and is one cause.

    Args:
        row_a: Row of ``result.json``.
        row_b: The other one's.
        spec_a: Content of its ``spec.json``; without both of them the rows alone are compared.
        spec_b: The other one's.
    """
    found = Pair(row_a, row_b, spec_a or {}, spec_b or {}).causes()
    causes = tuple(sorted(found, key=lambda cause: _ORDER.index(cause.kind)))
    error = _gap("error_pct", row_a, row_b)
    names = [key for key in row_a if key.startswith(DOMAIN) and key in row_b]
    gaps = [_gap(key, row_a, row_b) for key in names]
    gaps = sorted((gap for gap in gaps if gap.points), key=lambda gap: -abs(gap.points or 0))
    return Comparison(
        runs=(_title(row_a), _title(row_b)),
        causes=causes,
        error=error,
        source=_gap("source_error_pct", row_a, row_b),
        domains=tuple(gaps[:_LARGEST]),
        verdict=_verdict([cause.kind for cause in causes], error, _equal(row_a, row_b)),
    )


def _verdict(kinds: Sequence[str], error: Gap, equal: bool) -> str:
    points = "" if error.points is None else f"{abs(error.points):.2f} points"
    if not kinds and equal:
        return "Nothing that fixes a number differs, and the numbers are equal, as they must be."
    if not kinds:
        return (
            "Nothing that is recorded differs, yet the numbers do: a run is not deterministic, or "
            "something changed that is not recorded. Run both again on one machine with "
            "--overwrite; if they still differ, it is a bug."
        )
    if equal:
        return f"The numbers are equal all the same: {', '.join(kinds)} changed nothing here."
    if set(kinds) <= _ROUNDING:
        return (
            f"The same work on another machine: {points} apart. More than a few images of "
            "difference need another explanation; run both on one machine."
        )
    if len(kinds) == 1:
        if round(error.points or 0, 2) == 0:
            return f"One cause: {kinds[0]}. The mean does not show it, the other figures do."
        return f"One cause: {kinds[0]}. It makes the {points} between them."
    return (
        f"{len(kinds)} things differ at once, and the {points} cannot be shared out among them: "
        "make them equal one by one, from the top."
    )


def _gap(key: str, row_a: Mapping[str, Any], row_b: Mapping[str, Any]) -> Gap:
    return Gap(name=key.removeprefix(DOMAIN), a=row_a.get(key), b=row_b.get(key))


def _equal(row_a: Mapping[str, Any], row_b: Mapping[str, Any]) -> bool:
    keys = {k for k in (*row_a, *row_b) if k in _NUMBERS or k.startswith(DOMAIN)}
    return all(row_a.get(key) == row_b.get(key) for key in keys)


def _title(row: Mapping[str, Any]) -> str:
    said = f"{row['method']} on {row['protocol']}, {row['backbone']}, seed {row['seed']}"
    return f"{said} ({row['run_id'][:8]})"
