"""A run told to TensorBoard, MLflow or Weights & Biases while it goes.

Each tracker is a small class that imports its library when it is made. None of them changes a
number: they are told copies of the rows that the run's own files get. They write below the results
folder and nowhere else, unless the user's environment names a server.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from benchmarks.errors import UsageError

if TYPE_CHECKING:
    from benchmarks.results import RunFolder

_DOMAIN = "error_pct_"
# What a machine knows and nobody else has to.
_LOCAL = ("data_dir", "source_dir", "checkpoint")
_TRACKERS = {
    "tensorboard": ("TensorBoard", "tensorboard"),
    "mlflow": ("MLflow", "mlflow-skinny"),
    "wandb": ("WandB", "wandb"),
}
"""Name to class of ``benchmarks.trackers`` and the package that it needs."""


class Tracker(Protocol):
    """What a run tells; ``close`` ends what ``start`` began, finished or not."""

    def start(self, spec: Mapping[str, Any], folder: Path) -> None:
        """A run begins or goes on: its spec with ``run_id``, and its folder in the results."""

    def step(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """A step was taken: its rows of ``steps.parquet``."""

    def finish(self, row: Mapping[str, Any]) -> None:
        """The run is finished: its row of ``result.json``."""

    def close(self) -> None:
        """Nothing more comes; without ``finish`` the run was interrupted."""


def make_tracker(names: Sequence[str]) -> Tracker | None:
    """One tracker for all that are named; ``None`` for none.

    Args:
        names: Of ``tensorboard``, ``mlflow`` and ``wandb``.

    Raises:
        UsageError: For another name, or a library that is not installed.
    """
    made = {name: _made(name) for name in names}
    return Several(made) if made else None


def _made(name: str) -> Tracker:
    from benchmarks import trackers

    if name not in _TRACKERS:
        raise UsageError(f"--log {name!r}: known trackers are {', '.join(_TRACKERS)}")
    kind, package = _TRACKERS[name]
    try:
        made: Tracker = getattr(trackers, kind)()
    except ImportError as error:
        raise UsageError(f"--log {name} needs {package}: pip install {package}") from error
    return made


def step_values(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Scalars of one step, over all domains of its batch; what is not finite is left out."""
    n = sum(row["n"] for row in rows)
    correct = sum(row["correct"] for row in rows)
    values: dict[str, Any] = {"error_pct": 100 * (1 - correct / n) if n else None}
    for key in ("loss", "selected_fraction"):
        values[key] = rows[0].get(key)
    for key in ("entropy", "confidence"):
        weighed = sum(row[key] * row["n"] for row in rows if row["n"])
        values[key] = weighed / n if n else None
    return _finite(values)


def parameters(spec: Mapping[str, Any]) -> dict[str, Any]:
    """The spec as flat parameters: the method's options as ``config.NAME``, no local paths."""
    flat: dict[str, Any] = {}
    for key, value in spec.items():
        if key == "config":
            flat |= _flat(value, "config")
        elif key not in _LOCAL:
            flat[key] = value if isinstance(value, (int, float, str)) else json.dumps(value)
    return flat


def _flat(values: Mapping[str, Any], name: str) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{name}.{key}")
        else:
            plain = isinstance(value, (int, float, str))
            flat[f"{name}.{key}"] = value if plain else json.dumps(value)
    return flat


def summary(row: Mapping[str, Any]) -> dict[str, float]:
    """Numbers of the result row; a domain's error as ``domain/NAME``."""
    named = {
        f"domain/{key.removeprefix(_DOMAIN)}" if key.startswith(_DOMAIN) else f"final/{key}": value
        for key, value in row.items()
        if not isinstance(value, bool)
    }
    return _finite(named)


def _finite(values: Mapping[str, Any]) -> dict[str, float]:
    numbers = {k: v for k, v in values.items() if isinstance(v, (int, float))}
    return {key: float(value) for key, value in numbers.items() if math.isfinite(value)}


class Several:
    """Several trackers as one; one that fails on the way is left out, and the run goes on.

    Args:
        trackers: By name.
    """

    def __init__(self, trackers: Mapping[str, Tracker]) -> None:
        self._all = trackers
        self._alive: dict[str, Tracker] = {}

    def start(self, spec: Mapping[str, Any], folder: Path) -> None:
        """Start all.

        Raises:
            UsageError: If one cannot, such as for want of its server.
        """
        for name, tracker in self._all.items():
            _start(name, tracker, spec, folder)
            self._alive[name] = tracker

    def step(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Tell all."""
        self._tell(lambda tracker: tracker.step(rows))

    def finish(self, row: Mapping[str, Any]) -> None:
        """Tell all."""
        self._tell(lambda tracker: tracker.finish(row))

    def close(self) -> None:
        """Close all that were started."""
        self._tell(lambda tracker: tracker.close())

    def _tell(self, call: Callable[[Tracker], None]) -> None:
        told = [name for name, tracker in self._alive.items() if _told(name, tracker, call)]
        self._alive = {name: self._alive[name] for name in told}


@contextmanager
def tracked(tracker: Tracker | None, folder: RunFolder, spec: Mapping[str, Any]) -> Iterator[None]:
    """Let a tracker follow what is written into a run's folder."""
    if tracker is None:
        yield
        return
    try:
        tracker.start(spec, folder.path)
        folder.tracker = tracker
        yield
    finally:
        tracker.close()


def _start(name: str, tracker: Tracker, spec: Mapping[str, Any], folder: Path) -> None:
    try:
        tracker.start(spec, folder)
    except Exception as error:  # each library has its own
        raise UsageError(
            f"--log {name} cannot start ({_first_line(error)}); --resume takes the run up"
        ) from error


def _told(name: str, tracker: Tracker, call: Callable[[Tracker], None]) -> bool:
    try:
        call(tracker)
    except Exception as error:  # hours of work are worth more than their log
        warnings.warn(f"--log {name} is left out: {_first_line(error)}", stacklevel=2)
        return False
    return True


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
