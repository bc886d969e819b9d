from __future__ import annotations

from typing import Any

from turnwise.dashboard.job.timeline import EpochLines, Phase, StepLine, Timeline, epochs
from turnwise.domain.event import Event, EventKind, Level
from turnwise.domain.rollout import Purpose


def event(seq: int, kind: EventKind, **body: Any) -> Event:
    return Event(seq=seq, job_id="j", at=100.0 + seq, kind=kind, level=Level.INFO, body=body)


def metrics(seq: int, step: int, **values: float) -> Event:
    named = {name.replace("__", "/"): value for name, value in values.items()}
    return event(seq, EventKind.METRICS, step=step, values=named)


def ended(seq: int, step: int) -> Event:
    return event(seq, EventKind.STEP, step=step, groups=["a", "b"], trained_tokens=7)


def line(step: int, at: float, **changes: Any) -> StepLine:
    fields: dict[str, Any] = {
        "step": step,
        "epoch": 0,
        "ended_at": at,
        "seconds": None,
        "reward": None,
        "groups": 2,
        "rollouts": 0,
        "trained_tokens": 7,
    }
    return StepLine(**(fields | changes))


def test_a_step_has_the_metrics_that_were_written_with_it_and_no_others():
    timeline = Timeline()
    timeline.add([metrics(1, 0, rollout__reward__mean=0.5, timing_s__step=2.0), ended(2, 0)])
    timeline.add([metrics(3, 0, val__reward__mean=0.9), ended(4, 1)])
    assert timeline.steps() == [line(1, 104.0), line(0, 102.0, reward=0.5, seconds=2.0)]


def test_a_step_that_was_trained_again_is_there_once():
    timeline = Timeline()
    timeline.add([ended(1, 0), ended(2, 1), ended(3, 1)])
    assert timeline.steps() == [line(1, 103.0), line(0, 101.0)]
    assert len(timeline) == 2
    assert timeline.steps(before=1) == [line(0, 101.0)]
    assert timeline.steps(limit=1) == [line(1, 103.0)]


def test_steps_are_told_by_epoch_with_the_mean_of_their_rewards():
    lines = [line(2, 3.0, epoch=1), line(1, 2.0, reward=0.5), line(0, 1.0, reward=0.25)]
    assert epochs(lines) == (
        EpochLines(epoch=1, steps=(lines[0],), reward=None),
        EpochLines(epoch=0, steps=(lines[1], lines[2]), reward=0.375),
    )


def test_phases_last_until_the_next_one():
    timeline = Timeline()
    timeline.add(
        [
            event(1, EventKind.STATUS, status="PENDING", secondary="Pending"),
            event(4, EventKind.STATUS, status="FAILED", secondary="Failed", message="why"),
        ]
    )
    assert timeline.phases == (
        Phase(at=101.0, status="PENDING", secondary="Pending", seconds=3.0),
        Phase(at=104.0, status="FAILED", secondary="Failed", message="why"),
    )


def test_validations_are_kept_and_evaluations_are_not():
    timeline = Timeline()
    for seq, purpose in enumerate((Purpose.VALIDATION, Purpose.EVALUATION), start=1):
        body = {"step": seq, "values": {"val/reward/mean": 0.5}, "purpose": purpose.value}
        timeline.add([event(seq, EventKind.EVALUATION, **body)])
    assert timeline.validated == {1: 0.5}
