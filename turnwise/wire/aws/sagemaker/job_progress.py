"""How far a job is, folded from its events: the phases it went through, and what it has done. Pure.

    job          JobStatus    SecondaryStatus and its transitions
    PENDING      InProgress   Pending: waits for a place
    RUNNING      InProgress   Starting, Downloading, Training (or Evaluating), Uploading
    STOPPING     Stopping     Stopping
    STOPPED      Stopped      Stopped, MaxRuntimeExceeded
    COMPLETED    Completed    Completed
    FAILED       Failed       Failed

A training job that validates is Training all the while: the sagemaker SDK shows progress only then.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from turnwise.domain.event import Event, EventKind
from turnwise.domain.job import Job, JobKind, JobStatus, Secondary
from turnwise.ports import JobSummary

Json = dict[str, Any]

#: What AWS allows in one answer.
MOST_TRANSITIONS = 100
MAX_REASON = 1024

STATUS = {
    JobStatus.PENDING: "InProgress",
    JobStatus.RUNNING: "InProgress",
    JobStatus.STOPPING: "Stopping",
    JobStatus.STOPPED: "Stopped",
    JobStatus.COMPLETED: "Completed",
    JobStatus.FAILED: "Failed",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """One entry of the transitions. Times are seconds since the epoch."""

    secondary: str
    started_at: float
    ended_at: float | None = None
    message: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """What a job's events up to `seq` say."""

    kind: JobKind
    seq: int = 0
    phases: tuple[Phase, ...] = ()
    steps: int = 0  # planned; 0: not known yet
    rollouts: int = 0  # planned, of an evaluation
    scored: int = 0  # in the step under way, or in all of an evaluation

    def after(self, events: Iterable[Event]) -> Progress:
        """The progress once these have been read too."""
        phases, latest = list(self.phases), self
        for event in events:
            latest = replace(latest, seq=event.seq)
            match event.kind:
                case EventKind.STATUS:
                    _enter(phases, self.kind, event)
                case EventKind.LOG:
                    latest = replace(
                        latest,
                        steps=int(event.body.get("steps", latest.steps)),
                        rollouts=int(event.body.get("rollouts", latest.rollouts)),
                    )
                case EventKind.STEP:
                    latest = replace(latest, scored=0)
                case EventKind.ROLLOUT if event.body.get("reward") is not None:
                    latest = replace(latest, scored=latest.scored + 1)
        return replace(latest, phases=tuple(phases[-MOST_TRANSITIONS:]))

    def transitions(self, job: Job) -> list[Json]:
        """`SecondaryStatusTransitions`; the last has no end unless the job has ended."""
        shown = list(self.phases)
        if shown and job.message and shown[-1].secondary == secondary_of(job):
            shown[-1] = replace(shown[-1], message=job.message)
        return [
            {
                "Status": phase.secondary,
                "StartTime": phase.started_at,
                "EndTime": phase.ended_at,
                "StatusMessage": phase.message or _MEANING.get(phase.secondary, ""),
            }
            for phase in shown
        ]

    def counted(self, job: Job) -> tuple[int, int] | None:
        """Rollouts scored and planned; None where that is not known."""
        if job.spec.kind is JobKind.EVALUATION:
            return (self.scored, self.rollouts) if self.rollouts else None
        if job.status.is_final:
            return None
        batch = job.spec.batch
        return self.scored, batch.global_batch_size * batch.group_size


def _enter(phases: list[Phase], kind: JobKind, event: Event) -> None:
    """Note a STATUS event: the phase before ends, unless it goes on."""
    secondary = _shown(kind, Secondary(event.body["secondary"]))
    is_final = JobStatus(event.body["status"]).is_final
    message = str(event.body.get("message", ""))
    if phases and phases[-1].secondary == secondary and not is_final:
        phases[-1] = replace(phases[-1], message=message or phases[-1].message)
        return
    if phases and phases[-1].ended_at is None:
        phases[-1] = replace(phases[-1], ended_at=event.at)
    ended_at = event.at if is_final else None
    phases.append(
        Phase(secondary=secondary, started_at=event.at, ended_at=ended_at, message=message)
    )


def _shown(kind: JobKind, secondary: Secondary) -> str:
    if kind is JobKind.TRAIN and secondary is Secondary.EVALUATING:
        return Secondary.TRAINING.value
    return secondary.value


def secondary_of(job: Job | JobSummary) -> str:
    """`SecondaryStatus`."""
    return _shown(job.kind, job.secondary)


def failure_of(job: Job) -> str | None:
    """`FailureReason`: why a job failed, cut to what AWS allows."""
    if job.status is not JobStatus.FAILED:
        return None
    return job.message if len(job.message) <= MAX_REASON else job.message[: MAX_REASON - 3] + "..."


def modified_at(job: Job | JobSummary) -> float:
    """`LastModifiedTime`: when the job was created, first started, or ended."""
    return max(job.created_at, job.started_at or 0.0, job.ended_at or 0.0)


_MEANING = {
    "Pending": "waiting for a place",
    "Starting": "starting",
    "Downloading": "loading the model, the data and what the job starts from",
    "Training": "training",
    "Evaluating": "evaluating",
    "Uploading": "keeping the output",
    "Stopping": "stopping",
    "Stopped": "stopped",
    "Restarting": "continuing after a restart of the server",
    "Completed": "completed",
    "Failed": "failed",
}
