from __future__ import annotations

import doctest
from dataclasses import dataclass, field
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from turnwise import errors
from turnwise.loop import pace as pace_module
from turnwise.loop.pace import Pace


def pace(k: int, batch: int = 1, total: int = 100, step: int = 0) -> Pace:
    return Pace(max_steps_off_policy=k, batch=batch, total=total, step=step)


def admit_all(pace: Pace, first: int = 0) -> list[int]:
    orders = list(range(first, first + pace.may_admit()))
    for order in orders:
        pace.admit(order)
    return orders


def train(pace: Pace, *orders: int) -> None:
    for order in orders:
        pace.close(order)
    assert pace.take() == orders
    pace.finish()


def test_synchronous_training_admits_the_next_groups_once_the_step_is_published() -> None:
    job = pace(k=0, batch=2)
    admit_all(job)
    job.close(0)
    assert (job.take(), job.may_admit()) == (None, 0)
    job.close(1)
    assert (job.take(), job.may_admit()) == ((0, 1), 0)
    job.finish()
    assert (job.step, job.may_admit()) == (1, 2)


def test_a_younger_group_overtakes_an_open_one_that_can_wait() -> None:
    job = pace(k=2)
    assert admit_all(job) == [0, 1, 2]

    train(job, 2)

    assert job.waiting == (0, 1)


def test_overtaking_stops_when_the_older_ones_would_no_longer_all_fit() -> None:
    job = pace(k=2)
    admit_all(job)
    train(job, 2)
    admit_all(job, first=3)
    job.close(3)

    assert job.take() is None  # 0 and 1 have two steps left between them
    job.close(1)
    assert job.take() == (1,)


def test_a_step_waits_for_a_group_in_its_last_step() -> None:
    job = pace(k=1)
    admit_all(job)
    train(job, 1)
    admit_all(job, first=2)
    job.close(2)

    assert job.take() is None
    job.close(0)
    assert job.take() == (0,)


def test_groups_admitted_during_a_step_count_as_of_the_policy_before_it() -> None:
    job = pace(k=1)
    admit_all(job)
    job.close(0)
    assert job.take() == (0,)
    assert job.may_admit() == 0
    job.finish()
    assert job.may_admit() == 1


def test_the_last_step_takes_what_is_left() -> None:
    job = pace(k=1, batch=2, total=3)
    assert admit_all(job) == [0, 1, 2]
    train(job, 0, 1)
    assert (job.may_admit(), job.is_done) == (0, False)
    train(job, 2)
    assert (job.is_done, job.trained, job.take()) == (True, 3, None)


def test_resuming_keeps_closed_groups_that_are_young_enough() -> None:
    job = pace(k=2, batch=2, step=5)

    kept = job.resume({9: 5, 7: 2, 8: 3, 10: 6})

    assert kept == (8, 9)  # 7 is too old, 10 is of a step that never finished
    assert job.may_admit() == 4
    assert job.take() == (8, 9)


def test_resuming_keeps_no_more_than_can_be_trained_in_time() -> None:
    job = pace(k=1, batch=1, step=5)

    assert job.resume({0: 4, 1: 4, 2: 5}) == (0, 2)


def test_wrong_observations_are_refused() -> None:
    job = pace(k=1, batch=2)
    with pytest.raises(errors.Conflict, match="group 0 is not open"):
        job.close(0)
    with pytest.raises(errors.Conflict, match="no step is under way"):
        job.finish()
    admit_all(job)
    with pytest.raises(errors.Conflict, match="group 9 is more than the pace allows now"):
        job.admit(9)
    train(job, 0, 1)
    with pytest.raises(errors.Conflict, match="group 2 is already admitted"):
        job.admit(2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((-1, 1, 1), "max_steps_off_policy: -1 must be at least 0"),
        ((0, 0, 1), "batch: 0 must be at least 1"),
        ((0, 1, -1), "total: -1 must be at least 0"),
    ],
)
def test_impossible_settings_are_refused(arguments: tuple[int, int, int], message: str) -> None:
    with pytest.raises(errors.InvalidInput) as refused:
        pace(*arguments)
    assert str(refused.value) == message


def test_the_example_in_the_docstring_is_true() -> None:
    assert doctest.testmod(pace_module) == doctest.TestResults(failed=0, attempted=5)


# ── any job, with any latencies, failures and restarts ────────────────────────────────────────


@dataclass
class Job:
    """Drives a pace as a loop would, in an order of events drawn at random."""

    pace: Pace
    random: Random
    admitted_at: dict[int, int] = field(default_factory=dict)
    open: set[int] = field(default_factory=set)
    closed: set[int] = field(default_factory=set)
    superseded: set[int] = field(default_factory=set)
    trained_at: dict[int, int] = field(default_factory=dict)

    def admit(self) -> None:
        order = len(self.admitted_at)  # group orders are never used again
        self.pace.admit(order)
        self.admitted_at[order] = self.pace.step
        self.open.add(order)

    def close(self) -> None:
        """Scored or failed: the pace does not tell them apart."""
        order = self.random.choice(sorted(self.open))
        self.open.remove(order)
        self.closed.add(order)
        self.pace.close(order)

    def finish(self) -> None:
        for order in self.pace.training:
            assert order not in self.trained_at
            assert order in self.closed
            self.trained_at[order] = self.pace.step
        self.closed.difference_update(self.pace.training)
        self.pace.finish()

    def restart(self) -> None:
        """The process dies; what was open or in an unfinished step is of an old incarnation."""
        before = self.pace
        self.pace = Pace(
            max_steps_off_policy=before.max_steps_off_policy,
            batch=before.batch,
            total=before.total,
            step=before.step,
        )
        kept = self.pace.resume({order: self.admitted_at[order] for order in self.closed})
        assert set(kept) == self.closed  # the closed ones fitted before, so they still do
        self.superseded |= self.open
        self.open.clear()

    def run(self, restarts: int) -> None:
        while not self.pace.is_done:
            moves = [self.admit] * (self.pace.may_admit() > 0) + [self.close] * bool(self.open)
            moves += [self.finish] * bool(self.pace.training)
            if self.pace.take():
                continue
            assert moves, "stuck although nothing is open"
            if restarts and self.random.random() < 0.1:
                restarts -= 1
                self.restart()
            else:
                self.random.choice(moves)()


@settings(deadline=None, max_examples=300)
@given(
    k=st.integers(0, 10),
    batch=st.integers(1, 4),
    total=st.integers(0, 60),
    restarts=st.integers(0, 4),
    random=st.integers(0, 2**32).map(Random),
)
def test_no_group_is_trained_too_old_lost_or_trained_twice(
    k: int, batch: int, total: int, restarts: int, random: Random
) -> None:
    job = Job(pace=pace(k, batch, total), random=random)

    job.run(restarts)

    ages = [step - job.admitted_at[order] for order, step in job.trained_at.items()]
    assert all(0 <= age <= k for age in ages)
    assert len(job.trained_at) == total
    assert set(job.admitted_at) == set(job.trained_at) | job.superseded
    assert not job.open
    assert not job.closed
    steps = [list(job.trained_at.values()).count(step) for step in range(job.pace.step)]
    assert all(size == batch for size in steps[:-1])
    assert all(1 <= size <= batch for size in steps[-1:])


@settings(deadline=None, max_examples=200)
@given(
    k=st.integers(0, 10),
    batch=st.integers(1, 4),
    slow=st.integers(0, 11),
    random=st.integers(0, 2**32).map(Random),
)
def test_one_slow_group_never_stops_the_others_before_its_last_step(
    k: int, batch: int, slow: int, random: Random
) -> None:
    """Everything else closes at once; training goes on for as long as the bound lets it."""
    job = Job(pace=pace(k, batch, total=200), random=random)
    slow = min(slow, (k + 1) * batch - 1)
    while True:
        while job.pace.may_admit():
            job.admit()
        for order in sorted(job.open - {slow}):
            job.open.remove(order)
            job.closed.add(order)
            job.pace.close(order)
        if not job.pace.take():
            break
        job.finish()

    assert job.pace.step == k
