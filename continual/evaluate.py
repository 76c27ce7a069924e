"""Accuracy of a model on the tests of the tasks, as counts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from streams.learning_types import Task


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """One look at all tests.

    Attributes:
        item: Number of the item after (or in) which it was made; -1 before the first.
        kind: ``before`` (nothing learnt yet), ``step`` (in the middle of an experience),
            ``experience``, ``segment`` or ``forget`` (after an item of that kind).
        name: Name of the item.
        step: Training steps until then.
        correct: Correct predictions for each task's test, of all ``K`` classes.
        masked: The same with the prediction among the task's own classes (task-incremental).
        total: Images of each test.
    """

    item: int
    kind: str
    name: str
    step: int
    correct: tuple[int, ...]
    masked: tuple[int, ...]
    total: tuple[int, ...]


def count_correct(
    model: nn.Module,
    tasks: Sequence[Task],
    *,
    device: str,
    batch_size: int = 100,
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """Correct predictions on each test, among all classes and among the task's own; sizes.

    The model is put in eval mode and left as it was found.
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    correct, masked, total = [], [], []
    try:
        with torch.no_grad():
            for task in tasks:
                own = torch.tensor(task.classes, device=device)
                hits = own_hits = 0
                for first in range(0, len(task.test), batch_size):
                    at = np.arange(first, min(first + batch_size, len(task.test)))
                    x, y = task.test.batch(at)
                    logits, y = model(x.to(device)), y.to(device)
                    hits += int((logits.argmax(1) == y).sum())
                    own_hits += int((own[logits[:, own].argmax(1)] == y).sum())
                correct.append(hits)
                masked.append(own_hits)
                total.append(len(task.test))
    finally:
        for module, training in modes:
            module.training = training
    return tuple(correct), tuple(masked), tuple(total)
