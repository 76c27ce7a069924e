"""Options by name: a default and what it is; what was given is checked and read as its type."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from streams.errors import StreamError

Option = float | int | str
Known = Mapping[str, tuple[Option, str]]


def changed(owner: str, known: Known, given: Mapping[str, Option] | None) -> dict[str, Option]:
    """The given options as values of their type, sorted, without those that are the default.

    Args:
        owner: Who has the options, for messages (``setting 'online'``).
        known: Default and what it is, by name; the default's type is the option's.
        given: Values, or text such as a command line gives.

    Raises:
        StreamError: For an unknown name, with the nearest, or a value of another type.
    """
    if not isinstance(given or {}, Mapping):
        raise StreamError(f"options of {owner} must be values by name, got {given!r}")
    read: dict[str, Option] = {}
    for name, value in sorted((given or {}).items()):
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            have = f"it has {', '.join(known)}" if known else "it has none"
            raise StreamError(f"{owner} has no option {name!r}{hint}; {have}")
        read[name] = _typed(name, value, known[name][0])
    return {name: value for name, value in read.items() if value != known[name][0]}


@dataclass(frozen=True, slots=True)
class Values:
    """All options of an owner, defaults filled in.

    Attributes:
        of: Values by name.
    """

    of: Mapping[str, Option]

    def number(
        self, name: str, low: float, high: float = math.inf, *, open_low: bool = False
    ) -> float:
        """A numeric option in ``[low, high]``, or ``(low, high]`` with ``open_low``.

        Raises:
            StreamError: If it is out of range.
        """
        value = float(self.of[name])
        if low <= value <= high and not (open_low and value == low):
            return value
        least = f"above {low:g}" if open_low else f"at least {low:g}"
        most = "" if math.isinf(high) else f" and at most {high:g}"
        raise StreamError(f"{name}={self.of[name]} is out of range: it must be {least}{most}")

    def whole(self, name: str, low: int, high: float = math.inf) -> int:
        """An integer option in ``[low, high]``.

        Raises:
            StreamError: If it is out of range.
        """
        return int(self.number(name, low, high))

    def choice(self, name: str, allowed: Sequence[str]) -> str:
        """A text option that is one of ``allowed``.

        Raises:
            StreamError: If it is another.
        """
        value = str(self.of[name])
        if value not in allowed:
            raise StreamError(f"{name}={value!r} is none of {', '.join(map(repr, allowed))}")
        return value

    def words(self, name: str) -> tuple[str, ...]:
        """The parts of a text option between commas, without blanks; none for empty text."""
        parts = (part.strip() for part in str(self.of[name]).split(","))
        return tuple(part for part in parts if part)


def values(owner: str, known: Known, given: Mapping[str, Option] | None) -> Values:
    """All options of an owner: those given and the defaults of the others.

    Raises:
        StreamError: As ``changed`` does.
    """
    defaults = {name: default for name, (default, _) in known.items()}
    return Values(defaults | changed(owner, known, given))


def _typed(name: str, value: Option, default: Option) -> Option:
    wanted = type(default)
    try:
        read = wanted(value)
        # 2.5 for a whole number must not turn into 2, nor a number into text.
        same = isinstance(value, str) or (wanted is not str and read == value)
        if same and not (isinstance(read, float) and not math.isfinite(read)):
            return read
    except (TypeError, ValueError, OverflowError):
        pass
    words = {int: "an integer", float: "a finite number", str: "text"}[wanted]
    raise StreamError(f"{name}={value!r} must be {words}")
