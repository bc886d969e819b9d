from __future__ import annotations

from typing import Any

import pytest

from turnwise.dashboard.jobs.progress import (
    Done,
    Progress,
    done,
    ends_at,
    sparkline,
    step_seconds,
)
from turnwise.domain.event import Event, EventKind, Level
from turnwise.domain.job import JobKind, JobStatus


def event(seq: int, kind: EventKind, at: float = 0.0, **body: Any) -> Event:
    return Event(seq=seq, job_id="job_a", at=at, kind=kind, level=Level.INFO, body=body)


def step(seq: int, number: int, reward: float, at: float, epoch: int = 0) -> Event:
    values = {"rollout/reward/mean": reward, "training/epoch": epoch}
    return event(seq, EventKind.METRICS, at, step=number, values=values)


def moved(seq: int, secondary: str, at: float = 0.0) -> Event:
    return event(seq, EventKind.STATUS, at, status="RUNNING", secondary=secondary, message="")


def test_a_job_says_its_plan_then_its_steps():
    progress = Progress().after(
        [
            moved(1, "Starting"),
            event(2, EventKind.LOG, message="40 steps in all, on 8 rows", steps=40),
            step(3, 0, 0.25, at=100.0),
            step(4, 1, 0.5, at=110.0, epoch=1),
        ]
    )
    assert progress == Progress(
        seq=4,
        steps=40,
        epoch=1,
        rewards=((0, 0.25), (1, 0.5)),
        step_ends=(100.0, 110.0),
    )


def test_a_step_that_was_trained_again_has_its_later_reward():
    progress = Progress().after([step(1, 0, 0.1, 1.0), step(2, 1, 0.2, 2.0), step(3, 0, 0.3, 9.0)])
    assert progress.rewards == ((0, 0.3),)


def test_metrics_of_a_validation_are_no_step():
    validation = event(1, EventKind.METRICS, step=0, values={"val/reward/mean": 1.0})
    assert Progress().after([validation]) == Progress(seq=1)


def test_the_time_before_a_restart_says_nothing_about_the_speed_after_it():
    events = [step(1, 0, 0.1, 10.0), moved(2, "Restarting", 9000.0), step(3, 1, 0.2, 9010.0)]
    progress = Progress().after(events)
    assert progress.step_ends == (9010.0,)
    assert ends_at(progress, Done(count=2, total=5), kind=JobKind.TRAIN, now=9011.0) is None


def test_events_in_two_readings_say_the_same_as_in_one():
    events = [step(n + 1, n, n / 10, 5.0 * n) for n in range(20)]
    assert Progress().after(events[:7]).after(events[7:]) == Progress().after(events)
    assert len(Progress().after(events).step_ends) == 11


def test_a_training_job_ends_as_its_newest_steps_went():
    progress = Progress(step_ends=(100.0, 110.0, 120.0))
    left = ends_at(progress, Done(count=3, total=10), kind=JobKind.TRAIN, now=125.0)
    assert left == 120.0 + 7 * 10.0
    assert step_seconds(()) is None


@pytest.mark.parametrize(
    ("of", "now", "expected"),
    [
        (Done(count=10, total=40), 120.0, 120.0 + 30 * 2.0),
        (Done(count=0, total=40), 120.0, None),
        (Done(count=10, total=0), 120.0, None),
        (Done(count=10, total=40), 100.0, None),
    ],
)
def test_an_evaluation_ends_as_its_rollouts_went(of: Done, now: float, expected: float | None):
    progress = Progress(evaluating_since=100.0)
    assert ends_at(progress, of, kind=JobKind.EVALUATION, now=now) == expected


def test_an_evaluation_counts_rollouts_and_retries_do_not_make_it_more_than_whole():
    progress = Progress(rollouts=10)
    going = {"kind": JobKind.EVALUATION, "status": JobStatus.RUNNING, "step": 0, "max_steps": 0}
    assert done(progress, **going, ended=4) == Done(count=4, total=10)
    assert done(progress, **going, ended=13).share == 1.0
    complete = going | {"status": JobStatus.COMPLETED}
    assert done(progress, **complete, ended=0) == Done(count=10, total=10)


def test_a_curve_of_one_value_is_a_line_in_the_middle_and_a_point_is_none():
    assert sparkline([(0, 0.5), (1, 0.5)], width=10, height=24) == "M0.0 12.0L10.0 12.0"
    assert sparkline([(0, 0.5)]) == ""
    assert sparkline([(n, 0.0) for n in range(5000)]).count("L") == 59
