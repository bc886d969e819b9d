"""Which steps' files stay, by a job's `checkpoints` settings; the rest is removed after a step."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from turnwise.domain.event import EventDraft, EventKind, Level
from turnwise.domain.job import CheckpointSpec, Job
from turnwise.domain.training import META_FILE, STATE_FILE
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
    for each in pruned:
        try:
            await _remove(job, each, sockets)
        except OSError as error:
            message = f"the pruned checkpoint {each.path} cannot be removed: {error.strerror}"
            draft = EventDraft(kind=EventKind.LOG, body={"message": message}, level=Level.WARNING)
            await sockets.store.append(job.account_id, job.job_id, [draft])


async def _remove(job: Job, pruned: Pruned, sockets: Sockets) -> None:
    folder = f"jobs/{job.job_id}/checkpoints/{Path(pruned.path).name}"
    parts = [folder]
    if not pruned.with_adapter:
        parts = [f"{folder}/{STATE_FILE}", f"{folder}/{META_FILE}"]
    for part in parts:
        await sockets.blobs.delete(part)
