"""Frozen dataclass configs whose fields carry their source, their range and their meaning.

Kept in plain Python: a deployment of ``tta`` needs torch and numpy alone.
"""

from __future__ import annotations

import difflib
import operator
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, TypeVar

from tta.errors import AdapterError

C = TypeVar("C", bound="Config")
_BOUNDS: dict[str, tuple[str, Callable[[Any, Any], bool]]] = {
    "gt": ("above", operator.gt),
    "ge": ("at least", operator.ge),
    "lt": ("below", operator.lt),
    "le": ("at most", operator.le),
}


def param(default: Any, doc: str, **bounds: float) -> Any:
    """A config field: its default, one line on what it is and where it comes from, and its range.

    Args:
        default: The value from the paper or the official code.
        doc: Meaning and source ("learning rate; section 4.1").
        **bounds: Any of ``gt``, ``ge``, ``lt``, ``le``; applied to each item of a tuple.
    """
    unknown = set(bounds) - set(_BOUNDS)
    if unknown:
        raise TypeError(f"unknown bounds {sorted(unknown)}; use {sorted(_BOUNDS)}")
    return field(default=default, metadata={"doc": doc, "bounds": bounds})


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """Options whose types and ranges are checked.

    Raises:
        AdapterError: At construction, for a wrong type or a value out of range.
    """

    def __post_init__(self) -> None:
        hints = typing.get_type_hints(type(self))
        for item in fields(self):
            value = getattr(self, item.name)
            if not _matches(value, hints[item.name]):
                raise AdapterError(
                    f"{item.name}={value!r} has the wrong type: expected "
                    f"{_type_words(hints[item.name])} ({item.metadata.get('doc', '')})"
                )
            _check_bounds(item.name, value, item.metadata.get("bounds", {}))

    @classmethod
    def create(cls: type[C], values: Mapping[str, Any]) -> C:
        """Build a config from names and values.

        Raises:
            AdapterError: For an unknown name (with the nearest one), type or range.
        """
        known = [item.name for item in fields(cls)]
        for name in values:
            if name not in known:
                raise AdapterError(
                    f"unknown option {name!r}{did_you_mean(name, known)}; "
                    f"known options: {', '.join(known)}"
                )
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """Field names and plain values."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True, slots=True)
class AdapterConfig(Config):
    """What every adapter can be told; methods add their own fields."""

    seed: int = param(0, "seed of every random draw of the method", ge=0)
    episodic: bool = param(False, "reset to the source model before every batch")


def did_you_mean(name: str, known: typing.Iterable[str]) -> str:
    """``" (did you mean 'x'?)"`` for the nearest known name, else an empty string."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" (did you mean {near[0]!r}?)" if near else ""


def _check_bounds(name: str, value: Any, bounds: Mapping[str, float]) -> None:
    for item in value if isinstance(value, tuple) else (value,):
        for key, bound in bounds.items():
            words, holds = _BOUNDS[key]
            # `not holds` also refuses NaN.
            if item is not None and not holds(item, bound):
                raise AdapterError(f"{name}={value!r} is out of range: it must be {words} {bound}")


def _matches(value: Any, hint: Any) -> bool:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return value in args
    if origin in (typing.Union, types.UnionType):
        return any(_matches(value, option) for option in args)
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        if len(args) == 2 and args[1] is Ellipsis:
            return all(_matches(item, args[0]) for item in value)
        return len(value) == len(args) and all(map(_matches, value, args))
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, hint if isinstance(hint, type) else type(None))


def _type_words(hint: Any) -> str:
    if typing.get_origin(hint) is Literal:
        return "one of " + ", ".join(map(repr, typing.get_args(hint)))
    return getattr(hint, "__name__", None) if isinstance(hint, type) else str(hint)  # type: ignore[return-value]
