"""How good the policy is during training: the validation rows, attempted under it as it stands."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from turnwise.domain.data import Row
from turnwise.domain.event import EventDraft, EventKind
from turnwise.domain.job import Job
from turnwise.domain.ledger import Bin
from turnwise.domain.rollout import Policy, Purpose, Trajectory
from turnwise.loop.collect import Assignment, Collector
from turnwise.loop.sockets import Sockets
from turnwise.rl.evaluation import AttemptedRow, labelled_validation_metrics
from turnwise.rl.statistics import ledger_metrics


async def validate(
    job: Job,
    rows: Sequence[Row],
    collector: Collector,
    sockets: Sockets,
    *,
    policy: Policy,
    step: int,
) -> dict[str, float]:
    """Attempt each row `validation.group_size` times under one policy; val/* metrics, by label too.

    The policy is pinned, so training may go on meanwhile. The metrics are recorded as of `step`.
    """
    spec = job.spec.validation

    async def attempt(row: Row) -> tuple[Trajectory, ...]:
        assignment = Assignment(
            group_id=sockets.new_id("group"),
            row=row,
            size=spec.group_size,
            step=step,
            purpose=Purpose.VALIDATION,
            sampling=job.spec.val_sampling_params,
            policy=policy,
        )
        return await collector.collect(assignment)

    started = sockets.clock.now()
    chosen = rows[: spec.max_rows or None]
    async with asyncio.TaskGroup() as tasks:
        collected = [
            tasks.create_task(attempt(row), name=f"validate row {row.index}") for row in chosen
        ]
    attempts = [task.result() for task in collected]
    values = labelled_validation_metrics(
        [
            AttemptedRow(row=row, slots=spec.group_size, attempts=each)
            for row, each in zip(chosen, attempts, strict=True)
        ],
        job.spec,
    )
    sampled = sum(trajectory.sampled_tokens for each in attempts for trajectory in each)
    values |= ledger_metrics({Bin.NOT_FOR_TRAINING: sampled})
    values["timing_s/eval"] = sockets.clock.now() - started
    await record(job, Purpose.VALIDATION, values, sockets, step=step)
    return values


async def validated_steps(job: Job, sockets: Sockets, *, newest: int) -> set[int]:
    """The steps up to `newest` whose policy an earlier start has validated.

    After a fall-back steps are trained again, and make other policies than those before.
    """
    kinds = [EventKind.STEP.value, EventKind.EVALUATION.value]
    found: set[int] = set()
    after = 0
    while page := await sockets.store.events(job.account_id, job.job_id, after=after, kinds=kinds):
        after = page[-1].seq
        for event in page:
            step = event.body["step"]
            if event.kind is EventKind.EVALUATION:
                found.add(step)
            else:
                found = {earlier for earlier in found if earlier <= step}
    return {step for step in found if step <= newest}


async def record(
    job: Job, purpose: Purpose, values: dict[str, float], sockets: Sockets, *, step: int
) -> None:
    """Put a validation's or evaluation's metrics into the job's log."""
    body = {"step": step, "values": values}
    drafts = [
        EventDraft(kind=EventKind.METRICS, body=body),
        EventDraft(kind=EventKind.EVALUATION, body={**body, "purpose": purpose.value}),
    ]
    await sockets.store.append(job.account_id, job.job_id, drafts)
