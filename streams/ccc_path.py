"""CCC's way through the severities: from one corruption to the next at a chosen difficulty.

Press et al.: RDumb: A simple approach that questions our progress in continual test-time
adaptation, 2023, arXiv:2306.05401. Severities lie on the grid 0, 0.25, ..., 5. For an ordered pair
of corruptions a matrix holds the accuracy at each pair of grid severities; a path from ``(i, 0)``
to ``(0, j)``, one step of one severity at a time, fades the first corruption out and the second
in.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from streams.corruptions.names import CORRUPTIONS
from streams.errors import StreamError
from streams.order import rng
from streams.types import Ints

POINTS = 21
"""Severities of the grid."""
STEP = 0.25
"""Severity between two of them."""

_EASY = tuple(name for name in CORRUPTIONS if name != "glass_blur")
LEVELS: dict[str, tuple[int, tuple[str, ...]]] = {
    "easy": (40, _EASY),
    "medium": (20, tuple(name for name in _EASY if name != "jpeg_compression")),
    "hard": (0, ("gaussian_noise", "shot_noise", "impulse_noise", "contrast")),
}
"""Baseline accuracy in percent, and the corruptions, of each level."""

Path = NDArray[np.int8]
Costs = NDArray[np.float32]


def find_path(accuracy: NDArray[np.float64], baseline: float) -> Path:
    """The monotone path whose mean accuracy is nearest to a baseline.

    Dynamic programming over (position, sum so far) with accuracies rounded to whole percent, so no
    path has a nearer mean. Of several, the one whose points lie nearest to the baseline on average.

    Args:
        accuracy: Percent ``(P, P)``; rows are grid severities of the corruption that fades out.
        baseline: Percent.

    Returns:
        Grid severities ``(L, 2)`` from ``(i, 0)`` to ``(0, j)`` with ``i`` and ``j`` at least 1.
    """
    points = len(accuracy)
    percent = np.rint(accuracy).astype(np.int64)
    best: tuple[float, float] | None = None
    found: tuple[Costs, int, int, int] | None = None
    for start in range(1, points):
        table = _costs(percent, baseline, start)
        for end in range(1, points):
            costs = table[0, end]
            sums = np.flatnonzero(np.isfinite(costs))
            length = start + end + 1
            # Rounded, so that equal means compare equal whatever their length.
            away = np.round(np.abs(sums / length - baseline), 9)
            spread = np.round(costs[sums] / length, 4)
            at = np.lexsort((spread, away))[0]
            rank = (float(away[at]), float(spread[at]))
            if best is None or rank < best:
                best, found = rank, (table, start, end, int(sums[at]))
    assert found is not None
    return _traced(percent, *found)


def _costs(percent: Ints, baseline: float, start: int) -> Costs:
    """Least distance to the baseline, by cell and sum of accuracies, of the paths from the start.

    Returns:
        ``(start + 1, P, S)``; infinite where no path has that sum.
    """
    points = percent.shape[1]
    size = 100 * (start + points) + 1
    table = np.full((start + 1, points, size), np.inf, dtype=np.float32)
    away = np.abs(percent - baseline).astype(np.float32)
    for row in range(start, -1, -1):
        for column in range(points):
            here = int(percent[row, column])
            if row == start and column == 0:
                table[row, 0, here] = away[row, 0]
                continue
            before = _before(table, row, column)
            table[row, column, here:] = before[: size - here] + away[row, column]
    return table


def _before(table: Costs, row: int, column: int) -> Costs:
    """The better of coming from the stronger first corruption or from the weaker second one."""
    if row + 1 == len(table):
        best: Costs = table[row, column - 1]
    elif column == 0:
        best = table[row + 1, column]
    else:
        best = np.minimum(table[row + 1, column], table[row, column - 1])
    return best


def _traced(percent: Ints, table: Costs, start: int, end: int, total: int) -> Path:
    row, column, path = 0, end, [(0, end)]
    while (row, column) != (start, 0):
        total -= int(percent[row, column])
        faded = table[row + 1, column, total] if row < start else np.inf
        grown = table[row, column - 1, total] if column else np.inf
        row, column = (row + 1, column) if faded <= grown else (row, column - 1)
        path.append((row, column))
    return np.array(path[::-1], dtype=np.int8)


@dataclass(frozen=True, kw_only=True)
class Trajectory:
    """Corruptions and severities over the grid steps of a stream.

    Attributes:
        noises: Names of the corruptions.
        pairs: Places in ``noises`` ``(G, 2)`` int8 of each grid step.
        grid: Grid severities ``(G, 2)`` int8; times ``STEP`` they are severities.
        starts: Grid step at which each path begins.
    """

    noises: tuple[str, ...]
    pairs: Path
    grid: Path
    starts: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.grid)

    def at(self, step: int) -> list[tuple[str, float]]:
        """The two corruptions of a grid step in the order of application, with severities."""
        return [
            (self.noises[noise], STEP * int(severity))
            for noise, severity in zip(self.pairs[step], self.grid[step], strict=True)
        ]


def walk(
    noises: Sequence[str], steps: int, seed: int, path_of: Callable[[str, str], Path]
) -> Trajectory:
    """Paths one after the other: the second corruption of one is the first of the next.

    Args:
        noises: Two corruptions or more.
        steps: Grid steps; the last path is cut.
        seed: Key of the draws.
        path_of: The path of an ordered pair; asked once for each.

    Raises:
        StreamError: For fewer than two corruptions.
    """
    if len(set(noises)) < 2 or len(set(noises)) != len(noises):
        raise StreamError(f"CCC needs two or more different corruptions, got {', '.join(noises)}")
    generator = rng(seed, "ccc", "pairs")
    known: dict[tuple[int, int], Path] = {}
    pairs: list[Path] = []
    grids: list[Path] = []
    starts: list[int] = []
    first, done = int(generator.integers(len(noises))), 0
    while done < steps:
        second = int(generator.integers(len(noises) - 1))
        second += second >= first
        if (first, second) not in known:
            known[first, second] = path_of(noises[first], noises[second])
        path = known[first, second][: steps - done]
        pairs.append(np.tile(np.array([[first, second]], dtype=np.int8), (len(path), 1)))
        grids.append(path)
        starts.append(done)
        first, done = second, done + len(path)
    return Trajectory(
        noises=tuple(noises),
        pairs=np.concatenate(pairs),
        grid=np.concatenate(grids),
        starts=tuple(starts),
    )
