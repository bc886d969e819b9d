"""A job's state in one word, as the lists and badges show it."""

from __future__ import annotations

from enum import StrEnum

from turnwise.domain.job import JobStatus, Secondary


class State(StrEnum):
    """What the source document's dashboard calls a job's state."""

    PENDING = "PENDING"
    VALIDATING = "VALIDATING"
    RUNNING = "RUNNING"
    CANCELLING = "CANCELLING"
    COMPLETED = "COMPLETED"
    EARLY_STOPPED = "EARLY_STOPPED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"


#: A shape beside the word, so that colour is never all that tells states apart.
SHAPES = {
    State.PENDING: "○",
    State.VALIDATING: "◔",
    State.RUNNING: "◑",
    State.CANCELLING: "◕",
    State.COMPLETED: "✓",
    State.EARLY_STOPPED: "⏹",
    State.FAILED: "✕",
    State.CANCELLED: "⊘",
}

#: What each state means and what to do, for the badge's title.
MEANINGS = {
    State.PENDING: "Waits for a place; it starts by itself.",
    State.VALIDATING: "Its data and agent are being checked and its model loaded.",
    State.RUNNING: "Rollouts are made, scored and learned from.",
    State.CANCELLING: "Was cancelled and is ending.",
    State.COMPLETED: "Finished; its model is registered.",
    State.EARLY_STOPPED: "A whole epoch had no group with differing rewards.",
    State.FAILED: "Ended by an error; the message says which.",
    State.CANCELLED: "Was cancelled; its last checkpoint is kept.",
}

_STARTING = (Secondary.STARTING, Secondary.DOWNLOADING)


def state(status: JobStatus, secondary: Secondary) -> State:
    """The state of a job.

    >>> state(JobStatus.COMPLETED, Secondary.EARLY_STOPPED).value
    'EARLY_STOPPED'
    """
    if status is JobStatus.RUNNING:
        return State.VALIDATING if secondary in _STARTING else State.RUNNING
    if status is JobStatus.COMPLETED and secondary is Secondary.EARLY_STOPPED:
        return State.EARLY_STOPPED
    return {
        JobStatus.PENDING: State.PENDING,
        JobStatus.STOPPING: State.CANCELLING,
        JobStatus.STOPPED: State.CANCELLED,
        JobStatus.COMPLETED: State.COMPLETED,
        JobStatus.FAILED: State.FAILED,
    }[status]
