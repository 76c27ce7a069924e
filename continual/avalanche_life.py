"""A life over a learning stream, lived by an Avalanche strategy."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any, cast

from torch import nn

from continual.avalanche_learner import AvalancheLearner
from continual.avalanche_random import random_state, seed_all, set_random_state
from continual.avalanche_state import UnknownState
from continual.avalanche_strategy import find_strategy, from_avalanche, parameters_of
from continual.evaluate import Evaluation
from continual.learner import Learner, LearnerConfig
from continual.life import Life, Watch
from streams.learning_types import Experience, ForgetRequest, LearningStream
from tta.adapter import Adapter
from tta.errors import AdapterError


def make_life(
    stream: LearningStream,
    name: str,
    model: nn.Module,
    *,
    learner: LearnerConfig,
    options: Mapping[str, Any],
    device: str = "cpu",
    seed: int = 0,
    wrap: Callable[[nn.Module], Adapter] | None = None,
    carry: bool = True,
    eval_every: int = 0,
    source_images: int = 2000,
) -> AvalancheLife:
    """A life of an Avalanche strategy under the learner's options: what a command line asks for.

    Args:
        stream: What it meets.
        name: As of ``from_avalanche``.
        model: Images ``(B, C, H, W)`` in [0, 1] to logits ``(B, K)``.
        learner: Optimiser, batch size, epochs, and whether moments are cleared before each
            experience.
        options: Keyword arguments of the strategy, as text or values; they win over ``learner``.
        device: Where it learns.
        seed: Seed of the global generators, while the strategy is built as well.
        wrap: As in ``Life``.
        carry: As in ``Life``.
        eval_every: As in ``Life``.
        source_images: As in ``Life``.

    Raises:
        AdapterError: As ``from_avalanche``; for an option of the learner that Avalanche's loop does
            not have.
    """
    if learner.augment != "none" or learner.freeze_norm:
        raise AdapterError(
            "an Avalanche strategy takes no augment and no freeze_norm of the learner: set "
            "learner.augment=none and learner.freeze_norm=false"
        )
    known, _ = parameters_of(find_strategy(name))
    ours: dict[str, Any] = {
        "train_mb_size": learner.batch_size,
        "train_epochs": learner.epochs,
        "device": device,
    }
    given = {**{key: value for key, value in ours.items() if key in known}, **options}
    optimizer = Learner(model, stream.num_classes, learner, device=device).optimizer
    outer = random_state(device)
    try:
        seed_all(seed)  # some strategies draw while they are built
        strategy = from_avalanche(name, model, optimizer, **given)
    finally:
        set_random_state(outer)
    return AvalancheLife(
        stream,
        strategy,
        wrap=wrap,
        carry=carry,
        eval_every=eval_every,
        source_images=source_images,
        seed=seed,
        train_options={"reset_optimizer_state": learner.reset_optimizer},
    )


class AvalancheLife(Life):
    """Takes an Avalanche strategy through the items of a stream.

    It is the loop ``seed; for experience: train, eval`` of a stock script: ``random``, numpy and
    torch are seeded with ``seed`` once, before the first experience, and are put back for the
    caller at the end of ``run``. Only the evaluation after an experience draws from them, as it
    does in such a script; every other look at the tests leaves them as they were.

    State can be saved after an experience, a request or a batch of a segment, not in the middle of
    an experience. Where a strategy holds what cannot be saved, a life that goes on trains the
    finished experiences again, to the same result, and warns once.

    Args:
        stream: What it meets.
        strategy: A fresh Avalanche strategy (``from_avalanche``, or built by hand).
        wrap: As in ``Life``.
        carry: As in ``Life``.
        eval_every: As in ``Life``.
        source_images: As in ``Life``.
        seed: Seed of the global generators.
        train_options: Keyword arguments of the strategy's ``train``
            (``{"reset_optimizer_state": True}``).

    Raises:
        AdapterError: If the stream asks to forget and no plug-in of ours is among the strategy's.
    """

    def __init__(
        self,
        stream: LearningStream,
        strategy: Any,
        *,
        wrap: Callable[[nn.Module], Adapter] | None = None,
        carry: bool = True,
        eval_every: int = 0,
        source_images: int = 2000,
        seed: int = 0,
        train_options: Mapping[str, Any] | None = None,
    ) -> None:
        self.strategy = strategy
        self._student = AvalancheLearner(stream, strategy, seed, train_options)
        super().__init__(
            stream,
            cast(Learner, self._student),
            wrap=wrap,
            carry=carry,
            eval_every=eval_every,
            source_images=source_images,
        )
        if any(isinstance(item, ForgetRequest) for item in stream.items):
            self._student.check_forgets()
        self._again: tuple[int, int] | None = None

    def run(self, watch: Watch) -> None:
        """Live the whole stream, or the rest of it after ``load_state_dict``."""
        if self._again is not None:
            watch = cast(Watch, _Muted(watch, self._again))
            self._again = None
        with self._student.seeded():
            super().run(watch)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state of the same stream, strategy and options; the strategy is fresh."""
        why = state["learner"]["unknown"]
        if why is None:
            try:
                super().load_state_dict(state)
            except UnknownState as error:
                why = str(error)
            else:
                return
        warnings.warn(
            f"{type(self.strategy).__name__} cannot be put back ({why}): what was lived up to "
            f"item {int(state['item'])} is computed again, to the same result",
            stacklevel=2,
        )
        self.item, self._in_segment, self._saved_adapter = -1, 0, None
        self._again = (int(state["item"]), int(state["in_segment"]))

    def _learn(self, experience: Experience, watch: Watch) -> None:
        super()._learn(experience, cast(Watch, _Unsettled(watch)))

    def _evaluate(self, watch: Watch, item: int, kind: str, name: str) -> None:
        correct, masked, total = self._student.evaluate(neutral=kind != "experience")
        watch.evaluated(
            Evaluation(
                item=item,
                kind=kind,
                name=name,
                step=self._student.step,
                correct=correct,
                masked=masked,
                total=total,
            )
        )


class _Unsettled:
    """A watch in the middle of an experience, where nothing can be saved."""

    def __init__(self, watch: Watch) -> None:
        self.learned, self.evaluated = watch.learned, watch.evaluated

    def settled(self, life: Life) -> None:
        """Not now."""


class _Muted:
    """Tells nothing before a place in the stream that was reported already."""

    def __init__(self, watch: Watch, until: tuple[int, int]) -> None:
        self._watch: Watch | None = None
        self._then, self._until = watch, until

    def settled(self, life: Life) -> None:
        """Start to tell at the place; say that all is settled after it."""
        if self._watch is not None:
            self._watch.settled(life)
        elif (life.item, life._in_segment) == self._until:
            self._watch = self._then

    def __getattr__(self, name: str) -> Any:
        return _nothing if self._watch is None else getattr(self._watch, name)


def _nothing(*_: object) -> None:
    """A report that nobody wants."""
