"""Power-law rehearsal: the counts of the original, and the draws."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as profile
from hypothesis import strategies as st

from streams import powerlaw
from streams.errors import StreamError
from streams.powerlaw import Schedule, recurrence_probabilities, recurring_tasks

N = 57_927


def last_phase(**options) -> list[int]:
    """Counts of the tenth phase without its new task, the oldest first."""
    *old, new = Schedule(num_samples=N, **options).counts(9)
    assert new == N
    return old


def test_the_table_is_the_original_one():
    wanted = [33969, 20867, 13329, 8802, 5981, 4167, 2968, 2155, 1592]
    assert last_phase(mode="table")[::-1] == wanted
    assert sum(wanted) == 93_830


def test_the_curve_rounds_to_the_fit_and_meets_the_table():
    fitted = [33971, 20870, 13331, 8804, 5983, 4168, 2968, 2155, 1592]
    assert last_phase(exponent=5.5993)[::-1] == fitted
    assert np.abs(np.subtract(last_phase(), last_phase(mode="table"))).max() <= 1


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({"budget": 1.0}, [1389, 2033, 2880, 3967, 5336, 7032, 9103, 11601, 14582]),
        ({"budget": 0.1}, [138, 203, 288, 396, 533, 703, 910, 1160, 1458]),
    ],
    ids=str,
)
def test_the_restricted_form_is_a_power_of_the_position(options, wanted):
    assert last_phase(mode="position-power", **options) == wanted


def test_exponential_and_uniform():
    wanted = [12, 33, 90, 246, 670, 1823, 4956, 13472, 36621]
    assert last_phase(mode="exponential", budget=1.0) == wanted
    assert last_phase(mode="uniform", budget=1.0) == [6436] * 9


def test_joint_and_none():
    assert last_phase(mode="joint") == [N] * 9
    assert last_phase(mode="none") == [0] * 9


@pytest.mark.parametrize("mode", powerlaw.MODES)
def test_the_matrix_has_the_new_task_on_its_diagonal(mode):
    budget = 0.5 if mode in ("position-power", "exponential", "uniform") else None
    schedule = Schedule(num_samples=1000, mode=mode, budget=budget)
    matrix = schedule.matrix(6)
    assert matrix.dtype == np.int64
    assert np.diag(matrix).tolist() == [1000] * 6
    assert not np.tril(matrix, -1).any()
    assert tuple(matrix[:4, 3]) == schedule.counts(3)
    assert schedule.counts(0) == (1000,)


@given(
    size=st.integers(1, 3000),
    phase=st.integers(0, 12),
    budget=st.sampled_from([0, 0.1, 0.25, 0.5, 0.75, 1.0]),
    mode=st.sampled_from(["power", "position-power", "exponential", "uniform"]),
)
@profile(max_examples=100, deadline=None, derandomize=True, database=None)
def test_a_budget_is_kept_and_newer_tasks_get_no_less(size, phase, budget, mode):
    counts = Schedule(num_samples=size, mode=mode, budget=budget).counts(phase)
    assert len(counts) == phase + 1
    assert counts[-1] == size
    assert sum(counts[:-1]) <= size * budget
    assert list(counts[:-1]) == sorted(counts[:-1])
    assert min(counts) >= 0


def test_draws_are_keyed_mixed_and_without_replacement():
    schedule = Schedule(num_samples=500, budget=0.5)
    tasks, samples = schedule.draw(4, seed=0)
    assert np.bincount(tasks).tolist() == list(schedule.counts(4))
    for task, count in enumerate(schedule.counts(4)):
        mine = samples[tasks == task]
        assert len(set(mine.tolist())) == count
        assert 0 <= mine.min() <= mine.max() < 500
    # Old and new are mixed uniformly, not one after the other.
    assert tasks[:100].tolist() != sorted(tasks[:100].tolist())
    assert 0.4 < np.mean(tasks[: len(tasks) // 2] == 4) / np.mean(tasks == 4) < 1.6
    again = schedule.draw(4, seed=0)
    assert np.array_equal(tasks, again[0])
    assert np.array_equal(samples, again[1])
    assert not np.array_equal(samples, schedule.draw(4, seed=1)[1])
    # Revisiting draws anew: not the samples of the phase before.
    before = schedule.draw(3, seed=0)
    old = [set(s[t == 2].tolist()) for t, s in (before, again)]
    assert old[0] != old[1]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"mode": "powr"}, "unknown mode 'powr'; known: power, table"),
        ({"num_samples": 0}, "num_samples=0 must be at least 1"),
        ({"exponent": 0}, "exponent=0 must be above 0"),
        ({"offset": float("nan")}, "offset=nan must be above 0"),
        ({"mode": "uniform"}, "mode 'uniform' needs a budget"),
        ({"mode": "joint", "budget": 1.0}, "mode 'joint' takes no budget, got 1.0"),
        ({"budget": -1.0}, "budget=-1.0 must be at least 0"),
    ],
    ids=str,
)
def test_a_wrong_schedule_is_answered_in_one_line(options, words):
    with pytest.raises(StreamError, match=words):
        Schedule(**{"num_samples": 100, **options})


def test_phases_that_are_not_there():
    with pytest.raises(StreamError, match="phase=-1 must be at least 0"):
        Schedule(num_samples=10).counts(-1)
    with pytest.raises(StreamError, match="phase=10 is beyond the table's 10 phases"):
        Schedule(num_samples=10, mode="table").counts(10)


# Sample-level streams ---------------------------------------------------------------------------


def test_probabilities_fall_as_a_power_of_the_time_since_last_seen():
    # Since then 1, 4 and 9 samples, offset 1: weights 1/2, 1/5, 1/10.
    chances = recurrence_probabilities([9, 6, 1], 10)
    assert chances == pytest.approx(np.array([5, 2, 1]) / 8)
    squared = recurrence_probabilities([9, 6, 1], 10, exponent=2)
    assert squared == pytest.approx(np.array([25, 4, 1]) / 30)
    assert recurrence_probabilities([9, 6, 1], 10, exponent=0) == pytest.approx(np.ones(3) / 3)
    steep = recurrence_probabilities([9, 6], 10, exponent=1e4)
    assert steep == pytest.approx([1, 0])
    with pytest.raises(StreamError, match="offset=0"):
        recurrence_probabilities([0], 1, offset=0)


def test_tasks_start_when_told_and_recur_with_those_probabilities():
    starts = (0, 1000, 2000)
    tasks = recurring_tasks(starts, 8_000, exponent=1.5, offset=3.0, seed=0)
    assert [int(np.flatnonzero(tasks == task)[0]) for task in range(3)] == list(starts)
    assert np.array_equal(tasks, recurring_tasks(starts, 8_000, exponent=1.5, offset=3.0, seed=0))
    assert not np.array_equal(tasks, recurring_tasks(starts, 8_000, seed=0))
    last, expected = [0, 1000, 2000], np.zeros(3)
    for time in range(8_000):
        if time > 2000:
            expected += recurrence_probabilities(last, time, exponent=1.5, offset=3.0)
        last[tasks[time]] = time
    # The sum of the chances is what is found, up to the noise of the draws.
    found = np.bincount(tasks[2001:], minlength=3)
    assert found == pytest.approx(expected, abs=4 * np.sqrt(6_000 / 4))


@pytest.mark.parametrize("starts", [(), (1, 2), (0, 0), (0, 3, 2), (0, 10)])
def test_starts_that_do_not_rise_from_zero(starts):
    with pytest.raises(StreamError, match="must rise from 0 and stay below 10"):
        recurring_tasks(starts, 10, seed=0)
