"""Fair tuning: every method gets the same number of trials on a stream that no evaluation shows.

Trial 0 is the method's own config. The others are points of a scrambled Halton sequence keyed by
(seed, method), so that trial ``n`` is the same however many follow. The tuning stream has other
images than the evaluated one, and the four hold-out corruptions where the stream has them.
"""

from __future__ import annotations

import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from benchmarks.errors import UsageError
from benchmarks.runner import Progress, open_stream, run
from benchmarks.spec import RunSpec, resolve
from benchmarks.tuned import Tuned, TunedMethod, shared_domains, shared_images, stream_fields
from streams.corruptions.names import EXTRA_CORRUPTIONS
from streams.errors import StreamError
from streams.membership import most_images
from streams.order import rng
from streams.types import Domain, Stream

Options = dict[str, float | int]

RATE = "lr"
RATE_FACTOR = 10.0
FACTOR = 3.0
"""Options are drawn log-uniformly between their value over and times this (the rate's own)."""
MOST = 3
"""Options beside the learning rate: the first of the method's own that have documented bounds."""
# Whole numbers that are no size: the others change what a run costs.
_WHOLE = ("neighbours", "supports")
# Numerical guards, and what has no effect in the method's default mode.
_LEFT_OUT = ("clip", "tolerance", "alpha")


@dataclass(frozen=True)
class Range:
    """Where an option is drawn from, log-uniformly.

    Attributes:
        low: At least.
        high: At most.
        top: The distance below this value is drawn instead of the value, where it is set.
        whole: Whether it is a whole number.
    """

    low: float
    high: float
    top: float | None = None
    whole: bool = False

    def at(self, share: float) -> float | int:
        """The value at a share in ``[0, 1)`` of the range, to three digits."""
        drawn = float(f"{self.low * (self.high / self.low) ** share:.3g}")
        if self.whole:
            return round(drawn)
        return drawn if self.top is None else round(self.top - drawn, 9)


def search_space(method: str, config: Mapping[str, Any], fixed: Sequence[str]) -> dict[str, Range]:
    """What is searched of a method's options, around the values of ``config``.

    Args:
        method: Its name.
        config: Its resolved options.
        fixed: Options that the user has set.
    """
    import tta
    from tta.optim import GradientConfig

    made: dict[str, Range] = {}
    config_type = tta.adapter_config(method)
    hints = typing.get_type_hints(config_type)
    shared = {item.name for item in fields(GradientConfig)}
    for item in fields(config_type):
        name, bounds = item.name, item.metadata.get("bounds", {})
        value = config[name]
        whole = name in _WHOLE
        if name in fixed or name in _LEFT_OUT or hints[name] is not (int if whole else float):
            continue
        if value > 0 and bounds and (name == RATE or name not in shared):
            made[name] = _range(value, bounds, RATE_FACTOR if name == RATE else FACTOR, whole)
    others = [name for name in made if name != RATE]
    return {name: made[name] for name in made if name == RATE or name in others[:MOST]}


def _range(value: float, bounds: Mapping[str, float], factor: float, whole: bool) -> Range:
    top = bounds.get("le", bounds.get("lt"))
    if top is not None and top / 2 < value < top:
        # Of a share near 1, a momentum say, what is left to 1 has the scale.
        return Range((top - value) / factor, min((top - value) * factor, top), top=top)
    high = value * factor if top is None else min(value * factor, top)
    low = bounds.get("ge", bounds.get("gt", 0.0))
    return Range(max(value / factor, low, 1.0 if whole else 0.0), high, whole=whole)


def draw(space: Mapping[str, Range], trials: int, seed: int, method: str) -> list[Options]:
    """Options of trials 1 to ``trials - 1``; none where nothing is searched."""
    if not space or trials < 2:
        return []
    from scipy.stats import qmc

    sequence = qmc.Halton(len(space), scramble=True, seed=rng(seed, "tune", method))
    shares = sequence.random(trials - 1).tolist()
    return [
        {name: where.at(share) for (name, where), share in zip(space.items(), row, strict=True)}
        for row in shares
    ]


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """What is to be tried.

    Attributes:
        evaluation: A run that the options are for.
        stream: The tuning stream.
        trials: Trials of each method that has something to search.
        seed: Of the draws, the order and the methods.
        options: Options of every trial, by method.
        specs: The run of every trial, by method.
    """

    evaluation: RunSpec
    stream: Stream
    trials: int
    seed: int
    options: Mapping[str, Sequence[Options]]
    specs: Mapping[str, Sequence[RunSpec]]

    def run(self, method: str, out: Path, tick: Callable[[int], Progress | None]) -> list[float]:
        """The errors of a method's trials in percent; finished trials are read, not run.

        Args:
            method: Its name.
            out: Folder of the trials' folders.
            tick: Gets a trial's number before it starts, gives back who is told of its steps.
        """
        return [
            float(run(spec, out, resume=True, progress=tick(number))["error_pct"])
            for number, spec in enumerate(self.specs[method])
        ]

    def best(self, errors: Mapping[str, Sequence[float]]) -> Tuned:
        """The best trial of every method; of equal ones the first, so that the default stays."""
        specs = next(iter(self.specs.values()))
        found = {}
        for method, values in errors.items():
            best = min(range(len(values)), key=lambda number: round(values[number], 9))
            found[method] = TunedMethod(
                trials=len(values),
                best_trial=best,
                error_pct=values[best],
                default_error_pct=values[0],
                options=dict(self.options[method][best]),
            )
        return Tuned(
            stream=self.evaluation.stream,
            backbone=self.evaluation.backbone,
            trials=self.trials,
            seed=self.seed,
            protocol=specs[0].protocol,
            stream_hash=self.stream.hash,
            tuning_stream=stream_fields(specs[0]),
            methods=found,
        )


def plan(
    methods: Sequence[str],
    stream: str,
    *,
    trials: int,
    seed: int = 0,
    options: Mapping[str, Mapping[str, str]] | None = None,
    tune_corruptions: Sequence[str] | None = None,
    tune_examples: int | None = None,
    shared: bool = False,
    **asked: Any,
) -> Tuning:
    """Say every trial of every method; nothing is run yet.

    Args:
        methods: Names.
        stream: The evaluated stream.
        trials: Trials of each method.
        seed: Of the draws, the order and the methods.
        options: Options that all trials of a method share, by method.
        tune_corruptions: Of the tuning stream; by default the hold-out corruptions where the stream
            has them, else those that are evaluated.
        tune_examples: Images of the tuning stream; by default as many as are evaluated, at most
            half of the others.
        shared: Allow the evaluated images, under other corruptions.
        **asked: As in ``resolve``: what the evaluation is.

    Raises:
        UsageError: If the two streams cannot be disjoint.
    """
    given = options or {}

    def spec(method: str, extra: Mapping[str, Any], **changed: Any) -> RunSpec:
        said = {**given.get(method, {}), **extra}
        return resolve(method, stream, options=said, seed=seed, **{**asked, **changed})

    evaluation = spec(methods[0], {})
    evaluated = open_stream(evaluation)
    changed = _other_images(evaluation, evaluated, tune_examples, shared)
    changed |= _other_corruptions(evaluation, evaluated, tune_corruptions)
    made: dict[str, list[Options]] = {}
    for method in methods:
        config = spec(method, {}, **changed).config
        space = search_space(method, config, list(given.get(method, {})))
        own: Options = {name: config[name] for name in space}
        made[method] = [own, *draw(space, trials, seed, method)]
    specs = {method: [spec(method, tried, **changed) for tried in made[method]] for method in made}
    tuning = open_stream(specs[methods[0]][0])
    if len(shared_images(tuning, evaluated)) and (both := shared_domains(tuning, evaluated)):
        raise UsageError(
            f"the tuning stream would show images of the evaluation under {both[0]}, which is "
            "evaluated: name other corruptions with --tune-corruptions, or leave --shared-images "
            "out and evaluate fewer images with --num-examples"
        )
    return Tuning(
        evaluation=evaluation,
        stream=tuning,
        trials=trials,
        seed=seed,
        options=made,
        specs=specs,
    )


def _other_images(
    evaluation: RunSpec, stream: Stream, wanted: int | None, shared: bool
) -> dict[str, Any]:
    """``skip_examples`` and ``num_examples`` of the tuning stream."""
    if shared:
        return {} if wanted is None else {"num_examples": wanted}
    total = most_images(stream.source, stream.domains)
    shown = evaluation.num_examples or total
    first = evaluation.skip_examples + shown
    left = total - first
    if left <= 0:
        raise UsageError(
            f"the evaluation shows all {total} images of {evaluation.stream}, so none is left to "
            "tune on: say with --num-examples how many it shows, or pass --shared-images to tune "
            "on the same images under other corruptions"
        )
    # The other half stays for methods that need clean source images.
    count = min(shown, max(1, left // 2)) if wanted is None else wanted
    if count > left:
        raise UsageError(
            f"--tune-examples {count}: the evaluation leaves {left} of {total} images; name fewer"
        )
    return {"skip_examples": first, "num_examples": count}


def _other_corruptions(
    evaluation: RunSpec, stream: Stream, named: Sequence[str] | None
) -> dict[str, Any]:
    """``corruptions`` and ``order`` of the tuning stream; none where they stay as they are."""
    severities = {domain.severity for domain in stream.domains}
    chosen = named or [
        name
        for name in EXTRA_CORRUPTIONS
        if name not in evaluation.corruptions and _has(stream, name, severities)
    ]
    # The orders of the literature have a place for the 15 alone.
    return {"corruptions": tuple(chosen), "order": "default"} if chosen else {}


def _has(stream: Stream, name: str, severities: Iterable[int]) -> bool:
    try:
        for severity in severities:
            stream.source.check(Domain(name=name, corruption=name, severity=severity))
    except StreamError:
        return False
    return True
