"""Concept shift: from time to time two classes exchange their labels, in training and in test.

Man, Damasio, Neven: Need is All You Need: Homeostatic Neural Networks Adapt to Concept Shift,
2022. Every ``floor(N / swaps_per_epoch)`` samples two random classes swap; the
permutation accumulates. Second-order shift: the rate itself rises or falls.

Deviations: the original leaves the course of a changing rate open; here it is linear in the
samples seen, from ``2 / (1 + r)`` to ``2 r / (1 + r)`` times ``swaps_per_epoch`` (``r`` is
``rate_ratio``) or back, which keeps its mean.
"""

from __future__ import annotations

import numpy as np

from streams.learning_settings import Arrangement, Request
from streams.learning_tasks import capped
from streams.learning_types import Experience, Task, joined
from streams.options import Option
from streams.types import Ints

OPTIONS: dict[str, tuple[Option, str]] = {
    "swaps_per_epoch": (1.0, "exchanges of two labels for each pass over the training images"),
    "rate_schedule": ("constant", "course of that rate: constant, rising or falling"),
    "rate_ratio": (4.0, "largest rate over smallest, where it rises or falls"),
    "epochs": (10, "passes over the training images"),
    "max_tests": (5000, "test images of all label states together, at most"),
}


def arrange(request: Request) -> Arrangement:
    """A task for each state of the labels, an experience for the samples until the next swap.

    All tasks of the set are one here. ``tasks[i]`` has the training samples of state ``i`` and the
    test with the labels valid then. All tests together hold at most ``max_tests`` images (a test
    has at least one of each class): they are looked at again and again.

    Raises:
        StreamError: For an option out of range.
    """
    train = joined([task.train for task in request.tasks])
    test = joined([task.test for task in request.tasks])
    epochs = request.options.whole("epochs", 1)
    offsets = swap_points(request, len(train), epochs)
    states = label_states(request, len(offsets) - 1)
    order = np.concatenate(
        [request.draw("label-swap", "order", e).permutation(len(train)) for e in range(epochs)]
    )
    each = max(request.options.whole("max_tests", 1) // len(states), request.set.num_classes)
    # The same images in every state: what differs are the labels.
    test = capped(test, each, 0, "label-swap", "test")
    tasks, items = [], []
    for number, (first, last, state) in enumerate(
        zip(offsets[:-1], offsets[1:], states, strict=True)
    ):
        name = f"labels_{number}"
        given = train.take(order[first:last]).of_task(number)
        given = given.relabelled(state[given.labels])
        tasks.append(
            Task(
                name=name,
                train=given,
                test=test.relabelled(state[test.labels]).of_task(number),
                classes=tuple(np.unique(state[train.labels]).tolist()),
            )
        )
        items.append(Experience(name=name, train=given, task=number, epochs=1))
    return Arrangement(tasks=tuple(tasks), items=tuple(items))


def swap_points(request: Request, size: int, epochs: int) -> Ints:
    """Samples seen at each swap, with 0 before and ``size * epochs`` after them ``(S + 2,)``.

    Raises:
        StreamError: For an option out of range, or more swaps than samples.
    """
    options = request.options
    mean = options.number("swaps_per_epoch", 0, size)
    course = options.choice("rate_schedule", ("constant", "rising", "falling"))
    ratio = options.number("rate_ratio", 1)
    total = size * epochs
    low, high = (1.0, 1.0) if course == "constant" else (2 / (1 + ratio), 2 * ratio / (1 + ratio))
    if course == "falling":
        low, high = high, low
    points = [0]
    while mean and points[-1] < total:
        rate = mean * (low + (high - low) * points[-1] / total)
        points.append(points[-1] + max(int(size / rate + 1e-9), 1))
    return np.array([point for point in points if point < total] + [total])


def label_states(request: Request, count: int) -> Ints:
    """Label that each class has in each state ``(S, K)``; the first is the source's own."""
    classes = np.unique(np.concatenate([task.classes for task in request.tasks]))
    state = np.arange(request.set.num_classes)
    states = [state]
    for number in range(1, count):
        pair = request.draw("label-swap", "classes", number).choice(classes, 2, replace=False)
        partner = np.arange(len(state))
        partner[pair] = pair[::-1]
        state = partner[state]
        states.append(state)
    return np.stack(states)
