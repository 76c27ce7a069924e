"""Metrics of learning against numbers worked out by hand, and the traps they fall into."""

from __future__ import annotations

import numpy as np
import pytest

from continual.evaluate import Evaluation
from continual.metrics import (
    FORMS,
    METRICS,
    Course,
    Timeline,
    average_anytime_accuracy,
    backward_transfer,
    forgetting,
    forward_transfer,
    learning_metrics,
    min_accuracy,
    recovery_length,
    retention,
    segment_change,
    worst_case_accuracy,
)
from streams.clean import in_memory
from streams.learning_types import Experience, ForgetRequest, LearningStream, Samples, Task
from streams.single import CleanSource


def look(item: int, kind: str, *correct: int, step: int = 0, masked: tuple[int, ...] = ()):
    """An evaluation of tests of ten images each."""
    return Evaluation(
        item=item,
        kind=kind,
        name=f"{kind} {item}",
        step=step,
        correct=correct,
        masked=masked or correct,
        total=(10,) * len(correct),
    )


def course(*current: int | None, trained: tuple[tuple[int, ...], ...] | None = None) -> Course:
    """A course of experiences on one task each; ``None`` is a segment."""
    own = tuple(() if task is None else (task,) for task in current)
    return Course(trained=trained or own, current=current)


# Three tasks, one after the other.
SEQUENCE = course(0, 1, 2)
LOOKS = [
    look(-1, "before", 1, 2, 1, masked=(5, 5, 5)),
    look(0, "experience", 9, 2, 1, step=10, masked=(10, 5, 5)),
    look(1, "experience", 6, 8, 3, step=20, masked=(9, 9, 6)),
    look(2, "experience", 4, 6, 9, step=30, masked=(8, 9, 10)),
]


def test_three_tasks_by_hand() -> None:
    found = learning_metrics(LOOKS, SEQUENCE)
    expected = {
        "final_accuracy": (4 + 6 + 9) / 3,
        "learning_accuracy": (9 + 8 + 9) / 3,
        "average_incremental_accuracy": (9 + 14 / 2 + 19 / 3) / 3,
        "forgetting": ((9 - 4) + (8 - 6)) / 2,
        "bwt": ((4 - 9) + (6 - 8)) / 2,
        "fwt": ((2 - 2) + (3 - 1)) / 2,
        "aaa": (9 + 14 / 2 + 19 / 3) / 3,
        "min_acc": (min(6, 4) + 6) / 2,
        "wc_acc": 9 / 3 + 2 / 3 * 5,
    }
    for name, value in expected.items():
        assert found[f"class_incremental_{name}_pct"] == pytest.approx(10 * value), name
    known = {"final_accuracy": (8 + 9 + 10) / 3, "forgetting": 1.0, "fwt": 0.5, "bwt": -1.0}
    for name, value in known.items():
        assert found[f"task_incremental_{name}_pct"] == pytest.approx(10 * value), name
    assert found["class_incremental_retention_pct"] is None


def test_trap_a_baseline_is_the_initial_model() -> None:
    """Not the one that is about to learn the task, for which FWT would be 0."""
    line = Timeline(LOOKS, SEQUENCE)
    assert forward_transfer(line) == pytest.approx(0.1)
    # Task 2 goes from 1 to 3 before it is learnt; another initial model, another FWT.
    other = [look(-1, "before", 1, 2, 3), *LOOKS[1:]]
    assert forward_transfer(Timeline(other, SEQUENCE)) == pytest.approx(0.0)


def test_trap_b_no_forward_transfer_without_a_look_before() -> None:
    assert forward_transfer(Timeline(LOOKS[1:], SEQUENCE)) is None


def test_trap_c_tasks_to_come_take_no_part() -> None:
    """Chance on tasks that nobody has learnt is no incremental accuracy and no forgetting."""
    lucky = [look(-1, "before", 0, 10, 10), look(0, "experience", 5, 10, 10)]
    found = learning_metrics(lucky, SEQUENCE)
    assert found["class_incremental_final_accuracy_pct"] == 50
    assert found["class_incremental_average_incremental_accuracy_pct"] == 50
    assert found["class_incremental_forgetting_pct"] is None
    assert found["class_incremental_bwt_pct"] is None
    # Before it was learnt task 1 stood at 10 of 10: that is not what is lost later.
    later = [*lucky, look(1, "experience", 5, 6, 10), look(2, "experience", 5, 6, 10)]
    assert forgetting(Timeline(later, SEQUENCE)) == 0


def test_trap_d_revisits() -> None:
    """Task 0 is best after it came back: first-minus-last sees 2 lost where 4 are."""
    again = course(0, 1, 0, 1)
    looks = [
        look(-1, "before", 1, 1),
        look(0, "experience", 7, 1),
        look(1, "experience", 3, 8),
        look(2, "experience", 9, 4),
        look(3, "experience", 5, 8),
    ]
    line = Timeline(looks, again)
    assert forgetting(line) == pytest.approx(((9 - 5) + (8 - 8)) / 20)
    first_minus_last = np.mean([0.7 - 0.5, 0.8 - 0.8])
    assert forgetting(line) != pytest.approx(first_minus_last)
    assert backward_transfer(line) == pytest.approx(-first_minus_last)
    # While task 0 was learnt again its accuracy is not the worst case of having left it.
    assert min_accuracy(line) == pytest.approx(0.3)
    assert worst_case_accuracy(line) == pytest.approx(0.5 * 0.8 + 0.5 * 0.3)


def test_trap_e_names_say_the_form() -> None:
    found = learning_metrics(LOOKS, SEQUENCE)
    assert set(found) == {f"{form}_{name}_pct" for form in FORMS for name in METRICS}


def test_trap_f_only_anytime_metrics_depend_on_the_interval() -> None:
    steps = [
        *LOOKS[:2],
        look(1, "step", 1, 5, 3, step=15),
        look(1, "step", 6, 8, 3, step=20),
        *LOOKS[2:],
    ]
    often, seldom = learning_metrics(steps, SEQUENCE), learning_metrics(LOOKS, SEQUENCE)
    changed = {name for name in often if often[name] != pytest.approx(seldom[name])}
    assert changed == {f"{form}_{name}_pct" for form in FORMS for name in ("aaa", "min_acc")} | {
        f"{form}_wc_acc_pct" for form in FORMS
    }
    # The step at the end of the experience is the experience's end, and counts once.
    assert average_anytime_accuracy(Timeline(steps, SEQUENCE)) == pytest.approx(
        np.mean([0.9, 0.3, 0.7, 19 / 30])
    )
    assert min_accuracy(Timeline(steps, SEQUENCE)) == pytest.approx((0.1 + 0.6) / 2)


def test_a_task_in_several_experiences_is_learnt_at_the_end_of_its_run() -> None:
    online = course(0, 0, 1, 1)
    looks = [
        look(-1, "before", 1, 1),
        look(0, "experience", 4, 1),
        look(1, "experience", 8, 1),
        look(2, "experience", 6, 5),
        look(3, "experience", 6, 9),
    ]
    line = Timeline(looks, online)
    assert line.learnt == {0: 2, 1: 4}
    assert backward_transfer(line) == pytest.approx(-0.2)
    assert forgetting(line) == pytest.approx(0.2)


def test_a_task_that_is_never_the_current_one() -> None:
    mixed = course(0, 0, trained=((0, 1), (0,)))
    assert mixed.first_run(1) == 0
    assert mixed.first_run(2) is None
    assert mixed.seen(0) == (0, 1)


def test_segments_between() -> None:
    """Learn 0, adapt, learn 1, adapt: what is left of the clean accuracies."""
    life = course(0, None, 1, None)
    looks = [
        look(-1, "before", 1, 1),
        look(0, "experience", 8, 1),
        look(1, "segment", 6, 2),
        look(2, "experience", 5, 10),
        look(3, "segment", 4, 7),
    ]
    line = Timeline(looks, life)
    assert retention(line) == pytest.approx((4 / 8 + 7 / 10) / 2)
    assert segment_change(line) == pytest.approx(((6 - 8) / 10 + (11 - 15) / 20) / 2)
    # The last item is a segment: both tasks were learnt before it and can have been forgotten.
    assert forgetting(line) == pytest.approx(((8 - 4) + (10 - 7)) / 20)
    # Task 1 is the last current one; task 0 was at its worst in the end.
    assert min_accuracy(line) == pytest.approx(0.4)
    assert worst_case_accuracy(line) == pytest.approx(0.5 * 0.7 + 0.5 * 0.4)
    # A segment is no stage of learning.
    assert average_anytime_accuracy(line) == pytest.approx((0.8 + 15 / 20) / 2)


def test_nothing_learnt_yet() -> None:
    assert set(learning_metrics([], SEQUENCE).values()) == {None}
    assert set(learning_metrics(LOOKS[:1], SEQUENCE).values()) == {None}


def test_recovery_length() -> None:
    slow = [0, 0, 1, 1, 1, 1, 1, 1, 1, 1]
    # Sliding means over two steps: 0, 0, 1/2, 1.
    assert recovery_length(slow, window=2, tolerance=0.1) == 3
    assert recovery_length(slow, window=2, tolerance=0.5) == 2
    assert recovery_length(slow, window=1, tolerance=0.1) == 2
    assert recovery_length([0.7] * 6) == 0
    assert recovery_length([0.9, 0.5, 0.5, 0.5]) == 0
    assert recovery_length([]) is None


def test_the_course_of_a_stream() -> None:
    """The current task is that of most samples; the focus decides where several tie."""
    images = np.zeros((8, 2, 2, 3), dtype=np.uint8)
    labels = np.arange(8) % 2
    source = CleanSource(clean=in_memory(images, labels, name="zeros", num_classes=2))

    def samples(*tasks: int) -> Samples:
        at = np.arange(len(tasks))
        return Samples(source=source, positions=at, labels=labels[at], tasks=np.array(tasks))

    request = ForgetRequest(name="f", kind="samples", samples=samples(0))
    tasks = tuple(
        Task(name=f"t{n}", train=samples(n), test=samples(n), classes=(0, 1)) for n in (0, 1)
    )
    stream = LearningStream(
        name="zeros",
        setting="by hand",
        tasks=tasks,
        items=(
            Experience(name="a", train=samples(0, 0, 1), task=1),
            request,
            Experience(name="b", train=samples(0, 1), task=0),
            Experience(name="c", train=samples(0, 1), task=1),
        ),
        num_classes=2,
        seed=0,
        image_shape=(3, 2, 2),
    )
    made = Course.of(stream)
    assert made.current == (0, None, 0, 1)
    assert made.trained == ((0, 1), (), (0, 1), (0, 1))
    # A request does not end a run.
    assert made.first_run(0) == 2
