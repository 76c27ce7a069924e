"""Fashion-MNIST in several conditions: one task a corruption, all ten classes (domain-incremental).

Training and test images are corrupted alike; three data sets of one kind in sequence by default.
"""

from __future__ import annotations

from pathlib import Path

from streams.clean import GeneratedSource
from streams.errors import StreamError
from streams.learning_fashion import open_pair
from streams.learning_tasks import TaskSet, split_by_domain
from streams.options import Option, Values
from streams.types import CLEAN, Domain

OPTIONS: dict[str, tuple[Option, str]] = {
    "corruptions": ("clean,gaussian_noise,contrast", "conditions in order, between commas"),
    "severity": (5, "severity of the corruptions, 1 to 5"),
}


def open_tasks(
    data_dir: Path | None,
    *,
    num_tasks: int | None,
    seed: int,
    corruptions: str = "clean,gaussian_noise,contrast",
    severity: int = 5,
) -> TaskSet:
    """A task for each corruption; ``num_tasks`` takes the first of them.

    Raises:
        StreamError: For a corruption or severity that is not there or is named twice, more tasks
            than corruptions, or damaged or missing files.
    """
    names = Values({"corruptions": corruptions}).words("corruptions")
    count = len(names) if num_tasks is None else num_tasks
    if not 1 <= count <= len(names):
        raise StreamError(f"num_tasks={count} is out of range: {len(names)} corruptions are named")
    if len(set(names)) != len(names):
        raise StreamError(f"corruptions={corruptions!r} names one twice")
    pair = open_pair(data_dir)
    domains = [
        CLEAN if name == "clean" else Domain(name=name, corruption=name, severity=severity)
        for name in names[:count]
    ]
    sides = [GeneratedSource(clean=clean) for clean in (pair.train, pair.test)]
    return TaskSet(
        tasks=split_by_domain(pair, sides, domains),
        num_classes=pair.train.num_classes,
        image_shape=pair.image_shape,
        clean=pair.test,
    )
