"""Where an incarnation of a job begins: its checkpoint, and what is kept of the one before."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from turnwise import errors
from turnwise.domain.event import EventDraft, EventKind, Level
from turnwise.domain.job import Job
from turnwise.domain.ledger import Bin
from turnwise.domain.rollout import Group, GroupStatus
from turnwise.domain.training import NOTHING_TRAINED, Checkpoint, DataPosition
from turnwise.loop.assemble import ClosedGroup, is_zero
from turnwise.loop.early_stop import Tally
from turnwise.loop.pace import Pace
from turnwise.loop.packages import BEFORE_TRAINING, checkpoint_key, checkpoint_of
from turnwise.loop.plan import Plan
from turnwise.loop.prune import sweep
from turnwise.loop.sockets import Sockets


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """The state an incarnation starts from; learner and sampler hold the checkpoint."""

    checkpoint: Checkpoint
    pace: Pace
    kept: tuple[ClosedGroup, ...]  # of the incarnation before, still young enough
    orders: tuple[int, ...]  # places in the plan to admit, in order
    trained: frozenset[int]  # places in the plan that finished steps took
    superseded_tokens: int  # sampled for what was not kept; the first step's ledger has them
    tallies: tuple[Tally, ...] = ()  # of the job's own finished steps


async def begin(job: Job, plan: Plan, sockets: Sockets) -> Start:
    """Start a new incarnation of a job: from the newest sound checkpoint, or from the beginning.

    The beginning is the base model, an adapter, or the checkpoint of another job. Places whose
    groups were neither trained nor kept are planned again. Raises `Corrupted` when no checkpoint
    is sound.
    """
    store = sockets.store
    recorded = await store.checkpoints(job.account_id, job.job_id)
    restore = _restored(job, recorded, sockets) if recorded else _first(job, sockets)
    checkpoint, position = await restore
    await sockets.sampler.load(checkpoint.adapter.adapter_id, checkpoint.adapter.path)
    if recorded and checkpoint is not recorded[-1]:
        await store.rewind(job.account_id, job.job_id, checkpoint.step)
    groups = await store.groups(job.account_id, job.job_id)
    closed = {
        group.order: await _read(group, sockets)
        for group in groups
        if group.status is GroupStatus.CLOSED
    }
    zero = {order for order, each in closed.items() if plan.refill and is_zero(job.spec, each)}
    # The job's own groups, for checkpoints that were saved before they held their data position.
    trained = {group.order for group in groups if group.status is GroupStatus.TRAINED}
    trained |= position.trained
    pace = Pace(
        max_steps_off_policy=job.spec.async_config.max_steps_off_policy,
        batch=plan.batch,
        total=plan.total,
        step=checkpoint.step + 1,
        trained=len(trained),
        refill=plan.refill,
        steps=plan.steps_in_all(checkpoint.step + 1, len(trained)),
    )
    kept = pace.resume({order: each.group.admitted_at_step for order, each in closed.items()}, zero)
    await sweep(job, pace.step, sockets)
    await _supersede(job, [closed[order].group for order in kept], sockets)
    return Start(
        checkpoint=checkpoint,
        pace=pace,
        kept=tuple(closed[order] for order in kept),
        orders=tuple(plan.orders(trained | set(kept))),
        trained=frozenset(trained),
        superseded_tokens=await _superseded_tokens(job, pace.step, sockets),
        tallies=await _tallies(job, pace.step, sockets),
    )


async def _first(job: Job, sockets: Sockets) -> tuple[Checkpoint, DataPosition]:
    """Save the state to begin with, so that the first step has an adapter and a way back.

    A job that continues another's checkpoint gets a copy of its own, and needs that one no more.
    """
    step, position = BEFORE_TRAINING, NOTHING_TRAINED
    if job.spec.resume_from:
        package = await sockets.store.package(job.account_id, job.spec.resume_from)
        checkpoint = await asyncio.to_thread(checkpoint_of, package)  # it reads the whole adapter
        step, position = package.step, await sockets.learner.restore(checkpoint)
    folder = sockets.blobs.path(checkpoint_key(job, step))
    checkpoint = await sockets.learner.save(step, str(folder), position)
    await sockets.store.save_checkpoint(job.account_id, job.job_id, checkpoint)
    return checkpoint, position


async def _restored(
    job: Job, recorded: list[Checkpoint], sockets: Sockets
) -> tuple[Checkpoint, DataPosition]:
    """The newest checkpoint that the learner could restore; each damaged one is a warning."""
    damaged: list[str] = []
    for checkpoint in reversed(recorded):
        try:
            position = await sockets.learner.restore(checkpoint)
        except errors.Corrupted as error:
            damaged.append(f"the checkpoint of step {checkpoint.step} is damaged: {error}")
        else:
            for message in damaged:
                used = f"{message}; continuing from that of step {checkpoint.step} instead"
                await _log(job, used, sockets, Level.WARNING)
            return checkpoint, position
    for message in damaged:
        await _log(job, message, sockets, Level.WARNING)
    raise errors.Corrupted(f"no checkpoint of job {job.name!r} is sound; start a new job")


async def _supersede(job: Job, kept: list[Group], sockets: Sockets) -> None:
    if job.incarnation == 1:
        return
    closed = await sockets.store.supersede(
        job.account_id, job.job_id, job.incarnation, keep=[group.group_id for group in kept]
    )
    message = (
        f"incarnation {job.incarnation}: kept {len(kept)} closed groups, "
        f"closed {closed} open rollouts as superseded"
    )
    await _log(job, message, sockets)


async def _superseded_tokens(job: Job, step: int, sockets: Sockets) -> int:
    """Tokens that the store already counts for `step`, which is still to be trained."""
    bins = await sockets.store.ledger(job.account_id, job.job_id)
    return bins.get(step, {}).get(Bin.DROPPED_SUPERSEDED.value, 0)


async def _tallies(job: Job, before: int, sockets: Sockets) -> tuple[Tally, ...]:
    """What the steps before `before` were like; of one that was made again, as it was at last."""
    steps: dict[int, Sequence[Mapping[str, Any]]] = {}
    after = 0
    while page := await sockets.store.events(
        job.account_id, job.job_id, after=after, kinds=[EventKind.STEP.value]
    ):
        steps |= {event.body["step"]: event.body.get("tallies", ()) for event in page}
        after = page[-1].seq
    its = [tallies for step, tallies in steps.items() if step < before]
    return tuple(Tally.from_body(body) for tallies in its for body in tallies)


async def _read(group: Group, sockets: Sockets) -> ClosedGroup:
    attempts = await sockets.store.group_trajectories(group.account_id, group.group_id)
    return ClosedGroup(group=group, attempts=tuple(attempts))


async def _log(job: Job, message: str, sockets: Sockets, level: Level = Level.INFO) -> None:
    draft = EventDraft(kind=EventKind.LOG, body={"message": message}, level=level)
    await sockets.store.append(job.account_id, job.job_id, [draft])
