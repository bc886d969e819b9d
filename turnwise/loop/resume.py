"""Where an incarnation of a job begins: its checkpoint, and what is kept of the one before."""

from __future__ import annotations

from dataclasses import dataclass

from turnwise import errors
from turnwise.domain.event import EventDraft, EventKind, Level
from turnwise.domain.job import Job
from turnwise.domain.ledger import Bin
from turnwise.domain.rollout import Group, GroupStatus
from turnwise.domain.training import Checkpoint
from turnwise.loop.assemble import ClosedGroup, is_zero
from turnwise.loop.pace import Pace
from turnwise.loop.plan import Plan
from turnwise.loop.sockets import Sockets

#: `Checkpoint.step` of the state before any training.
BEFORE_TRAINING = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """The state an incarnation starts from; learner and sampler hold the checkpoint."""

    checkpoint: Checkpoint
    pace: Pace
    kept: tuple[ClosedGroup, ...]  # of the incarnation before, still young enough
    orders: tuple[int, ...]  # places in the plan to admit, in order
    superseded_tokens: int  # sampled for what was not kept; the first step's ledger has them


def checkpoint_key(job_id: str, step: int) -> str:
    """The blob folder of a checkpoint."""
    name = "initial" if step == BEFORE_TRAINING else f"step-{step:05d}"
    return f"jobs/{job_id}/checkpoints/{name}"


async def begin(job: Job, plan: Plan, sockets: Sockets) -> Start:
    """Start a new incarnation of a job: from the newest sound checkpoint, or from the beginning.

    Places whose groups were neither trained nor kept are planned again. Raises `Corrupted` when
    no checkpoint is sound.
    """
    store = sockets.store
    recorded = await store.checkpoints(job.account_id, job.job_id)
    checkpoint = await _restored(job, recorded, sockets) if recorded else await _first(job, sockets)
    await sockets.sampler.load(checkpoint.adapter.adapter_id, checkpoint.adapter.path)
    has_fallen_back = bool(recorded) and checkpoint is not recorded[-1]
    if has_fallen_back:
        await store.rewind(job.account_id, job.job_id, checkpoint.step)
    groups = await store.groups(job.account_id, job.job_id)
    # After a fall-back, closed groups may hold tokens of a policy that is not there any more.
    closed = {
        group.order: await _read(group, sockets)
        for group in groups
        if group.status is GroupStatus.CLOSED and not has_fallen_back
    }
    zero = {order for order, each in closed.items() if plan.refill and is_zero(job.spec, each)}
    trained = {group.order for group in groups if group.status is GroupStatus.TRAINED}
    pace = Pace(
        max_steps_off_policy=job.spec.async_config.max_steps_off_policy,
        batch=plan.batch,
        total=plan.total,
        step=checkpoint.step + 1,
        trained=len(trained),
        refill=plan.refill,
        steps=plan.num_steps,
    )
    kept = pace.resume({order: each.group.admitted_at_step for order, each in closed.items()}, zero)
    await _supersede(job, [closed[order].group for order in kept], sockets)
    return Start(
        checkpoint=checkpoint,
        pace=pace,
        kept=tuple(closed[order] for order in kept),
        orders=tuple(plan.orders(trained | set(kept))),
        superseded_tokens=await _superseded_tokens(job, pace.step, sockets),
    )


async def _first(job: Job, sockets: Sockets) -> Checkpoint:
    """Save the state before training, so that step 0 has an adapter and a way back."""
    folder = sockets.blobs.path(checkpoint_key(job.job_id, BEFORE_TRAINING))
    checkpoint = await sockets.learner.save(BEFORE_TRAINING, str(folder))
    await sockets.store.save_checkpoint(job.account_id, job.job_id, checkpoint)
    return checkpoint


async def _restored(job: Job, recorded: list[Checkpoint], sockets: Sockets) -> Checkpoint:
    """The newest checkpoint that the learner could restore."""
    for checkpoint in reversed(recorded):
        try:
            await sockets.learner.restore(checkpoint)
        except errors.Corrupted as error:
            message = f"the checkpoint of step {checkpoint.step} is damaged: {error}"
            await _log(job, message, sockets, Level.WARNING)
        else:
            return checkpoint
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


async def _read(group: Group, sockets: Sockets) -> ClosedGroup:
    attempts = await sockets.store.group_trajectories(group.account_id, group.group_id)
    return ClosedGroup(group=group, attempts=tuple(attempts))


async def _log(job: Job, message: str, sockets: Sockets, level: Level = Level.INFO) -> None:
    draft = EventDraft(kind=EventKind.LOG, body={"message": message}, level=level)
    await sockets.store.append(job.account_id, job.job_id, [draft])
