"""What a job's loop is plugged into."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from turnwise.domain.job import Job
from turnwise.ports import (
    AgentRunner,
    Blobs,
    Clock,
    Learner,
    NewId,
    Rollouts,
    Sampler,
    Scorer,
    Store,
)


async def _nowhere(job: Job) -> None:
    """A job's outcome stays where it is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sockets:
    """The ports that one job uses. Whoever made them closes them, after the loop has ended."""

    store: Store
    rollouts: Rollouts
    sampler: Sampler
    learner: Learner
    runner: AgentRunner
    blobs: Blobs
    clock: Clock
    new_id: NewId
    endpoint: Callable[[str, str], str]  # (rollout_id, secret) -> the agent's base URL
    job_arn: str
    model_folder: Callable[[str], Awaitable[str]]  # a model to evaluate -> its PEFT folder
    scorers: Sequence[Scorer] = ()  # of an evaluation, beside the agent's reward
    deliver: Callable[[Job], Awaitable[None]] = _nowhere  # writes the outcome; never raises
