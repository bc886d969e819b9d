from __future__ import annotations

import doctest
import heapq
from dataclasses import dataclass, field
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from turnwise import errors
from turnwise.loop import pace as pace_module
from turnwise.loop.pace import Pace


def pace(k: int, batch: int = 1, total: int = 100, step: int = 0, steps: int | None = None) -> Pace:
    """With `steps`, one that refills."""
    return Pace(
        max_steps_off_policy=k,
        batch=batch,
        total=total,
        step=step,
        trained=step * batch,
        refill=steps is not None,
        steps=steps,
    )


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


def test_a_group_without_advantage_makes_room_for_a_fresh_one_in_the_same_step() -> None:
    job = pace(k=0, batch=2, steps=5)
    assert admit_all(job) == [0, 1]

    job.close(0, is_zero=True)
    assert (job.take(), admit_all(job, first=2)) == (None, [2])
    job.close(1)
    job.close(2)

    assert job.take() == (0, 1, 2)
    assert (job.refilled, job.training, job.may_admit()) == (1, (0, 1, 2), 0)
    job.finish()
    assert (job.trained, job.step, job.refilled, job.may_admit()) == (3, 1, 0, 2)


def test_a_step_sets_aside_at_most_one_batch() -> None:
    job = pace(k=0, batch=1, steps=5)
    for order in range(2):
        assert admit_all(job, first=order) == [order]
        job.close(order, is_zero=True)

    assert job.may_admit() == 0
    assert job.take() == (0, 1)


def test_without_refill_a_group_without_advantage_is_one_like_any_other() -> None:
    job = pace(k=0, batch=2)
    admit_all(job)
    job.close(0, is_zero=True)
    assert job.may_admit() == 0
    job.close(1)
    assert (job.take(), job.refilled) == ((0, 1), 0)


def test_a_job_that_refills_ends_when_its_rows_are_used_up() -> None:
    job = pace(k=1, batch=2, total=3, steps=9)
    admit_all(job)
    for order in range(3):
        job.close(order, is_zero=True)
    assert job.take() == (0, 1, 2)
    job.finish()
    assert (job.is_done, job.step, job.take()) == (True, 1, None)


def test_resuming_sets_groups_without_advantage_aside_whatever_their_age() -> None:
    job = pace(k=0, batch=1, step=5, steps=9)

    kept = job.resume({7: 3, 8: 3, 9: 5}, zero={7, 8})

    assert kept == (7, 9)  # a batch of one is set aside; 8 is then too old to be trained
    assert job.take() == (7, 9)


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
    zero: set[int] = field(default_factory=set)
    zero_share: float = 0.0

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
        if self.random.random() < self.zero_share:
            self.zero.add(order)
        self.pace.close(order, is_zero=order in self.zero)

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
            trained=before.trained,
            refill=before.refill,
            steps=before.steps,
        )
        closed = {order: self.admitted_at[order] for order in self.closed}
        kept = self.pace.resume(closed, self.zero)
        # The closed ones fitted before, so they still do; but which of those without advantage
        # are set aside may change, and then the others may be too many.
        assert before.refill or set(kept) == self.closed
        self.superseded |= self.open | (self.closed - set(kept))
        self.open.clear()
        self.closed = set(kept)

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


@settings(deadline=None, max_examples=300)
@given(
    k=st.integers(0, 10),
    batch=st.integers(1, 4),
    total=st.integers(0, 60),
    steps=st.integers(1, 20),
    zero_share=st.floats(0, 1),
    restarts=st.integers(0, 4),
    random=st.integers(0, 2**32).map(Random),
)
def test_refilling_keeps_the_bound_and_takes_at_most_one_more_batch_per_step(
    k: int, batch: int, total: int, steps: int, zero_share: float, restarts: int, random: Random
) -> None:
    job = Job(pace=pace(k, batch, total, steps=steps), random=random, zero_share=zero_share)

    job.run(restarts)

    trained = {order: step for order, step in job.trained_at.items() if order not in job.zero}
    assert all(0 <= step - job.admitted_at[order] <= k for order, step in trained.items())
    assert set(job.admitted_at) == set(job.trained_at) | job.superseded
    assert not job.open
    assert not job.closed
    taken = [list(job.trained_at.values()).count(step) for step in range(job.pace.step)]
    assert all(batch <= size <= 2 * batch for size in taken[:-1])
    assert sum(taken) == job.pace.trained <= total
    assert job.pace.step == steps or job.pace.trained == total
    if zero_share == 0:
        assert set(taken[:-1]) <= {batch}


def log_normal_latencies(count: int, seed: int) -> list[float]:
    random = Random(seed)
    return [random.lognormvariate(0.0, 1.0) for _ in range(count)]


@dataclass
class Timeline:
    """A job on a simulated clock: groups take as long as they take, a step takes `step_s`."""

    pace: Pace
    latencies: list[float]
    step_s: float
    trained_at: dict[int, float] = field(default_factory=dict)

    def run(self) -> None:
        events: list[tuple[float, str, int]] = []
        now, order = 0.0, 0
        while not self.pace.is_done:
            while self.pace.may_admit() and order < len(self.latencies):
                self.pace.admit(order)
                heapq.heappush(events, (now + self.latencies[order], "closed", order))
                order += 1
            if self.pace.take():
                heapq.heappush(events, (now + self.step_s, "trained", -1))
            now, what, which = heapq.heappop(events)
            if what == "closed":
                self.pace.close(which)
            else:
                self.trained_at |= dict.fromkeys(self.pace.training, now)
                self.pace.finish()


def distance(some: list[float], others: list[float]) -> float:
    """Largest difference between two empirical distributions (Kolmogorov-Smirnov)."""

    def below(values: list[float], limit: float) -> float:
        return sum(value <= limit for value in values) / len(values)

    return max(abs(below(some, at) - below(others, at)) for at in (*some, *others))


@pytest.mark.parametrize("k", [0, 1, 2, 4])
def test_slow_tasks_are_trained_as_often_as_they_were_sampled(k: int) -> None:
    latencies = log_normal_latencies(400, seed=k)
    job = Timeline(pace(k, batch=8, total=400), latencies, step_s=0.5)

    job.run()

    assert [latencies[order] for order in sorted(job.trained_at)] == latencies
    # Not only in the end: of the tasks of any stretch, what has been trained by the time that
    # the pace allows looks like what was sampled. First come, first trained would not.
    first = 200
    in_time = sorted(job.trained_at, key=lambda order: job.trained_at[order])[:first]
    come_first = sorted(range(first + 8 * (k + 1)), key=lambda order: latencies[order])[:first]
    trained = [latencies[order] for order in in_time]
    assert distance(trained, latencies[:first]) < 0.06
    if k:
        hasty = [latencies[order] for order in come_first]
        assert distance(hasty, latencies[:first]) > distance(trained, latencies[:first])


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
