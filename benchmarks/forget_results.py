"""Requests to forget in a result: what is measured against, and the columns that it gives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from streams.learning_types import Experience, ForgetRequest, LearningStream, Samples, joined

# Means over the requests of a run.
FORGET = {
    "forget_forgotten_accuracy_pct": "accuracy_forgotten_pct",
    "forget_retained_accuracy_pct": "accuracy_retained_pct",
    "forget_test_accuracy_pct": "accuracy_test_pct",
    "forget_mia_success_pct": "mia_success_pct",
    "forget_relapse_pct": "relapse_pct",
}


def left_after(stream: LearningStream, item: int) -> tuple[Samples, Samples]:
    """What is left to a learner after the request that is the stream's given item.

    Returns:
        Training samples seen before it less those of this and earlier requests; tests of the tasks
        seen, without the images of a class that is to be forgotten.
    """
    past = stream.items[: item + 1]
    seen = joined([i.train for i in past if isinstance(i, Experience)])
    requests = [i for i in past if isinstance(i, ForgetRequest)]
    gone = np.concatenate([request.samples.keys for request in requests])
    tasks = np.unique(seen.tasks).tolist()
    test = joined([stream.tasks[task].test for task in tasks])
    classes = [request.label for request in requests if request.kind == "class"]
    return (
        seen.take(np.flatnonzero(~np.isin(seen.keys, gone))),
        test.take(np.flatnonzero(~np.isin(test.labels, np.array(classes, dtype=np.int64)))),
    )


def forget_columns(
    forgets: Sequence[Mapping[str, Any]], relapses: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """Columns of a result: ``forgets``, a dictionary for each request, and means over them.

    Args:
        forgets: What was measured right after each request.
        relapses: Of ``RelapseWatch.report``, in the same order.
    """
    joint = [
        {**{k: v for k, v in forgot.items() if k != "seconds"}, **relapse}
        for forgot, relapse in zip(forgets, relapses, strict=True)
    ]
    made: dict[str, Any] = {"forgets": joint}
    for column, key in FORGET.items():
        known = [found[key] for found in joint if found[key] is not None]
        made[column] = float(np.mean(known)) if known else None
    return made
