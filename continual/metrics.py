"""Metrics of a life on a learning stream, over evaluations in time rather than a matrix of tasks.

A task may come back, experiences may be mixed, unlabelled segments and requests to forget may lie
in between: "right after task ``j``" is therefore a place on the time axis and not a column number.

Notation. ``e_0 .. e_N`` are the evaluations in order, ``a_n(j)`` the accuracy of evaluation ``n``
on the test of task ``j``; ``last = N``. The *current* task of an experience is the one to which
most of its samples belong (its focus where several tie). ``l(j)``: the evaluation after the last
experience of the first unbroken run of experiences whose current task is ``j`` ("right after task
``j`` was first learnt"); for a task that is never current, of the first run that holds samples of
it. ``s(n)``: the tasks of which a sample was trained on before evaluation ``n`` ("seen").
``pooled_n``: correct predictions over images, of the tests of all tasks in ``s(n)``. *End*
evaluations are those after an item, *step* evaluations those in the middle of an experience.

Every metric comes in two forms. ``class_incremental``: the prediction is the largest of all ``K``
logits. ``task_incremental``: the largest among the classes of the test's own task, which asks for
the task's identity. A number of one form says nothing about the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from streams.learning_types import Experience, LearningStream

if TYPE_CHECKING:
    from continual.evaluate import Evaluation

FORMS = {"class_incremental": "correct", "task_incremental": "masked"}
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Course:
    """Which tasks the items of a stream train.

    Attributes:
        trained: For each item, the tasks of its samples; empty for what is no experience.
        current: For each item, its current task; ``None`` for what is no experience.
    """

    trained: tuple[tuple[int, ...], ...]
    current: tuple[int | None, ...]

    @classmethod
    def of(cls, stream: LearningStream) -> Course:
        """The course of a stream."""
        trained: list[tuple[int, ...]] = []
        current: list[int | None] = []
        for item in stream.items:
            if not isinstance(item, Experience) or not len(item.train):
                trained.append(())
                current.append(None)
                continue
            ids, counts = np.unique(item.train.tasks, return_counts=True)
            most = ids[counts == counts.max()].tolist()
            trained.append(tuple(ids.tolist()))
            current.append(item.task if item.task in most else most[-1])
        return cls(tuple(trained), tuple(current))

    def first_run(self, task: int) -> int | None:
        """The item after which ``task`` was first learnt; ``None`` if it never is."""
        inside = [task == now for now in self.current]
        if not any(inside):
            inside = [task in tasks for tasks in self.trained]
        end = None
        for item, here in enumerate(inside):
            if here:
                end = item
            elif end is not None and self.current[item] is not None:
                break
        return end

    def seen(self, item: int) -> tuple[int, ...]:
        """Tasks of which a sample was trained on in the items up to ``item``, ascending."""
        return tuple(sorted({task for tasks in self.trained[: item + 1] for task in tasks}))


class Timeline:
    """Evaluations of one form, with the course of the stream: what the metrics are computed from.

    Args:
        evaluations: In order.
        course: Of the stream that was lived.
        form: ``class_incremental`` or ``task_incremental``.
    """

    def __init__(
        self, evaluations: Sequence[Evaluation], course: Course, form: str = "class_incremental"
    ) -> None:
        self.evaluations = tuple(evaluations)
        self.course = course
        self.total = np.array([e.total for e in evaluations], dtype=np.float64)
        self.correct = np.array([getattr(e, FORMS[form]) for e in evaluations], dtype=np.float64)
        self.accuracy: Floats = self.correct / np.maximum(self.total, 1)
        # Step evaluations would make maxima depend on how often one looks.
        self.ends = [n for n, e in enumerate(evaluations) if e.kind != "step"]
        self.last = len(self.evaluations) - 1
        after = {e.item: n for n, e in enumerate(evaluations) if e.kind == "experience"}
        runs = {task: course.first_run(task) for task in course.seen(len(course.trained))}
        # A life that is still going on has not learnt all of them.
        self.learnt = {task: after[item] for task, item in runs.items() if item in after}

    def pooled(self, n: int) -> float:
        """Accuracy over all test images of the tasks seen at evaluation ``n``."""
        seen = list(self.course.seen(self.evaluations[n].item))
        return float(self.correct[n, seen].sum() / self.total[n, seen].sum())

    def earlier(self) -> list[int]:
        """Tasks that were first learnt before the last evaluation."""
        return [task for task, n in self.learnt.items() if n < self.last]


def final_accuracy(line: Timeline) -> float | None:
    """Final average accuracy: ``(1/T) sum_j a_last(j)`` over the ``T`` tasks learnt.

    The unweighted mean over tasks (Lopez-Paz and Ranzato, GEM, 2017; all frameworks).
    """
    return _mean([line.accuracy[line.last, task] for task in line.learnt])


def learning_accuracy(line: Timeline) -> float | None:
    """Learning accuracy: ``(1/T) sum_j a_l(j)(j)``, each task right after it was first learnt.

    How well the learner takes up what is new, whatever becomes of it (Riemer et al., Learning to
    learn without forgetting, 2019); of label swaps, how well it follows them.
    """
    return _mean([line.accuracy[n, task] for task, n in line.learnt.items()])


def average_incremental_accuracy(line: Timeline) -> float | None:
    """Average incremental accuracy: mean over the experiences' ends ``n`` of ``pooled_n``.

    Accuracy over the classes seen after each stage, averaged over stages (Rebuffi et al., iCaRL,
    2017; PyCIL, PILOT). Tests of tasks that are yet to come take no part.
    """
    stages = [n for n, e in enumerate(line.evaluations) if e.kind == "experience"]
    return _mean([line.pooled(n) for n in stages])


def forgetting(line: Timeline) -> float | None:
    """Forgetting, max form: mean over ``j`` of ``max_n a_n(j) - a_last(j)``.

    The maximum is over end evaluations ``l(j) <= n < last``, the mean over tasks first learnt
    before the last evaluation (Chaudhry et al., Riemannian Walk, 2018; on a time axis as
    Continuum and Renate). A task that is revisited loses from its best moment, which need not be
    its first: first-minus-last (Avalanche) is wrong there. May be negative: what was never better
    than it is now was not forgotten.
    """
    losses = []
    for task in line.earlier():
        before = [n for n in line.ends if line.learnt[task] <= n < line.last]
        losses.append(line.accuracy[before, task].max() - line.accuracy[line.last, task])
    return _mean(losses)


def backward_transfer(line: Timeline) -> float | None:
    """BWT: mean over ``j`` of ``a_last(j) - a_l(j)(j)``, tasks first learnt before the last look.

    ``(1/(T-1)) sum_{j<T} (a_{T,j} - a_{j,j})`` where tasks come once, one after the other
    (Lopez-Paz and Ranzato, GEM, 2017; Mammoth, Renate).
    """
    last, first = line.accuracy[line.last], line.accuracy
    return _mean([last[task] - first[line.learnt[task], task] for task in line.earlier()])


def forward_transfer(line: Timeline) -> float | None:
    """FWT: mean over ``j`` of ``a_m(j) - a_0(j)``, ``m`` the last end before a sample of ``j``.

    ``(1/(T-1)) sum_{j>=2} (a_{j-1,j} - b_j)`` (Lopez-Paz and Ranzato, GEM, 2017). The baseline
    ``b_j`` is the accuracy of the initial model, in the evaluation ``before`` the first item, and
    not that of the model that is about to learn ``j``. Tasks of the first experience have no
    earlier training and take no part; without an evaluation ``before`` there is no FWT.
    """
    if not line.evaluations or line.evaluations[0].kind != "before":
        return None
    gains = []
    for task in line.learnt:
        start = next(i for i, tasks in enumerate(line.course.trained) if task in tasks)
        before = max(n for n in line.ends if line.evaluations[n].item < start)
        if line.course.seen(line.evaluations[before].item):
            gains.append(line.accuracy[before, task] - line.accuracy[0, task])
    return _mean(gains)


def average_anytime_accuracy(line: Timeline) -> float | None:
    """AAA: mean of ``pooled_n`` over all evaluations made during training.

    These are the step evaluations and those at the experiences' ends; a step evaluation at the
    last step of an experience counts once (Caccia et al., 2021; as ocl_survey computes it). The
    value depends on the interval of evaluation, ``eval_every``.
    """
    return _mean([line.pooled(n) for n in _in_training(line)])


def min_accuracy(line: Timeline) -> float | None:
    """min-ACC: mean over tasks ``i`` other than the last current one of ``min_n a_n(i)``.

    The minimum is over all evaluations after ``i`` was first learnt that were not made while
    ``i`` was the current task (De Lange et al., Continual evaluation for lifelong learning, 2022,
    as ocl_survey computes it). Evaluations after segments and requests count: there no task is
    current. Depends on ``eval_every``.
    """
    now = _last_current(line)
    worst = []
    for task, start in line.learnt.items():
        if task == now:
            continue
        later = [n for n in range(start, line.last + 1) if _current(line, n) != task]
        if later:
            worst.append(line.accuracy[later, task].min())
    return _mean(worst)


def worst_case_accuracy(line: Timeline) -> float | None:
    """WC-ACC: ``(1/k) a_last(c) + (1 - 1/k) min-ACC``, ``c`` the last current task.

    ``k`` is the number of tasks learnt; the value at the last evaluation (De Lange et al., 2022).
    With one task it is that task's accuracy.
    """
    now = _last_current(line)
    if now is None or now not in line.learnt:
        return None
    share = 1 / len(line.learnt)
    others = min_accuracy(line)
    own = float(line.accuracy[line.last, now])
    return own if others is None else share * own + (1 - share) * others


def retention(line: Timeline) -> float | None:
    """Clean-source retention: mean over ``j`` of ``a_s(j) / a_l(j)(j)``, ``s`` the last segment.

    What is left, after adaptation to unlabelled segments, of the accuracy on a task's own (clean)
    test right after it was first learnt: 1 is all. Over tasks first learnt before the last segment
    with an accuracy above 0. Learning in between has its part in it; ``segment_change`` has not.
    """
    segments = _after_segments(line)
    if not segments:
        return None
    kept = [
        line.accuracy[segments[-1], task] / line.accuracy[n, task]
        for task, n in line.learnt.items()
        if n < segments[-1] and line.accuracy[n, task] > 0
    ]
    return _mean(kept)


def segment_change(line: Timeline) -> float | None:
    """Mean over segments of ``pooled_n - pooled_m``, ``m`` the last evaluation before the segment.

    What adaptation alone did to the clean tests of the tasks seen so far; 0 where learning goes on
    from the weights before the segment.
    """
    changes = [
        line.pooled(n) - line.pooled(n - 1)
        for n in _after_segments(line)
        if n and line.course.seen(line.evaluations[n].item)
    ]
    return _mean(changes)


METRICS = {
    "final_accuracy": final_accuracy,
    "learning_accuracy": learning_accuracy,
    "average_incremental_accuracy": average_incremental_accuracy,
    "forgetting": forgetting,
    "bwt": backward_transfer,
    "fwt": forward_transfer,
    "aaa": average_anytime_accuracy,
    "min_acc": min_accuracy,
    "wc_acc": worst_case_accuracy,
    "retention": retention,
    "segment_change": segment_change,
}
"""Metric to function: ``Timeline`` to a fraction (a difference may be negative) or ``None``."""


def learning_metrics(
    evaluations: Sequence[Evaluation], course: Course | LearningStream
) -> dict[str, float | None]:
    """All metrics in both forms, in percent: ``class_incremental_forgetting_pct`` and so on.

    Args:
        evaluations: In order, the one ``before`` the first item included.
        course: The stream that was lived, or its course.

    Returns:
        ``<form>_<metric>_pct`` for each of ``FORMS`` and ``METRICS``; ``None`` where a metric is
        not defined, such as forgetting after one task.
    """
    given = course if isinstance(course, Course) else Course.of(course)
    made: dict[str, float | None] = {}
    for form in FORMS:
        line = Timeline(evaluations, given, form)
        for name, metric in METRICS.items():
            value = metric(line) if evaluations else None
            made[f"{form}_{name}_pct"] = None if value is None else 100 * value
    return made


def recovery_length(
    correct: Sequence[float], *, window: int = 5, tolerance: float = 0.02, plateau: float = 0.5
) -> int | None:
    """Steps after a change until the accuracy is back near the level that it settles at.

    The first step ``t`` (from 0) whose sliding accuracy, the mean of steps ``t-window+1 .. t`` as
    far as they lie after the change, is at least the plateau less ``tolerance``. The plateau is
    the mean over the last ``plateau`` share of the steps. 0: there was nothing to recover from.

    Args:
        correct: Accuracy ``(T,)`` in [0, 1] of each step from the change on to the next one.
        window: Steps of the sliding mean.
        tolerance: Epsilon, as a fraction of one.
        plateau: Share of the steps at the end, above 0 and at most 1.

    Returns:
        The step; ``None`` if there are no steps.
    """
    values: Floats = np.asarray(correct, dtype=np.float64)
    if not len(values):
        return None
    level = values[-max(1, int(len(values) * plateau)) :].mean()
    sums = np.concatenate([[0.0], values.cumsum()])
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(0, ends - window)
    sliding = (sums[ends] - sums[starts]) / (ends - starts)
    reached = np.flatnonzero(sliding >= level - tolerance - 1e-12)
    # A short fall at the very end may leave the sliding mean below: it settled at the last step.
    return int(reached[0]) if len(reached) else len(values) - 1


def _in_training(line: Timeline) -> list[int]:
    ends = {(e.item, e.step) for e in line.evaluations if e.kind == "experience"}
    return [
        n
        for n, e in enumerate(line.evaluations)
        if e.kind == "experience" or (e.kind == "step" and (e.item, e.step) not in ends)
    ]


def _after_segments(line: Timeline) -> list[int]:
    return [n for n, e in enumerate(line.evaluations) if e.kind == "segment"]


def _current(line: Timeline, n: int) -> int | None:
    evaluation = line.evaluations[n]
    trains = evaluation.kind in ("step", "experience")
    return line.course.current[evaluation.item] if trains else None


def _last_current(line: Timeline) -> int | None:
    past = line.course.current[: line.evaluations[line.last].item + 1]
    return next((task for task in reversed(past) if task is not None), None)


def _mean(values: Sequence[Any]) -> float | None:
    return float(np.mean(values)) if len(values) else None
