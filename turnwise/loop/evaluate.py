"""How good a policy is on given rows: every row attempted a number of times, nothing trained."""

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
from turnwise.modeling.fingerprint import fingerprint
from turnwise.rl.statistics import ledger_metrics, validation_metrics
from turnwise.rl.truncation import truncation_metrics

_PREFIX = {Purpose.VALIDATION: "val", Purpose.EVALUATION: "eval"}


async def evaluate(
    job: Job,
    rows: Sequence[Row],
    collector: Collector,
    sockets: Sockets,
    *,
    policy: Policy,
    purpose: Purpose,
    step: int = 0,
) -> dict[str, float]:
    """Attempt each row `validation.group_size` times under one policy; val/* or eval/* metrics.

    The policy is pinned, so training may go on meanwhile. The metrics are recorded as of `step`.
    """
    spec = job.spec.validation

    def assignment(row: Row) -> Assignment:
        return Assignment(
            group_id=sockets.new_id("group"),
            row=row,
            size=spec.group_size,
            step=step,
            purpose=purpose,
            sampling=job.spec.val_sampling_params,
            policy=policy,
        )

    started = sockets.clock.now()
    async with asyncio.TaskGroup() as tasks:
        collected = [
            tasks.create_task(collector.collect(assignment(row)), name=f"evaluate row {row.index}")
            for row in rows[: spec.max_rows or None]
        ]
    values = validation_metrics(
        [last_attempts(task.result()) for task in collected],
        spec.pass_k_values,
        spec.success_threshold,
        prefix=_PREFIX[purpose],
    )
    attempts = [trajectory for task in collected for trajectory in task.result()]
    values |= truncation_metrics(_PREFIX[purpose], attempts, job.spec.rollout)
    sampled = sum(trajectory.sampled_tokens for trajectory in attempts)
    values |= ledger_metrics({Bin.NOT_FOR_TRAINING: sampled})
    values["timing_s/eval"] = sockets.clock.now() - started
    await _record(job, purpose, step, values, sockets)
    return values


async def run_evaluation(job: Job, rows: Sequence[Row], sockets: Sockets) -> None:
    """An evaluation job from start to end: its model is the base, or `input_adapter` on it.

    After a crash it begins anew; what was attempted before is superseded.
    """
    adapter_id = await _load(job.spec.input_adapter, sockets)
    await sockets.store.supersede(job.account_id, job.job_id, job.incarnation)
    collector = Collector(job, sockets)
    try:
        await evaluate(
            job,
            rows,
            collector,
            sockets,
            policy=Policy(adapter_id=adapter_id),
            purpose=Purpose.EVALUATION,
        )
    finally:
        await collector.abandon()


def last_attempts(attempts: Sequence[Trajectory]) -> tuple[Trajectory, ...]:
    """The attempt of each slot that counts, by slot."""
    return tuple({each.rollout.slot: each for each in attempts}.values())


async def _load(folder: str, sockets: Sockets) -> str | None:
    """Have the sampler serve an adapter; its id. None for the base."""
    if not folder:
        return None
    adapter_id = await asyncio.to_thread(fingerprint, folder)
    await sockets.sampler.load(adapter_id, folder)
    return adapter_id


async def _record(
    job: Job, purpose: Purpose, step: int, values: dict[str, float], sockets: Sockets
) -> None:
    body = {"step": step, "values": values}
    await sockets.store.append(
        job.account_id,
        job.job_id,
        [
            EventDraft(kind=EventKind.METRICS, body=body),
            EventDraft(kind=EventKind.EVALUATION, body={**body, "purpose": purpose.value}),
        ],
    )
