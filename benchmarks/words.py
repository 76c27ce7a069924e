"""What the words of a command line stand for."""

from __future__ import annotations

import re

from benchmarks.errors import UsageError


def read_split(values: list[str]) -> list[str]:
    """Names from repeated and comma-separated words, each once."""
    names = [part.strip() for value in values for part in value.split(",") if part.strip()]
    if not names:
        raise UsageError("an empty list of names was given")
    return list(dict.fromkeys(names))


def read_integers(name: str, text: str | None) -> tuple[int, ...] | None:
    """``5,3`` as integers; ``None`` stays."""
    if text is None:
        return None
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise UsageError(f"--{name}={text!r}: expected integers separated by commas") from None


def read_floats(name: str, text: str | None) -> tuple[float, ...] | None:
    """``0.5,0.25`` as numbers; ``None`` stays."""
    if text is None:
        return None
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise UsageError(f"--{name}={text!r}: expected numbers separated by commas") from None


def read_pairs(pairs: list[str] | None, option: str = "--setting-set") -> dict[str, str] | None:
    """``key=value`` words as a dict; ``None`` stays."""
    if pairs is None:
        return None
    read = [pair.partition("=") for pair in pairs]
    for pair, (key, equals, _) in zip(pairs, read, strict=True):
        if not equals or not key:
            raise UsageError(f"{option} {pair!r}: expected key=value")
    return {key: value for key, _, value in read}


def read_numbers(pairs: dict[str, str] | None) -> dict[str, float | int | str] | None:
    """Values that read as numbers, as numbers."""

    def read(text: str) -> float | int | str:
        if re.fullmatch(r"[-+]?\d+", text):
            return int(text)
        return float(text) if re.fullmatch(r"[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?", text) else text

    return None if pairs is None else {key: read(value) for key, value in pairs.items()}


def read_methods(words: list[str]) -> tuple[list[str], set[str]]:
    """The methods that names and patterns stand for, and those that a pattern brought in.

    A method that somebody names must run; one that a pattern brings in may not fit the backbone.
    """
    import tta

    found: dict[str, bool] = {}
    for word in words:
        pattern = any(sign in word for sign in "*?[")
        names = tta.list_adapters(word) if pattern else [word]
        if not names:
            raise UsageError(f"no method matches {word!r}; see 'tta-bench list methods'")
        for name in names:
            found[name] = found.get(name, True) and pattern
    return list(found), {name for name, pattern in found.items() if pattern}


def read_options(pairs: list[str], methods: list[str]) -> dict[str, dict[str, str]]:
    """``--set`` by method: ``key=value`` goes to all, ``method.key=value`` to one."""
    made: dict[str, dict[str, str]] = {name: {} for name in methods}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise UsageError(f"--set {pair!r}: expected key=value")
        owner, dot, field = key.rpartition(".")
        if dot and owner not in made:
            raise UsageError(f"--set {pair!r}: {owner!r} is not among the methods of this run")
        for name in [owner] if dot else methods:
            made[name][field if dot else key] = value
    return made
