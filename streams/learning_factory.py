"""From the names of a set of tasks and of a setting to a learning stream."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from streams.errors import StreamError
from streams.factory import whole
from streams.learning_settings import Arrangement, Request
from streams.learning_tasks import TaskSet, capped
from streams.learning_types import LearningStream
from streams.options import Option, changed, values
from streams.scan import scan

_SETS = scan("streams.learning", "learning stream")
_SETTINGS = scan("streams.learning_settings", "learning setting")
COMMON: dict[str, tuple[Option, str]] = {
    "test_examples": (0, "test images of each task at most, class-balanced; 0: all"),
}
"""Options that every set of tasks has."""


def list_learning_streams() -> list[str]:
    """Sorted names of the sets of tasks."""
    return _SETS.names()


def list_learning_settings() -> list[str]:
    """Sorted names of the ways to order tasks."""
    return _SETTINGS.names()


def learning_options(name: str) -> dict[str, tuple[Option, str]]:
    """Options of a set of tasks: default and what it is, by name.

    Raises:
        StreamError: If there is no such set, with the nearest name.
    """
    return {**getattr(_SETS.load(name), "OPTIONS", {}), **COMMON}


def learning_setting_options(setting: str) -> dict[str, tuple[Option, str]]:
    """Options of a setting: default and what it is, by name.

    Raises:
        StreamError: If there is no such setting, with the nearest name.
    """
    return dict(getattr(_SETTINGS.load(setting), "OPTIONS", {}))


def create_learning(
    name: str,
    *,
    setting: str = "sequential",
    num_tasks: int | None = None,
    num_examples: int | None = None,
    seed: int = 0,
    data_dir: Path | str | None = None,
    options: Mapping[str, Option] | None = None,
    setting_options: Mapping[str, Option] | None = None,
) -> LearningStream:
    """Open a set of tasks and plan what a learner meets; no image is looked at yet.

    Args:
        name: A name of ``list_learning_streams()``.
        setting: A name of ``list_learning_settings()``.
        num_tasks: Number of tasks, where the set can have another than its own.
        num_examples: Training images of each task at most, class-balanced; all by default.
        seed: Seed of class orders, orders and draws.
        data_dir: Folder of the data; Fashion-MNIST needs none.
        options: Options of the set of tasks, see ``learning_options``.
        setting_options: Options of the setting, see ``learning_setting_options``.

    Raises:
        StreamError: For a wrong name or value, or where the data is missing or damaged.
    """
    module, ordering = _SETS.load(name), _SETTINGS.load(setting)
    seed = whole("seed", seed)
    for option, value in (("num_tasks", num_tasks), ("num_examples", num_examples)):
        if value is not None and whole(option, value) < 1:
            raise StreamError(f"{option}={value} is out of range: it must be at least 1")
    own, known = learning_options(name), learning_setting_options(setting)
    asked = values(f"learning stream {name!r}", own, options)
    given = {key: value for key, value in asked.of.items() if key not in COMMON}
    folder = Path(data_dir) if data_dir is not None else None
    tasks: TaskSet = module.open_tasks(folder, num_tasks=num_tasks, seed=seed, **given)
    tests = asked.whole("test_examples", 0)
    tasks = _capped(tasks, num_examples, tests, seed)
    owner = f"learning setting {setting!r}"
    request = Request(set=tasks, seed=seed, options=values(owner, known, setting_options))
    made: Arrangement = ordering.arrange(request)
    numbers = {"num_tasks": num_tasks, "num_examples": num_examples}
    return LearningStream(
        name=name,
        setting=setting,
        tasks=made.tasks,
        items=made.items,
        num_classes=tasks.num_classes,
        seed=seed,
        image_shape=tasks.image_shape,
        options={
            **{key: value for key, value in numbers.items() if value is not None},
            # Both may have an option of one name, such as corruptions.
            **{f"source.{k}": v for k, v in changed(name, own, options).items()},
            **changed(owner, known, setting_options),
        },
    )


def _capped(tasks: TaskSet, train: int | None, test: int, seed: int) -> TaskSet:
    made = []
    for number, task in enumerate(tasks.tasks):
        if train is not None:
            kept = capped(task.train, train, seed, "learning", "num_examples", number)
            task = replace(task, train=kept)
        if test:
            # The same images whatever the seed: seeds are compared on one test.
            task = replace(task, test=capped(task.test, test, 0, "learning", "test", number))
        made.append(task)
    return replace(tasks, tasks=tuple(made))
