"""Finished steps, checkpoints, their pruning and the ledger: functions on an open connection."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping

from sqlalchemy import Connection, delete, func, or_, select, update

from turnwise import errors
from turnwise.domain.event import Event
from turnwise.domain.job import Job, JobStatus
from turnwise.domain.ledger import Bin, TokenUsage
from turnwise.domain.rollout import GroupStatus, Policy, Purpose
from turnwise.domain.training import ADAPTER_FOLDER, Checkpoint
from turnwise.ports import FinishedStep, Pruned
from turnwise.storage import jobs as jobs_of
from turnwise.storage import packages as packages_of
from turnwise.storage.rollouts import OPEN, UNTRAINED
from turnwise.storage.rows import from_rows, select_nouns, to_row
from turnwise.storage.tables import checkpoints, groups, jobs, packages, rollouts, steps, turns

_FINAL = [status for status in JobStatus if status.is_final]


def finish(
    connection: Connection, account_id: str, job_id: str, done: FinishedStep, now: float
) -> list[Event]:
    """Keep all of a step; `Conflict` if the step or one of its groups was counted before."""
    job = jobs_of.lock(connection, account_id, job_id)
    if job.step != done.step:
        raise errors.Conflict(
            f"job {job.name!r} has finished {job.step} steps; step {done.step} is not the next"
        )
    _train_groups(connection, job_id, done)
    _keep_bins(connection, job_id, done.step, done.bins)
    connection.execute(
        steps.insert(),
        {
            "job_id": job_id,
            "step": done.step,
            "account_id": account_id,
            "policy": done.policy,
            "finished_at": now,
        },
    )
    if done.checkpoint is not None:
        save_checkpoint(connection, account_id, job_id, done.checkpoint)
    packages_of.register(connection, done.packages)
    connection.execute(update(jobs).where(jobs.c.job_id == job_id).values(step=done.step + 1))
    return jobs_of.append(connection, account_id, job_id, done.events, now)


def rewind(connection: Connection, account_id: str, job_id: str, step: int) -> None:
    """Take back the steps after `step`; their groups are superseded, their tokens uncounted.

    So are groups that no step took: their tokens may be of a policy that is not there any more.
    """
    jobs_of.lock(connection, account_id, job_id)
    connection.execute(
        update(rollouts)
        .where(rollouts.c.job_id == job_id, rollouts.c.ledger_step > step)
        .values(bins=None, ledger_step=None)
    )
    connection.execute(
        update(groups)
        .where(
            groups.c.job_id == job_id,
            or_(groups.c.step > step, groups.c.status.in_(UNTRAINED)),
        )
        .values(status=GroupStatus.SUPERSEDED, step=None)
    )
    for table in (steps, checkpoints):
        connection.execute(delete(table).where(table.c.job_id == job_id, table.c.step > step))
    connection.execute(update(jobs).where(jobs.c.job_id == job_id).values(step=step + 1))


def newest_policy(connection: Connection, account_id: str, job_id: str) -> Policy | None:
    """What the newest finished step published; None before the first."""
    query = select(steps.c.policy).where(steps.c.account_id == account_id, steps.c.job_id == job_id)
    policy: Policy | None = connection.execute(query.order_by(steps.c.step.desc())).scalar()
    return policy


def save_checkpoint(
    connection: Connection, account_id: str, job_id: str, checkpoint: Checkpoint
) -> None:
    """Record a checkpoint, in place of an earlier one of the same step."""
    jobs_of.lock(connection, account_id, job_id)
    connection.execute(
        delete(checkpoints).where(
            checkpoints.c.job_id == job_id, checkpoints.c.step == checkpoint.step
        )
    )
    connection.execute(
        checkpoints.insert(), to_row(checkpoint, account_id=account_id, job_id=job_id)
    )


def list_checkpoints(connection: Connection, account_id: str, job_id: str) -> list[Checkpoint]:
    """Oldest first."""
    query = select_nouns(
        Checkpoint, checkpoints.c.account_id == account_id, checkpoints.c.job_id == job_id
    )
    return from_rows(Checkpoint, connection.execute(query.order_by(checkpoints.c.step)).all())


def prune(
    connection: Connection,
    account_id: str,
    job_id: str,
    keep: Collection[int],
    *,
    adapters: bool,
    now: float,
) -> list[Pruned]:
    """Forget the checkpoints of all steps but `keep`, and mark their packages; what to remove.

    A registered folder that no checkpoint names any more, after a fall-back, goes too.
    """
    jobs_of.lock(connection, account_id, job_id)
    recorded = list_checkpoints(connection, account_id, job_id)
    its = (packages.c.job_id == job_id, packages.c.pruned_at.is_(None), packages_of.KEPT)
    columns = (packages.c.kind, packages.c.path, packages.c.group, packages.c.version)
    needed = _needed(connection, account_id)
    registered = {
        (row.kind, row.path): f"{row.group}/{row.version}" in needed
        for row in connection.execute(select(*columns).where(*its))
    }
    paths = {checkpoint.path for checkpoint in recorded}
    paths |= {path for kind, path in registered if kind == "checkpoint"}
    paths -= {checkpoint.path for checkpoint in recorded if checkpoint.step in keep}
    pruned = []
    for path in sorted(path for path in paths if not registered.get(("checkpoint", path))):
        adapter = f"{path}/{ADAPTER_FOLDER}"
        is_needed = registered.get(("adapter", adapter))
        goes = is_needed is None or (adapters and not is_needed)
        pruned.append(Pruned(path=path, with_adapter=goes))
        gone = [path, adapter] if goes else [path]
        connection.execute(
            update(packages).where(*its, packages.c.path.in_(gone)).values(pruned_at=now)
        )
        connection.execute(
            delete(checkpoints).where(checkpoints.c.job_id == job_id, checkpoints.c.path == path)
        )
    return pruned


def _needed(connection: Connection, account_id: str) -> set[str]:
    """The packages that the account's jobs started from, or that one is yet to evaluate."""
    its = jobs.c.account_id == account_id
    parents = select(jobs.c.parent).where(its, jobs.c.parent != "")
    found = set(connection.execute(parents).scalars())
    under_way = select(jobs.c.parent, jobs.c.spec).where(its, jobs.c.status.not_in(_FINAL))
    return found.union(*(jobs_of.uses(*row) for row in connection.execute(under_way)))


def ledger(connection: Connection, account_id: str, job_id: str) -> dict[int, dict[str, int]]:
    """Tokens per bin per step; what was sampled for no training counts once it has closed.

    The bins of a job that has ended hold all that it sampled: see `_unfinished`.
    """
    job = jobs_of.find(connection, account_id, job_id)
    totals: dict[int, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    counted = select(rollouts.c.ledger_step, rollouts.c.bins).where(
        rollouts.c.job_id == job.job_id, rollouts.c.ledger_step.is_not(None)
    )
    for step, bins in connection.execute(counted):
        for name, tokens in bins.items():
            totals[step][name] += tokens
    for step, tokens in _measured(connection, job):
        totals[step][Bin.NOT_FOR_TRAINING.value] += tokens
    if job.status.is_final and (tokens := _unfinished(connection, job)):
        totals[job.step][Bin.DROPPED_UNFINISHED.value] += tokens
    return {step: dict(totals[step]) for step in sorted(totals)}


def _measured(connection: Connection, job: Job) -> list[tuple[int, int]]:
    """Steps and the tokens of their validations, or of the evaluation."""
    query = select(rollouts.c.step, func.sum(rollouts.c.tokens)).where(
        rollouts.c.job_id == job.job_id, rollouts.c.purpose != Purpose.TRAIN
    )
    if not job.status.is_final:
        query = query.where(rollouts.c.status.not_in(OPEN))
    return [(step, int(n)) for step, n in connection.execute(query.group_by(rollouts.c.step))]


def _unfinished(connection: Connection, job: Job) -> int:
    """Training tokens that no step took. Computed, not written: a resume may still train them."""
    query = select(func.sum(rollouts.c.tokens)).where(
        rollouts.c.job_id == job.job_id,
        rollouts.c.purpose == Purpose.TRAIN,
        rollouts.c.bins.is_(None),
    )
    return int(connection.execute(query).scalar() or 0)


def usage(connection: Connection, account_id: str, job_id: str) -> TokenUsage:
    """What the job cost so far: prompts and samples from its turns, training from its ledger."""
    job = jobs_of.find(connection, account_id, job_id)
    amounts = (
        turns.c.prompt_tokens,
        turns.c.cached_tokens,
        turns.c.completion_tokens + turns.c.past_stop_tokens,
    )
    query = select(*(func.coalesce(func.sum(amount), 0) for amount in amounts)).join_from(
        rollouts, turns, turns.c.rollout_id == rollouts.c.rollout_id
    )
    its = query.where(rollouts.c.job_id == job.job_id)
    prefill, cached, sample = map(int, connection.execute(its).one())
    bins = ledger(connection, account_id, job_id).values()
    train = sum(counts.get(Bin.TRAINED.value, 0) for counts in bins)
    return TokenUsage(train=train, prefill=prefill, cached=cached, sample=sample)


def _train_groups(connection: Connection, job_id: str, done: FinishedStep) -> None:
    its = (groups.c.job_id == job_id, groups.c.group_id.in_(done.groups))
    query = select(groups.c.group_id, groups.c.status).where(*its)
    status = {row.group_id: row.status for row in connection.execute(query)}
    for group_id in done.groups:
        if group_id not in status:
            raise errors.NotFound("group", group_id)
        if status[group_id] is not GroupStatus.CLOSED:
            raise errors.Conflict(
                f"group {group_id!r} is {status[group_id].value}; a step takes closed ones"
            )
    connection.execute(
        update(groups).where(*its).values(status=GroupStatus.TRAINED, step=done.step)
    )


def _keep_bins(
    connection: Connection, job_id: str, step: int, bins: Mapping[str, Mapping[str, int]]
) -> None:
    for rollout_id, counts in bins.items():
        kept = connection.execute(
            update(rollouts)
            .where(
                rollouts.c.rollout_id == rollout_id,
                rollouts.c.job_id == job_id,
                rollouts.c.bins.is_(None),
            )
            .values(bins=dict(counts), ledger_step=step)
        ).rowcount
        if kept != 1:
            raise errors.Conflict(
                f"rollout {rollout_id!r} is not of this job, or was counted before"
            )
