"""Jobs and their events: functions on an open connection."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import fields, replace
from enum import StrEnum
from numbers import Integral
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Select,
    and_,
    bindparam,
    delete,
    func,
    or_,
    select,
    update,
)

from turnwise import errors
from turnwise.domain.event import Event, EventDraft, EventKind
from turnwise.domain.job import (
    Inputs,
    Job,
    JobKind,
    JobSpec,
    JobStatus,
    Secondary,
    check_move,
)
from turnwise.domain.resource import Resource
from turnwise.ports import JobQuery, JobSummary, ModelPackage
from turnwise.storage import resources as resources_of
from turnwise.storage import transcripts as transcripts_of
from turnwise.storage.rows import from_row, from_rows, select_nouns, to_row
from turnwise.storage.tables import (
    checkpoints,
    events,
    groups,
    jobs,
    nodes,
    packages,
    rollouts,
    steps,
    turns,
)

# Statements of every event's way, built once: building one costs more than running it.
_ITS = and_(jobs.c.job_id == bindparam("its_id"), jobs.c.account_id == bindparam("its_account"))
_LAST_EVENT = select(jobs.c.last_event).where(_ITS)
_HELD = _LAST_EVENT.with_for_update()
_LOCKED = select_nouns(Job, _ITS).with_for_update()
_APPEND = events.insert()
_COUNT = (
    update(jobs).where(jobs.c.job_id == bindparam("its_id")).values(last_event=bindparam("newest"))
)

# What a list shows of how a training job is doing.
_TRAINING_REWARD = "rollout/reward/mean"


def create(connection: Connection, job: Job, records: Sequence[Resource]) -> Job:
    """Insert a job; `Conflict` if its name is taken, or a model that it needs is gone.

    Its records replace what may be left of their names.
    """
    taken = select(jobs.c.job_id).where(
        jobs.c.account_id == job.account_id, or_(jobs.c.name == job.name, _is(job.job_id))
    )
    if connection.execute(taken).first() is not None:
        raise errors.Conflict(f"a job named {job.name!r} exists already; choose another name")
    for model in sorted(uses(job.parent, job.spec)):
        times = select(packages.c.pruned_at, packages.c.deleted_at).where(
            packages.c.account_id == job.account_id, named(model)
        )
        pruned, deleted = connection.execute(times).first() or (None, None)
        if pruned is not None or deleted is not None:
            how = "pruned" if deleted is None else "deleted"
            raise errors.Conflict(f"model {model!r} has just been {how}; choose another version")
    connection.execute(jobs.insert(), to_row(job, **_shown(job.spec)))
    for record in records:
        resources_of.forget(connection, record.account_id, record.kind, record.name)
        resources_of.create(connection, record)
    return job


def find(connection: Connection, account_id: str, id_or_name: str) -> Job:
    """By id, or else by name; `NotFound`."""
    query = select_nouns(
        Job, jobs.c.account_id == account_id, or_(_is(id_or_name), jobs.c.name == id_or_name)
    )
    found = from_rows(Job, connection.execute(query).all())
    if not found:
        raise errors.NotFound("job", id_or_name)
    return next((job for job in found if job.job_id == id_or_name), found[0])


def newest(
    connection: Connection, account_id: str | None, status: JobStatus | None, limit: int
) -> list[Job]:
    """Newest first."""
    query = select_nouns(Job).order_by(jobs.c.seq.desc()).limit(limit)
    if account_id is not None:
        query = query.where(jobs.c.account_id == account_id)
    if status is not None:
        query = query.where(jobs.c.status == status)
    return from_rows(Job, connection.execute(query).all())


_SUMMARY = [jobs.c[field.name] for field in fields(JobSummary)]


def page(connection: Connection, query: JobQuery) -> list[JobSummary]:
    """Newest first, without their specs. Found in an index: the page's rows alone are read."""
    columns = jobs.c
    wanted = select(columns.seq)
    if query.account_id is not None:
        wanted = wanted.where(columns.account_id == query.account_id)
        wanted = wanted.with_hint(jobs, "INDEXED BY ix_jobs_page", "sqlite")
    if query.statuses:
        wanted = wanted.where(columns.status.in_(query.statuses))
    if query.kind is not None:
        wanted = wanted.where(columns.kind == query.kind)
    if query.name:
        wanted = wanted.where(columns.name.icontains(query.name, autoescape=True))
    if query.job_ids is not None:
        wanted = wanted.where(columns.job_id.in_(query.job_ids))
    if query.after is not None:
        wanted = wanted.where(columns.seq < query.after)
    seqs = connection.execute(wanted.order_by(columns.seq.desc()).limit(query.limit)).scalars()
    rows = connection.execute(
        select(*_SUMMARY).where(columns.seq.in_(list(seqs))).order_by(columns.seq.desc())
    )
    return [JobSummary(**row._mapping) for row in rows]


def update_spec(connection: Connection, account_id: str, job_id: str, spec: JobSpec) -> None:
    """Replace the spec; `Conflict` once the job's loop has started."""
    job = lock(connection, account_id, job_id)
    if job.status is not JobStatus.PENDING or job.incarnation > 0:
        raise errors.Conflict(f"job {job.name!r} has started; its spec stays as it is")
    connection.execute(update(jobs).where(_is(job_id)).values(spec=spec, **_shown(spec)))


def _shown(spec: JobSpec) -> dict[str, Any]:
    """What a list of jobs shows of a spec, so that it need not be read."""
    return {
        "kind": spec.kind,
        "model": spec.model,
        "output_group": spec.adapters_in,
        "description": spec.description,
        "priority": spec.priority,
        "max_steps": spec.schedule.max_steps,
    }


def remove(
    connection: Connection, account_id: str, job_id: str, records: Collection[tuple[str, str]]
) -> None:
    """Delete a final job, its events, rollouts, checkpoints and records. Model packages stay."""
    job = lock(connection, account_id, job_id)
    if not job.status.is_final:
        raise errors.Conflict(f"job {job.name!r} is {job.status.value}; stop it first")
    transcripts_of.forget(connection, account_id, job_id)
    its_rollouts = select(rollouts.c.rollout_id).where(rollouts.c.job_id == job_id)
    for table in (nodes, turns):
        connection.execute(delete(table).where(table.c.rollout_id.in_(its_rollouts)))
    for table in (rollouts, groups, events, steps, checkpoints, jobs):
        connection.execute(delete(table).where(table.c.job_id == job_id))
    for kind, name in records:
        resources_of.forget(connection, account_id, kind, name)


def record_inputs(connection: Connection, account_id: str, job_id: str, inputs: Inputs) -> None:
    """Keep them unless an earlier start did."""
    lock(connection, account_id, job_id)
    first = update(jobs).where(_is(job_id), jobs.c.inputs.is_(None))
    connection.execute(first.values(inputs=inputs))


def start_incarnation(connection: Connection, account_id: str, job_id: str) -> int:
    """Count one more start."""
    number = lock(connection, account_id, job_id).incarnation + 1
    connection.execute(update(jobs).where(_is(job_id)).values(incarnation=number))
    return number


def append(
    connection: Connection,
    account_id: str,
    job_id: str,
    drafts: Sequence[EventDraft],
    now: float,
) -> list[Event]:
    """Number and keep events, and move the job by those of kind STATUS."""
    last = hold(connection, account_id, job_id)
    if moves := [draft for draft in drafts if draft.kind is EventKind.STATUS]:
        drafts = [*_move(connection, account_id, job_id, moves, now), *drafts]
    appended = [
        Event(seq=seq, job_id=job_id, at=now, kind=draft.kind, level=draft.level, body=draft.body)
        for seq, draft in enumerate(drafts, last + 1)
    ]
    if appended:
        rows = [to_row(event, account_id=account_id, **_named(event.body)) for event in appended]
        connection.execute(_APPEND, rows)
        connection.execute(_COUNT, {"its_id": job_id, "newest": last + len(appended)})
        _keep_reward(connection, job_id, appended)
    return appended


def _named(body: Mapping[str, Any]) -> dict[str, Any]:
    """What of an event's body the log is filtered by."""
    step, rollout_id = body.get("step"), body.get("rollout_id")
    return {
        "step": int(step) if isinstance(step, Integral) else None,
        "rollout_id": rollout_id if isinstance(rollout_id, str) else None,
    }


def _keep_reward(connection: Connection, job_id: str, appended: Sequence[Event]) -> None:
    """Remember the newest step's mean training reward."""
    told = [
        event.body["values"][_TRAINING_REWARD]
        for event in appended
        if event.kind is EventKind.METRICS and _TRAINING_REWARD in event.body.get("values", {})
    ]
    if told and told[-1] is not None:
        changed = update(jobs).where(_is(job_id)).values(latest_reward=float(told[-1]))
        connection.execute(changed)


def _move(
    connection: Connection, account_id: str, job_id: str, moves: Sequence[EventDraft], now: float
) -> list[EventDraft]:
    """Move a job; what is to be told before, where it ends: its newest adapter is its output."""
    before = after = lock(connection, account_id, job_id)
    for draft in moves:
        after = _moved(after, draft, now)
    told = []
    if after.status.is_final and after.status is not before.status:
        output = _newest_adapter(connection, before)
        if output and output != before.output:
            after = replace(after, output=output)
            told = [_promotion(after)]
    if changes := _changes(before, after):
        connection.execute(update(jobs).where(_is(job_id)).values(changes))
    return told


def read_events(
    connection: Connection,
    account_id: str,
    job_id: str,
    after: int,
    kinds: Sequence[str],
    limit: int,
) -> list[Event]:
    """Events with seq > after, in order."""
    last_event(connection, account_id, job_id)
    query = select_nouns(Event, events.c.job_id == job_id, events.c.seq > after)
    if kinds:
        query = query.where(events.c.kind.in_(kinds))
    query = query.order_by(events.c.seq).limit(limit)
    return from_rows(Event, connection.execute(query).all())


def last_event(connection: Connection, account_id: str, job_id: str) -> int:
    """The newest event's seq, 0 if there is none; `NotFound`."""
    return _one_number(connection, _LAST_EVENT, account_id, job_id)


def hold(connection: Connection, account_id: str, job_id: str) -> int:
    """Keep other writers off the job until the transaction ends; as `last_event`."""
    return _one_number(connection, _HELD, account_id, job_id)


def _one_number(connection: Connection, query: Select[int], account_id: str, job_id: str) -> int:
    given = {"its_id": job_id, "its_account": account_id}
    number = connection.execute(query, given).scalar_one_or_none()
    if number is None:
        raise errors.NotFound("job", job_id)
    return number


def lock(connection: Connection, account_id: str, job_id: str) -> Job:
    """The whole job, held like `hold`; `NotFound`."""
    row = connection.execute(_LOCKED, {"its_id": job_id, "its_account": account_id}).first()
    if row is None:
        raise errors.NotFound("job", job_id)
    return from_row(Job, row)


def _is(job_id: str) -> Any:
    return jobs.c.job_id == job_id


def uses(parent: str, spec: JobSpec) -> frozenset[str]:
    """The names of the packages that a job reads: what it starts from, and what it evaluates."""
    evaluated = spec.evaluation.models if spec.kind is JobKind.EVALUATION else ()
    return frozenset({parent, *evaluated} - {""})


def named(package: str) -> ColumnElement[bool]:
    """Whether a package has the name "group/version"."""
    group, _, version = package.rpartition("/")
    number = int(version) if version.isdecimal() else -1
    return and_(packages.c.group == group, packages.c.version == number)


def _newest_adapter(connection: Connection, job: Job) -> str:
    """The name of what the job's last finished step registered; empty where it finished none."""
    query = select(packages.c.group, packages.c.version).where(
        packages.c.job_id == job.job_id,
        packages.c.kind == "adapter",
        packages.c.step == job.step - 1,
        packages.c.deleted_at.is_(None),
    )
    row = connection.execute(query.order_by(packages.c.seq.desc()).limit(1)).first()
    return "" if row is None else f"{row.group}/{row.version}"


def newest_packages(connection: Connection, account_id: str, job_id: str) -> list[ModelPackage]:
    """The newest package of each kind that a job registered."""
    its = (packages.c.account_id == account_id, packages.c.job_id == job_id)
    kept = packages.c.deleted_at.is_(None)
    newest = select(func.max(packages.c.seq)).where(*its, kept).group_by(packages.c.kind)
    query = select_nouns(ModelPackage, packages.c.seq.in_(newest))
    return from_rows(ModelPackage, connection.execute(query).all())


def _promotion(job: Job) -> EventDraft:
    return EventDraft(kind=EventKind.PROMOTION, body={"step": job.step - 1, "model": job.output})


def _moved(job: Job, draft: EventDraft, now: float) -> Job:
    """The job after a STATUS event."""
    status = _member(JobStatus, draft, job.status)
    check_move(job.status, status)
    runs_first = status is JobStatus.RUNNING and job.started_at is None
    ends = status.is_final and status is not job.status
    return replace(
        job,
        status=status,
        secondary=_member(Secondary, draft, job.secondary),
        message=str(draft.body.get("message", "")),
        started_at=now if runs_first else job.started_at,
        ended_at=now if ends else job.ended_at if status.is_final else None,
    )


def _member(enum: type[StrEnum], draft: EventDraft, current: StrEnum) -> Any:
    """The member that the event's body names, `current` where it names none."""
    field = enum.__name__.removeprefix("Job").lower()
    try:
        return enum(draft.body.get(field, current))
    except ValueError:
        allowed = ", ".join(enum)
        raise errors.InvalidInput(
            field, draft.body[field], "is not one that a job can have", remedy=f"use {allowed}"
        ) from None


def _changes(before: Job, after: Job) -> dict[str, Any]:
    old = to_row(before)
    return {name: value for name, value in to_row(after).items() if value != old[name]}
