"""What the fields of a row may hold: a file from elsewhere is checked once, where it is read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from streams.jsonfiles import parse_json

_TEXT = frozenset(
    (
        *("run_id", "method", "protocol", "stream", "setting", "backbone", "worst_domain"),
        *("worst_segment", "open_set", "config", "reset_policy", "predicts", "provenance"),
        *("stream_hash", "weights", "weight_hash", "source_data", "norm", "tuned_on"),
        *("normalisation", "device", "dtype"),
    )
)
_NEEDED = ("run_id", "method", "stream", "setting")
_LISTS: dict[str, type | tuple[type, ...]] = {
    "visit_error_pct": (int, float, type(None)),
    "round_error_pct": (int, float, type(None)),
    "visit_domain": str,
    "forgets": dict,
}
_NUMBERS = frozenset(
    (
        *("batch_size", "num_examples", "num_samples", "num_unknown", "num_steps", "non_finite"),
        *("nll", "brier", "entropy", "selected_fraction", "forwards_per_image", "window"),
        *("backwards_per_image", "updates_refused", "tuned_trials", "threads", "seconds_per_1k"),
        *("images_per_second", "seconds", "peak_mem_mib", "recovery_steps", "num_tasks"),
        *("num_items", "eval_every", "train_steps", "num_evaluations", "forget_seconds"),
    )
)
# What SQLite, Arrow and floats hold.
_LARGEST = 1 << 63


def wrong_field(row: Mapping[str, Any]) -> str | None:
    """The first field of a row that holds what it cannot hold; ``None`` where all is well."""
    return next((key for key, value in row.items() if not _fits(str(key), value)), None)


def _fits(key: str, value: Any) -> bool:
    if key in _NEEDED and not isinstance(value, str):
        return False
    if key == "seed":
        return _number(value) and isinstance(value, int)
    if value is None:
        return True
    if key in _LISTS:
        return isinstance(value, list) and all(isinstance(item, _LISTS[key]) for item in value)
    if key == "config":
        return isinstance(value, str) and _object(value)
    if key in _TEXT or key.startswith("version_"):
        return isinstance(value, str)
    if key in _NUMBERS or key.endswith("_pct") or key.startswith("error_pct_"):
        return _number(value)
    return isinstance(value, (str, bool)) or _number(value)


def _number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return isinstance(value, float) or abs(value) < _LARGEST


def _object(text: str) -> bool:
    try:
        return isinstance(parse_json(text), dict)
    except ValueError:
        return False
