"""Where answers are given out and labels come back: the last answers, the switch, the temperatures.

Safe to use from several threads; what labels cost never holds an answer up.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tta.errors import AdapterError
from tta.evidence import Side, Switch, Temperature


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """One request's answer; later labels do not change it.

    Attributes:
        logits: What is served, ``(B, K)``.
        served: The model that they come from: ``"adapted"`` or ``"source"``.
        version: Commit of the adapted model; 0 before the first.
        index: Number of the first image; ``feedback`` takes ``index + i`` for image ``i``.
        temperature: What ``probabilities`` divides the logits by.
        adapted: Logits of the adapted model.
        source: Logits of the source model, in shadow mode.
    """

    logits: Tensor
    served: Side
    version: int
    index: int
    temperature: float
    adapted: Tensor
    source: Tensor | None

    @property
    def probabilities(self) -> Tensor:
        """``(B, K)``, calibrated by the labels that had come when the answer was given."""
        return (self.logits / self.temperature).softmax(1)


class Desk:
    """Gives out answers and takes their labels.

    Args:
        shadow: Whether there is a source model to compare with; it is served first.
        history: Images whose answers are kept until their labels come.
        window: Labelled images that a temperature is fitted to.
        alpha: See ``Switch``.

    Raises:
        AdapterError: For numbers out of range.
    """

    def __init__(self, shadow: bool, history: int, window: int, alpha: float) -> None:
        for name, size in (("history", history), ("window", window)):
            if size < 1:
                raise AdapterError(f"{name}={size}: it must be 1 or more")
        if not 0 < alpha < 1:
            raise AdapterError(f"alpha={alpha}: it must be between 0 and 1")
        self._sides: tuple[Side, ...] = ("source", "adapted") if shadow else ("adapted",)
        self._switch = Switch(self._sides[0], alpha)
        self._temperatures = {side: Temperature(window) for side in self._sides}
        self._answers = _Answers(history)
        self._counts = dict.fromkeys(("requests", "labels", "adapted_right", "source_right"), 0.0)
        self._giving, self._labelling = threading.Lock(), threading.Lock()

    @property
    def side(self) -> Side:
        """The model that is served."""
        return self._switch.side

    def give(self, adapted: Tensor, source: Tensor | None, version: int) -> Answer:
        """The answer to a request, from the logits ``(B, K)`` of both models, or of one."""
        with self._giving:
            self._counts["requests"] += 1
            side = self._switch.side
            return Answer(
                logits=source if side == "source" and source is not None else adapted,
                served=side,
                version=version,
                index=self._answers.add(adapted, source),
                temperature=self._temperatures[side].value,
                adapted=adapted,
                source=source,
            )

    def feedback(self, index: int | Sequence[int] | Tensor, y: int | Sequence[int] | Tensor) -> int:
        """As ``Server.feedback``."""
        with self._labelling:
            with self._giving:
                found = [(self._known(i, label), i, label) for i, label in _pairs(index, y)]
                rows = [(r, label) for r, i, label in found if r and self._answers.done(i)]
                for (adapted, source), label in rows:
                    self._judge(adapted, source, label)
            for (adapted, source), label in rows:
                self._temperatures["adapted"].see(adapted, label)
                if source is not None:
                    self._temperatures["source"].see(source, label)
            for temperature in self._temperatures.values():
                temperature.fit()
        return len(rows)

    def turn(self, side: Side) -> None:
        """As ``Server.switch``."""
        if side not in self._sides:
            raise AdapterError(f"cannot serve {side!r}: this server has {', '.join(self._sides)}")
        with self._giving:
            self._switch.turn(side)

    def stats(self) -> dict[str, float]:
        """Counts, and the state of the switch."""
        with self._giving:
            return {
                **self._counts,
                "serving_adapted": float(self._switch.side == "adapted"),
                "evidence": self._switch.evidence,
                "temperature": self._temperatures[self._switch.side].value,
            }

    def _known(self, index: int, label: int) -> tuple[Tensor, Tensor | None] | None:
        if not 0 <= index < self._answers.given:
            raise AdapterError(f"no image has index {index}: {self._answers.given} were seen")
        rows = self._answers.peek(index)
        if rows and not (rows[0].ndim == 1 and 0 <= label < len(rows[0])):
            raise AdapterError(f"y={label} is no class of an answer {tuple(rows[0].shape)}")
        return rows

    def _judge(self, adapted: Tensor, source: Tensor | None, label: int) -> None:
        right = _right(adapted, label)
        self._counts["labels"] += 1
        self._counts["adapted_right"] += right
        if source is not None:
            source_right = _right(source, label)
            self._counts["source_right"] += source_right
            self._switch.see(right, source_right)


class _Answers:
    """The logits of the last ``capacity`` images, by index, until their labels come."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.given = 0
        self._held = 0
        self._parts: deque[tuple[int, Tensor, Tensor | None, set[int]]] = deque()

    def add(self, adapted: Tensor, source: Tensor | None) -> int:
        """Keep copies of logits ``(B, K)``; the index of the first image."""
        first, count = self.given, len(adapted)
        self.given += count
        cut = max(0, count - self.capacity)
        copy = None if source is None else source[cut:].clone()
        self._parts.append((first + cut, adapted[cut:].clone(), copy, set()))
        self._held += count - cut
        while self._held > self.capacity:
            self._held -= len(self._parts.popleft()[1])
        return first

    def peek(self, index: int) -> tuple[Tensor, Tensor | None] | None:
        """Logits ``(K,)`` of an image; ``None`` where its label has come or it is forgotten."""
        for first, adapted, source, taken in self._parts:
            if first <= index < first + len(adapted) and index not in taken:
                row = index - first
                return adapted[row], None if source is None else source[row]
        return None

    def done(self, index: int) -> bool:
        """The label has come; whether it is the first."""
        for first, adapted, _, taken in self._parts:
            if first <= index < first + len(adapted) and index not in taken:
                taken.add(index)
                return True
        return False


def _right(logits: Tensor, label: int) -> bool:
    return bool(logits.isfinite().all()) and int(logits.argmax()) == label


def _pairs(index: int | Sequence[int] | Tensor, y: int | Sequence[int] | Tensor) -> list[list[int]]:
    """Indices and labels, one or many, side by side."""
    made = []
    for name, value in (("index", index), ("y", y)):
        tensor = torch.as_tensor(value)
        whole = not (tensor.is_floating_point() or tensor.is_complex()) or tensor.numel() == 0
        if not whole or tensor.ndim > 1:
            raise AdapterError(f"feedback takes whole numbers, {name} is {value!r}")
        made.append(tensor.reshape(-1).tolist())
    if len(made[0]) != len(made[1]):
        raise AdapterError(f"feedback has {len(made[0])} indices and {len(made[1])} labels")
    return [list(pair) for pair in zip(*made, strict=True)]
