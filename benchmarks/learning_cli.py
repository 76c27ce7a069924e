"""What the words of a command line stand for on a learning stream."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.errors import UsageError
from benchmarks.learning_method import Method
from benchmarks.learning_spec import LearningSpec, resolve_learning
from streams.scan import scan
from tta.config import did_you_mean


def is_learning(stream: str) -> bool:
    """Whether the name is that of a learning stream.

    Raises:
        UsageError: If it is of no stream at all, and nearest to a learning stream's.
    """
    learning = scan("streams.learning", "learning stream").names()
    others = scan("streams.sources", "stream").names()
    if stream in learning or stream in others:
        return stream in learning
    near = difflib.get_close_matches(stream, [*learning, *others], n=1, cutoff=0.5)
    if near and near[0] in learning:
        raise UsageError(
            f"unknown stream {stream!r} (did you mean {near[0]!r}?); learning streams: "
            f"{', '.join(learning)}"
        )
    return False


def refuse(words: Mapping[str, Any], why: str) -> None:
    """Raise ``UsageError`` for the first option that was given though it says nothing here.

    Args:
        words: Option to value; ``None``, ``False`` and empty ones were not given.
        why: Rest of the message: ``has no effect on a learning stream``.
    """
    for option, value in words.items():
        if value not in (None, False, [], ()):
            raise UsageError(f"{option} {why}; leave it out")


def read_learners(words: Sequence[str]) -> tuple[list[Method], set[str]]:
    """The methods that names and patterns stand for, and names of those that a pattern brought in.

    A pattern stands for strategies.
    """
    from continual.factory import list_strategies

    found: dict[str, tuple[Method, bool]] = {}
    for word in words:
        pattern = any(sign in word for sign in "*?[")
        names = list_strategies(word) if pattern else [word]
        if not names:
            raise UsageError(f"no strategy matches {word!r}; see 'tta-bench list strategies'")
        for method in map(Method.read, names):
            earlier = found.get(method.name)
            found[method.name] = (method, pattern and (earlier is None or earlier[1]))
    methods = [method for method, _ in found.values()]
    return methods, {name for name, (_, pattern) in found.items() if pattern}


def share_out(pairs: Sequence[str], methods: Sequence[Method]) -> dict[str, dict[str, str]]:
    """``--set`` by method: ``key=value`` goes to all, ``part.key=value`` to those with that part.

    Raises:
        UsageError: For another form, or a part that no method of the run has.
    """
    made: dict[str, dict[str, str]] = {method.name: {} for method in methods}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise UsageError(f"--set {pair!r}: expected key=value")
        owner, dot, _ = key.rpartition(".")
        having = [m for m in methods if not dot or m.part(owner) is not None]
        if not having:
            parts = list(dict.fromkeys(part for m in methods for part in m.owners))
            raise UsageError(
                f"--set {pair!r}: {owner!r} is no part of this run's methods"
                f"{did_you_mean(owner, parts)}; their parts are {', '.join(parts)}"
            )
        for method in having:
            made[method.name][key] = value
    return made


def learning_specs(
    words: Sequence[str], pairs: Sequence[str], stream: str, seeds: Sequence[int], **given: Any
) -> tuple[list[LearningSpec], set[str]]:
    """All specs of a command, and the names of methods that a pattern brought in.

    Args:
        words: Names and patterns of methods.
        pairs: ``--set`` words.
        stream: A name of ``streams.list_learning_streams()``.
        seeds: One run for each.
        **given: As ``resolve_learning`` takes them.

    Raises:
        UsageError: For a wrong name or value.
    """
    methods, by_pattern = read_learners(words)
    options = share_out(pairs, methods)
    specs = [
        resolve_learning(method.name, stream, options=options[method.name], seed=seed, **given)
        for method in methods
        for seed in seeds
    ]
    return specs, by_pattern
