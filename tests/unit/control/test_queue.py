from collections import Counter
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests import builders
from turnwise import errors
from turnwise.control.queue import Limits, check_quota, in_order, startable
from turnwise.domain.job import Job, JobKind

ACCOUNTS = ("acc_a", "acc_b", "acc_c")


def waiting(*jobs: tuple[str, int]) -> list[Job]:
    """Jobs of these accounts and priorities, oldest first."""
    return [
        builders.job(
            f"job{number}",
            job_id=f"job_{number}",
            account_id=account,
            spec=builders.spec(f"job{number}", priority=priority),
        )
        for number, (account, priority) in enumerate(jobs)
    ]


def names(jobs: Sequence[Job]) -> list[str]:
    return [job.name for job in jobs]


some_jobs = st.lists(st.tuples(st.sampled_from(ACCOUNTS), st.integers(-1, 1)), max_size=12)
some_running = st.dictionaries(st.sampled_from(ACCOUNTS), st.integers(0, 3))


def one_by_one(jobs: list[Job], running: dict[str, int], limits: Limits) -> list[Job]:
    """The rule as the page says it: one place after the other, to whoever is first now."""
    left, taken, started = list(enumerate(jobs)), Counter(running), []
    while taken.total() < limits.running:
        may = [at for at in left if taken[at[1].account_id] < limits.of_an_account]
        if not may:
            break
        first = min(may, key=lambda at: (-at[1].spec.priority, taken[at[1].account_id], at[0]))
        left.remove(first)
        taken[first[1].account_id] += 1
        started.append(first[1])
    return started


@given(some_jobs, some_running, st.integers(1, 12), st.integers(0, 12))
def test_places_go_one_by_one_to_the_highest_priority_then_the_fewest_running_then_the_oldest(
    given_jobs: list[tuple[str, int]], running: dict[str, int], places: int, of_an_account: int
):
    jobs, limits = waiting(*given_jobs), Limits(running=places, account_running=of_an_account)
    assert names(list(startable(jobs, running, limits))) == names(one_by_one(jobs, running, limits))


@given(some_jobs, some_running)
def test_the_order_holds_every_waiting_job_once_and_no_lower_priority_before_a_higher(
    given_jobs: list[tuple[str, int]], running: dict[str, int]
):
    jobs = waiting(*given_jobs)
    ordered = in_order(jobs, running)
    priorities = [job.spec.priority for job in ordered]
    assert sorted(names(ordered)) == sorted(names(jobs))
    assert priorities == sorted(priorities, reverse=True)


@given(st.integers(1, 20), st.integers(1, 20))
def test_an_account_with_one_job_waits_for_at_most_one_job_of_each_other_account(
    of_others: int, others: int
):
    jobs = waiting(*[(f"acc_{n % others}", 0) for n in range(of_others * others)], ("mine", 0))
    assert names(in_order(jobs, {})).index(jobs[-1].name) <= others


def test_an_account_at_its_limit_is_passed_over_and_holds_nobody_up():
    jobs = waiting(("acc_a", 100), ("acc_b", 0))
    limits = Limits(running=3, account_running=1)
    assert names(list(startable(jobs, {"acc_a": 1}, limits))) == ["job1"]


def test_equal_jobs_of_one_account_keep_the_order_in_which_they_were_created():
    jobs = waiting(*[("acc_a", 0)] * 9)
    assert in_order(jobs, {"acc_a": 2}) == jobs


def test_a_limit_of_0_is_the_servers_and_no_account_has_more_than_the_server():
    assert Limits(running=4).of_an_account == 4
    assert Limits(running=4, account_running=9).of_an_account == 4
    assert Limits(running=4, training_quota=1).quota(JobKind.TRAIN) == 1
    assert Limits(running=4, training_quota=1).quota(JobKind.EVALUATION) == 4


def test_a_full_quota_names_itself_its_value_and_the_jobs_that_use_it():
    walk = builders.job("walk")
    look = builders.job("look", spec=builders.spec("look", kind=JobKind.EVALUATION))
    limits = Limits(running=4, training_quota=1, evaluation_quota=2)

    check_quota([walk, look], JobKind.EVALUATION, limits)
    with pytest.raises(errors.LimitExceeded) as refused:
        check_quota([walk, look], JobKind.TRAIN, limits)

    assert str(refused.value) == (
        "the account may have 1 unfinished training job (quota_training_jobs), and has "
        "walk (PENDING); wait for one to end, or stop one"
    )
