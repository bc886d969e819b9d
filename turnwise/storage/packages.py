"""Model packages: functions on an open connection.

A deleted package is a row with `deleted_at`, which nothing lists or finds: its number is never
given again, so that a name means one model for good.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import replace

from sqlalchemy import ColumnElement, Connection, delete, func, select, update

from turnwise import errors
from turnwise.domain.job import Job, JobStatus
from turnwise.domain.training import ADAPTER_FOLDER, META_FILE, STATE_FILE
from turnwise.ports import ModelPackage
from turnwise.storage import jobs as jobs_of
from turnwise.storage.rows import from_rows, select_nouns, to_row
from turnwise.storage.tables import checkpoints, jobs, packages

KEPT = packages.c.deleted_at.is_(None)


def listed(connection: Connection, account_id: str, group: str | None) -> list[ModelPackage]:
    """Oldest first."""
    query = select_nouns(ModelPackage, packages.c.account_id == account_id, KEPT)
    if group is not None:
        query = query.where(packages.c.group == group)
    return from_rows(ModelPackage, connection.execute(query.order_by(packages.c.seq)).all())


def find(connection: Connection, account_id: str, id_or_name: str) -> ModelPackage:
    """By package id, "group/version", or "group" for the newest version; `NotFound`."""
    group, _, version = id_or_name.rpartition("/")
    matches = [packages.c.package_id == id_or_name, packages.c.group == id_or_name]
    if group and re.fullmatch("[0-9]{1,9}", version):
        matches.append((packages.c.group == group) & (packages.c.version == int(version)))
    for match in matches:
        query = select_nouns(ModelPackage, packages.c.account_id == account_id, KEPT, match)
        rows = connection.execute(query.order_by(packages.c.version.desc()).limit(1)).all()
        if rows:
            return from_rows(ModelPackage, rows)[0]
    raise errors.NotFound("model package", id_or_name)


def next_version(connection: Connection, account_id: str, groups: Collection[str]) -> int:
    """The lowest number that none of these groups has had yet, nor any above it."""
    newest = select(func.max(packages.c.version)).where(
        packages.c.account_id == account_id, packages.c.group.in_(groups)
    )
    return int(connection.execute(newest).scalar() or 0) + 1


def register(connection: Connection, made: Sequence[ModelPackage]) -> list[ModelPackage]:
    """Insert packages that belong together, as they are kept.

    Where a number is taken, by another job of the same group, all get the next that is free;
    `Conflict` for two of one name.
    """
    if any(_is_taken(connection, package) for package in made):
        groups = {package.group for package in made}
        free = next_version(connection, made[0].account_id, groups)
        made = [replace(package, version=free) for package in made]
    for package in made:
        if _is_taken(connection, package):
            raise errors.Conflict(f"model package {package.name} exists already")
        connection.execute(packages.insert(), to_row(package))
    return list(made)


def remove(
    connection: Connection, account_id: str, id_or_name: str, now: float
) -> tuple[ModelPackage, list[str]]:
    """Delete one; the package, and the paths that nothing names any more.

    `Conflict` while a job that has not ended makes it, starts from it or evaluates it. A checkpoint
    that a stopped or failed job would go on from keeps its files.
    """
    package = find(connection, account_id, id_or_name)
    _check_idle(connection, package)
    its = packages.c.package_id == package.package_id
    connection.execute(update(packages).where(its).values(deleted_at=now))
    if package.pruned_at is not None:
        return package, []
    if package.kind == "checkpoint":
        _forget_checkpoint(connection, package)
    return package, _left_over(connection, package)


def _is_taken(connection: Connection, package: ModelPackage) -> bool:
    its = (
        packages.c.account_id == package.account_id,
        packages.c.group == package.group,
        packages.c.version == package.version,
    )
    return connection.execute(select(packages.c.seq).where(*its)).first() is not None


def _check_idle(connection: Connection, package: ModelPackage) -> None:
    under_way = select_nouns(
        Job,
        jobs.c.account_id == package.account_id,
        jobs.c.status.not_in([status for status in JobStatus if status.is_final]),
    )
    for job in from_rows(Job, connection.execute(under_way).all()):
        reads = jobs_of.uses(job.parent, job.spec) | {job.spec.input_adapter}
        if job.job_id == package.job_id or {package.name, package.path} & reads:
            raise errors.Conflict(
                f"model {package.name} is needed by job {job.name!r}, which has not ended; "
                "delete it when it has, or stop the job"
            )


def _forget_checkpoint(connection: Connection, package: ModelPackage) -> None:
    """Take it from its job's checkpoints, unless the job may yet go on from it."""
    its = [checkpoints.c.job_id == package.job_id, checkpoints.c.path == package.path]
    newest = select(func.max(checkpoints.c.step)).where(checkpoints.c.job_id == package.job_id)
    ended = select(jobs.c.status).where(jobs.c.job_id == package.job_id)
    if connection.execute(ended).scalar() is not JobStatus.COMPLETED:
        its.append(checkpoints.c.step < newest.scalar_subquery())
    connection.execute(delete(checkpoints).where(*its))


def _left_over(connection: Connection, package: ModelPackage) -> list[str]:
    """What to remove: the checkpoint's folder, or the part of it that nothing else is of."""
    if not package.path.endswith(f"/{ADAPTER_FOLDER}") and package.kind == "adapter":
        return [] if _is_named(connection, package.path) else [package.path]
    folder = package.path.removesuffix(f"/{ADAPTER_FOLDER}")
    if _is_named(connection, folder):
        return []
    if _is_named(connection, f"{folder}/{ADAPTER_FOLDER}"):
        return [f"{folder}/{STATE_FILE}", f"{folder}/{META_FILE}"]
    return [folder]


def _is_named(connection: Connection, path: str) -> bool:
    """Whether a package that is kept, or a checkpoint, is at this path."""
    where: tuple[ColumnElement[bool], ...] = (packages.c.pruned_at.is_(None), KEPT)
    queries = (
        select(packages.c.seq).where(packages.c.path == path, *where),
        select(checkpoints.c.step).where(checkpoints.c.path == path),
    )
    return any(connection.execute(query.limit(1)).first() is not None for query in queries)
