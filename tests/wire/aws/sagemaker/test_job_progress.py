"""Events folded into what SageMaker's clients read of a job's progress."""

from __future__ import annotations

from dataclasses import replace

from tests import builders
from turnwise.domain.event import Event, EventKind, Level
from turnwise.domain.job import Job, JobKind, JobStatus, Secondary
from turnwise.wire.aws.sagemaker.job_progress import MOST_TRANSITIONS, Progress, failure_of

TRAINING = Progress(kind=JobKind.TRAIN)


def told(*phases: tuple[str, str, str], start: int = 0) -> list[Event]:
    """STATUS events, one a second: (status, secondary, message)."""
    return [
        Event(
            seq=start + at + 1,
            job_id="job_walk",
            at=float(start + at),
            kind=EventKind.STATUS,
            level=Level.INFO,
            body={"status": status, "secondary": secondary, "message": message},
        )
        for at, (status, secondary, message) in enumerate(phases)
    ]


def a_job(**changes: object) -> Job:
    return replace(builders.job(), **changes)  # type: ignore[arg-type]


def test_a_resumed_job_has_both_its_lives() -> None:
    progress = TRAINING.after(
        told(
            ("RUNNING", "Training", ""),
            ("FAILED", "Failed", "no disk"),
            ("PENDING", "Pending", ""),
            ("RUNNING", "Starting", ""),
        )
    )
    found = progress.transitions(a_job(secondary=Secondary.STARTING))
    assert [(each["Status"], each["StartTime"], each["EndTime"]) for each in found] == [
        ("Training", 0.0, 1.0),
        ("Failed", 1.0, 1.0),
        ("Pending", 2.0, 3.0),
        ("Starting", 3.0, None),
    ]
    assert found[1]["StatusMessage"] == "no disk"


def test_of_very_many_transitions_the_newest_are_kept() -> None:
    phases = [("RUNNING", name, "") for name in ("Restarting", "Training")] * MOST_TRANSITIONS
    progress = TRAINING.after(told(*phases, ("FAILED", "Failed", "why")))
    found = progress.transitions(a_job(secondary=Secondary.FAILED))
    assert len(found) == MOST_TRANSITIONS
    assert found[-1]["Status"] == "Failed"


def test_reading_in_parts_is_reading_at_once() -> None:
    events = told(
        ("PENDING", "Pending", ""), ("RUNNING", "Training", ""), ("RUNNING", "Evaluating", "")
    )
    in_parts = TRAINING
    for event in events:
        in_parts = in_parts.after([event])
    assert in_parts == TRAINING.after(events)
    assert [phase.secondary for phase in in_parts.phases] == ["Pending", "Training"]


def test_an_evaluation_that_evaluates_says_so() -> None:
    progress = Progress(kind=JobKind.EVALUATION).after(told(("RUNNING", "Evaluating", "")))
    assert [phase.secondary for phase in progress.phases] == ["Evaluating"]


def test_only_a_failed_job_has_a_reason() -> None:
    assert failure_of(a_job(status=JobStatus.STOPPED, message="stopped early")) is None
    assert failure_of(a_job(status=JobStatus.FAILED, message="why")) == "why"
