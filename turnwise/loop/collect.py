"""From a row to the record of its rollouts: dispatch, deadlines, retries, and a group that closes.

For each slot of a group, under one of `rollout_max_concurrency` permits:

    open a rollout --> AgentRunner --> agent --> gateway --> closed(rollout) --> Trajectory
          ^               | a fault fails it                    |
          |               alarm: at its deadline it fails       |
          `---- retryable, attempts and time left: a new rollout id

A slot ends with a scored rollout or with its last failure, a group when all its slots have ended.
The group's own deadline counts from its first dispatch and bounds every attempt's, so a group
costs at most one `group_timeout`. Faults are data: nothing here raises because an agent failed,
but `AgentDenied` when it refuses to be called, which ends the job.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from turnwise import errors
from turnwise.domain.data import Row
from turnwise.domain.event import EventDraft, EventKind, Level
from turnwise.domain.job import Job
from turnwise.domain.rollout import (
    Blame,
    Fault,
    Policy,
    Purpose,
    Rollout,
    RolloutStatus,
    SamplingParams,
    Trajectory,
)
from turnwise.loop.pilot import is_settled
from turnwise.loop.sockets import Sockets
from turnwise.ports import AgentRequest
from turnwise.rl.truncation import is_over_budget
from turnwise.system import random_letters

#: An agent's response, with its metrics, may come a moment after the reward that it reported.
RESPONSE_GRACE_S = 2.0

#: Wait before the second attempt; doubled before each further one, to let an agent restart.
RETRY_WAIT_S = 0.5

_CANCELLED = Fault(blame=Blame.SERVICE, code="cancelled", message="the job ended", retryable=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Assignment:
    """One group to collect: `size` rollouts of a row. `policy` pins every turn (evaluation)."""

    group_id: str
    row: Row
    size: int
    step: int
    purpose: Purpose
    sampling: SamplingParams
    policy: Policy | None = None
    pilot: int = 0  # rollouts to make first; the rest only if they disagree. 0: all at once


class Collector:
    """Collects groups for one incarnation of a job."""

    def __init__(self, job: Job, sockets: Sockets) -> None:
        self._job = job
        self._limits = job.spec.rollout
        self._sockets = sockets
        self._clock = sockets.clock
        self._rollouts = sockets.rollouts
        self._permits = asyncio.Semaphore(self._limits.rollout_max_concurrency)
        self._deadlines: dict[str, float] = {}  # of groups under way, from their first dispatch
        self._open: set[str] = set()
        self._is_comparable = True

    async def collect(self, assignment: Assignment) -> tuple[Trajectory, ...]:
        """Every attempt of the group, by (slot, attempt), once the group has closed."""
        first = assignment.pilot or assignment.size
        attempts = await self._slots(assignment, range(first))
        if first < assignment.size and not is_settled(self._job.spec, attempts):
            attempts += await self._slots(assignment, range(first, assignment.size))
        self._deadlines.pop(assignment.group_id, None)
        return tuple(attempts)

    async def abandon(self) -> None:
        """Close every rollout still open, as cancelled; late calls of their agents are refused."""

        async def close(rollout_id: str) -> None:
            with suppress(errors.TurnwiseError):
                await self._rollouts.fail(rollout_id, _CANCELLED)

        await asyncio.gather(*(close(rollout_id) for rollout_id in self._open))
        self._open.clear()

    async def _slots(self, assignment: Assignment, slots: range) -> list[Trajectory]:
        async with asyncio.TaskGroup() as tasks:
            made = [
                tasks.create_task(
                    self._slot(assignment, slot), name=f"slot {assignment.group_id}/{slot}"
                )
                for slot in slots
            ]
        return [trajectory for slot in made for trajectory in slot.result()]

    # ── one slot ──────────────────────────────────────────────────────────────────────────────

    async def _slot(self, assignment: Assignment, slot: int) -> list[Trajectory]:
        attempts: list[Trajectory] = []
        async with self._permits:
            until = self._deadlines.setdefault(
                assignment.group_id, self._clock.now() + self._limits.group_timeout_s
            )
            for attempt in range(1 + self._limits.rollout_max_retries):
                pause = RETRY_WAIT_S * 2 ** (attempt - 1) if attempt else 0.0
                if self._clock.now() + pause >= until:
                    break
                await self._clock.sleep(pause)
                attempts.append(await self._attempt(assignment, slot, attempt, until))
                fault = attempts[-1].rollout.fault
                if fault is not None and fault.is_fatal:
                    raise errors.AgentDenied(fault.message)
                # One that used up its tokens would have no more of them the next time.
                is_spent = is_over_budget(attempts[-1], self._limits)
                if is_spent or not is_worth_another(attempts[-1]):
                    break
        await self._note_disturbance(attempts)
        return attempts

    async def _attempt(
        self, assignment: Assignment, slot: int, attempt: int, until: float
    ) -> Trajectory:
        secret = new_secret()
        rollout = self._new_rollout(assignment, slot, attempt, until, secret)
        self._open.add(rollout.rollout_id)
        await self._rollouts.open([rollout])
        request = self._request(rollout, assignment, secret)
        async with asyncio.TaskGroup() as tasks:
            alarm = tasks.create_task(self._alarm(rollout), name=f"alarm {rollout.rollout_id}")
            dispatch = tasks.create_task(
                self._dispatch(request), name=f"dispatch {rollout.rollout_id}"
            )
            closed = await self._rollouts.closed(rollout.rollout_id)
            alarm.cancel()
            metrics = await self._last_words(dispatch) if closed.rollout.is_scored else {}
            dispatch.cancel()
        self._open.discard(rollout.rollout_id)
        trajectory = _with_metrics(closed, metrics)
        await self._append(_rollout_event(trajectory))
        return trajectory

    def _new_rollout(
        self, assignment: Assignment, slot: int, attempt: int, until: float, secret: str
    ) -> Rollout:
        now = self._clock.now()
        return Rollout(
            rollout_id=self._sockets.new_id("rollout"),
            account_id=self._job.account_id,
            job_id=self._job.job_id,
            incarnation=self._job.incarnation,
            group_id=assignment.group_id,
            slot=slot,
            attempt=attempt,
            purpose=assignment.purpose,
            row_index=assignment.row.index,
            step=assignment.step,
            seed=self._job.spec.seed,
            sampling=assignment.sampling,
            secret_sha256=hashlib.sha256(secret.encode()).hexdigest(),
            created_at=now,
            deadline_at=min(now + self._limits.rollout_timeout, until),
            policy=assignment.policy,
        )

    def _request(self, rollout: Rollout, assignment: Assignment, secret: str) -> AgentRequest:
        return AgentRequest(
            rollout_id=rollout.rollout_id,
            job_id=rollout.job_id,
            job_arn=self._sockets.job_arn,
            endpoint=self._sockets.endpoint(rollout.rollout_id, secret),
            prompt=assignment.row.prompt,
            fields=assignment.row.fields,
            sampling=rollout.sampling,
            # The alarm judges the deadline; the response to a reward in time has its grace.
            timeout_s=rollout.deadline_at - rollout.created_at + RESPONSE_GRACE_S,
            group_id=rollout.group_id,
        )

    async def _dispatch(self, request: AgentRequest) -> Mapping[str, float]:
        """Hand the rollout to the agent; the metrics in its response."""
        metrics: Mapping[str, float] = {}
        async for outcome in self._sockets.runner.run([request]):
            metrics = outcome.metrics
            if metrics:
                await self._rollouts.add_metrics(request.rollout_id, metrics)
            if outcome.fault is not None:
                await self._rollouts.fail(request.rollout_id, outcome.fault)
        return metrics

    async def _alarm(self, rollout: Rollout) -> None:
        """At the deadline, close the rollout with what it was waiting for."""
        await self._clock.sleep(rollout.deadline_at - self._clock.now())
        record = await self._sockets.store.trajectory(rollout.account_id, rollout.rollout_id)
        await self._rollouts.fail(rollout.rollout_id, overdue(record))

    async def _last_words(self, dispatch: asyncio.Task[Mapping[str, float]]) -> Mapping[str, float]:
        grace = asyncio.ensure_future(self._clock.sleep(RESPONSE_GRACE_S))
        try:
            await asyncio.wait({dispatch, grace}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            grace.cancel()
        return dispatch.result() if dispatch.done() else {}

    # ── what is told ──────────────────────────────────────────────────────────────────────────

    async def _note_disturbance(self, attempts: list[Trajectory]) -> None:
        """Say once that a deterministic run cannot be compared with another any more."""
        is_disturbed = len(attempts) != 1 or _ran_out_of_time(attempts[0])
        if self._job.spec.deterministic and self._is_comparable and is_disturbed:
            self._is_comparable = False
            message = "a deadline or a retry happened: this run is not comparable to a repeat of it"
            body = {"message": message}
            await self._append(EventDraft(kind=EventKind.LOG, body=body, level=Level.WARNING))

    async def _append(self, draft: EventDraft) -> None:
        await self._sockets.store.append(self._job.account_id, self._job.job_id, [draft])


def new_secret() -> str:
    """A rollout's own key: 150 bits in letters, as it is part of a URL (see `ports.NewId`)."""
    return random_letters(32)


def is_worth_another(trajectory: Trajectory) -> bool:
    """Whether a slot's rollout failed in a way that a new attempt may not."""
    fault = trajectory.rollout.fault
    return not trajectory.rollout.is_scored and (fault is None or fault.retryable)


def overdue(trajectory: Trajectory) -> Fault:
    """What a rollout lacked at its deadline; the first two texts are those of the AWS service."""
    if trajectory.rollout.status is RolloutStatus.READY:
        return Fault(
            blame=Blame.REWARD,
            code="no_reward",
            message="The rollout completed but no reward was received in time",
        )
    if not trajectory.turns:
        return Fault(
            blame=Blame.AGENT,
            code="no_turns",
            message="No sampling requests were received for this rollout",
        )
    allowed_s = trajectory.rollout.deadline_at - trajectory.rollout.created_at
    return Fault(
        blame=Blame.AGENT, code="deadline", message=f"not completed within {allowed_s:g} s"
    )


def _ran_out_of_time(trajectory: Trajectory) -> bool:
    fault = trajectory.rollout.fault
    return fault is not None and fault.is_late


def _with_metrics(trajectory: Trajectory, metrics: Mapping[str, float]) -> Trajectory:
    rollout = trajectory.rollout
    merged = replace(rollout, metrics={**rollout.metrics, **metrics})
    return replace(trajectory, rollout=merged)


def _rollout_event(trajectory: Trajectory) -> EventDraft:
    rollout = trajectory.rollout
    body: dict[str, Any] = {
        "rollout_id": rollout.rollout_id,
        "group_id": rollout.group_id,
        "status": rollout.status.value,
        "turns": len(trajectory.delivered),
        "tokens": trajectory.sampled_tokens,
    }
    if rollout.reward is not None:
        body["reward"] = rollout.reward
    if rollout.fault is None:
        return EventDraft(kind=EventKind.ROLLOUT, body=body)
    fault = rollout.fault
    body["fault"] = {"blame": fault.blame.value, "code": fault.code, "message": fault.message}
    return EventDraft(kind=EventKind.ROLLOUT, body=body, level=Level.WARNING)
