"""Which steps' files stay, by a job's `checkpoints` settings; the rest is removed after a step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from turnwise.domain.event import EventDraft, EventKind, Level
from turnwise.domain.job import CheckpointSpec, Job
from turnwise.domain.training import ADAPTER_FOLDER, META_FILE, STATE_FILE
from turnwise.loop.packages import checkpoint_blob, checkpoint_key
from turnwise.loop.sockets import Sockets
from turnwise.ports import Pruned

#: A job goes on from its newest checkpoint, or where that is damaged from the one before.
NEEDED = 2


def kept_steps(steps: Sequence[int], keep: CheckpointSpec) -> frozenset[int]:
    """The steps whose checkpoints stay. The state before training is that of step -1.

    >>> sorted(kept_steps(range(-1, 10), CheckpointSpec(keep_last=3, keep_every=5)))
    [4, 7, 8, 9]
    >>> sorted(kept_steps([-1, 0], CheckpointSpec(keep_last=1)))
    [-1, 0]
    """
    if not keep.keep_last:
        return frozenset(steps)
    newest = sorted(steps)[-max(keep.keep_last, NEEDED) :]
    every = keep.keep_every
    return frozenset(newest).union(
        step for step in steps if every and step >= 0 and (step + 1) % every == 0
    )


async def prune(job: Job, sockets: Sockets) -> None:
    """Remove the files that nothing needs any more. What cannot be removed is a warning.

    The store gives them up first: what it still lists is there.
    """
    spec = job.spec.checkpoints
    if not spec.keep_last:
        return
    recorded = await sockets.store.checkpoints(job.account_id, job.job_id)
    keep = kept_steps([checkpoint.step for checkpoint in recorded], spec)
    pruned = await sockets.store.prune(
        job.account_id, job.job_id, keep, adapters=spec.prune_adapters
    )
    await _remove_all(job, pruned, sockets)


async def sweep(job: Job, step: int, sockets: Sockets) -> None:
    """Remove what a killed incarnation left: pruned files, and a checkpoint that never counted.

    `step` is the one to be trained next.
    """
    registered = await sockets.store.packages(job.account_id, group=job.spec.checkpoints_in)
    adapters = await sockets.store.packages(job.account_id, group=job.spec.adapters_in)
    named = {package.path for package in registered}
    gone = {package.path for package in adapters if package.pruned_at is not None}
    left = [
        Pruned(path=package.path, with_adapter=f"{package.path}/{ADAPTER_FOLDER}" in gone)
        for package in registered
        if package.job_id == job.job_id and package.pruned_at is not None
    ]
    for incarnation in range(1, job.incarnation):
        folder = sockets.blobs.path(checkpoint_key(replace(job, incarnation=incarnation), step))
        if str(folder) not in named:
            left.append(Pruned(path=str(folder), with_adapter=True))
    await _remove_all(job, left, sockets)


async def _remove_all(job: Job, pruned: Sequence[Pruned], sockets: Sockets) -> None:
    for each in pruned:
        try:
            await _remove(job, each, sockets)
        except OSError as error:
            message = f"the pruned checkpoint {each.path} cannot be removed: {error.strerror}"
            draft = EventDraft(kind=EventKind.LOG, body={"message": message}, level=Level.WARNING)
            await sockets.store.append(job.account_id, job.job_id, [draft])


async def _remove(job: Job, pruned: Pruned, sockets: Sockets) -> None:
    folder = checkpoint_blob(job, Path(pruned.path).name)
    parts = [folder]
    if not pruned.with_adapter:
        parts = [f"{folder}/{STATE_FILE}", f"{folder}/{META_FILE}"]
    for part in parts:
        await sockets.blobs.delete(part)
