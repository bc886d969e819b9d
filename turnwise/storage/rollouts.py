"""Groups and rollouts: functions on an open connection."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from sqlalchemy import Connection, Dialect, and_, bindparam, select, update

from turnwise import errors
from turnwise.domain.ledger import Bin
from turnwise.domain.rollout import (
    Blame,
    Fault,
    Group,
    GroupStatus,
    Purpose,
    Rollout,
    RolloutStatus,
)
from turnwise.storage import jobs as jobs_of
from turnwise.storage.rows import from_row, from_rows, select_nouns, to_row
from turnwise.storage.tables import groups, rollouts, to_json

OPEN = (RolloutStatus.PENDING, RolloutStatus.READY)
UNTRAINED = (GroupStatus.OPEN, GroupStatus.CLOSED)

# Statements of every rollout's way, built once: building one costs more than running it.
_BY_ID = select_nouns(Rollout, rollouts.c.rollout_id == bindparam("its_id"))
_LOCKED_BY_ID = _BY_ID.with_for_update()
_OPEN = rollouts.insert()


def open_group(connection: Connection, group: Group) -> None:
    """Insert a group; `NotFound` without its job."""
    jobs_of.hold(connection, group.account_id, group.job_id)
    connection.execute(groups.insert(), to_row(group))


def close_group(connection: Connection, account_id: str, group_id: str) -> None:
    """OPEN -> CLOSED; else `Conflict`."""
    its = and_(groups.c.group_id == group_id, groups.c.account_id == account_id)
    closed = update(groups).where(its, groups.c.status == GroupStatus.OPEN)
    if connection.execute(closed.values(status=GroupStatus.CLOSED)).rowcount == 1:
        return
    status = connection.execute(select(groups.c.status).where(its)).scalar_one_or_none()
    if status is None:
        raise errors.NotFound("group", group_id)
    raise errors.Conflict(f"group {group_id!r} is {status.value}; only an open one can close")


def list_groups(
    connection: Connection,
    account_id: str,
    job_id: str,
    status: str | None,
    step: int | None,
    group_id: str | None,
) -> list[Group]:
    """In order of admission."""
    query = select_nouns(Group, groups.c.account_id == account_id, groups.c.job_id == job_id)
    wanted = {groups.c.status: status, groups.c.step: step, groups.c.group_id: group_id}
    query = query.where(*(column == its for column, its in wanted.items() if its is not None))
    return from_rows(Group, connection.execute(query.order_by(groups.c.seq)).all())


def open_all(connection: Connection, opened: Sequence[Rollout]) -> None:
    """Insert rollouts; `NotFound` without their job."""
    for account_id, job_id in {(rollout.account_id, rollout.job_id) for rollout in opened}:
        jobs_of.hold(connection, account_id, job_id)
    if opened:
        connection.execute(_OPEN, [to_row(each, **_shown(each)) for each in opened])


def _shown(rollout: Rollout) -> dict[str, Any]:
    """What pages are filtered and ordered by, beside the noun's own fields."""
    ended_at = rollout.ended_at
    return {
        "reward": rollout.reward,
        "fault_code": None if rollout.fault is None else rollout.fault.code,
        "duration": None if ended_at is None else ended_at - rollout.created_at,
    }


def find(connection: Connection, rollout_id: str, account_id: str | None) -> Rollout:
    """`NotFound`. Account None: whichever has it."""
    return _find(connection, rollout_id, account_id, lock=False)


#: How the values of a move are stored; numbers are as they are.
_STORED: Mapping[str, Callable[[Any], Any]] = {
    "status": lambda status: status.value,
    "rewards": to_json,
    "metrics": to_json,
    "fault": to_json,
}


class MoveRollout:
    """Compare-and-set of a rollout. Values go to the driver as they are, as in `CommitTurn`."""

    def __init__(self, dialect: Dialect) -> None:
        self._dialect = dialect
        self._changing: dict[tuple[str, ...], str] = {}

    def __call__(
        self,
        connection: Connection,
        account_id: str,
        rollout_id: str,
        expected: Sequence[RolloutStatus],
        given: Mapping[str, Any],
    ) -> Rollout:
        """Keep the given values; metrics are added to those that are there. `Conflict`."""
        rollout = _find(connection, rollout_id, account_id, lock=True)
        if rollout.status not in expected:
            wanted = " or ".join(status.value for status in expected)
            raise errors.Conflict(f"rollout {rollout_id!r} is {rollout.status.value}, not {wanted}")
        changes = {name: value for name, value in given.items() if value is not None}
        if "metrics" in changes:
            changes["metrics"] = {**rollout.metrics, **changes["metrics"]}
        moved = replace(rollout, **changes)
        values = {name: _STORED.get(name, _as_it_is)(value) for name, value in changes.items()}
        if changes.keys() & {"rewards", "fault", "ended_at"}:
            values |= _shown(moved)
        connection.exec_driver_sql(self._statement(*values), {"its_id": rollout_id} | values)
        return moved

    def _statement(self, *names: str) -> str:
        """The statement that gives a rollout new values in these columns."""
        if names not in self._changing:
            changed = update(rollouts).where(rollouts.c.rollout_id == bindparam("its_id"))
            changed = changed.values({name: bindparam(name) for name in names})
            self._changing[names] = str(changed.compile(dialect=self._dialect))
        return self._changing[names]


def _as_it_is(value: Any) -> Any:
    return value


def supersede(
    connection: Connection,
    account_id: str,
    job_id: str,
    incarnation: int,
    keep: Sequence[str],
    now: float,
) -> int:
    """Close what earlier incarnations left; how many rollouts that were."""
    job = jobs_of.lock(connection, account_id, job_id)
    connection.execute(
        update(groups)
        .where(
            groups.c.job_id == job_id,
            groups.c.incarnation < incarnation,
            groups.c.status.in_(UNTRAINED),
            groups.c.group_id.not_in(keep),
        )
        .values(status=GroupStatus.SUPERSEDED)
    )
    fault = _superseded(incarnation)
    closed = connection.execute(
        update(rollouts)
        .where(
            rollouts.c.job_id == job_id,
            rollouts.c.incarnation < incarnation,
            rollouts.c.status.in_(OPEN),
            rollouts.c.group_id.not_in(keep),
        )
        .values(
            status=RolloutStatus.FAILED,
            fault=fault,
            fault_code=fault.code,
            ended_at=now,
            duration=now - rollouts.c.created_at,
        )
    ).rowcount
    _count_superseded(connection, job_id, job.step)
    return closed


def _count_superseded(connection: Connection, job_id: str, step: int) -> None:
    """Put the tokens of superseded groups in the ledger of the next step to finish."""
    superseded = select(groups.c.group_id).where(
        groups.c.job_id == job_id, groups.c.status == GroupStatus.SUPERSEDED
    )
    lost = (
        rollouts.c.job_id == job_id,
        rollouts.c.purpose == Purpose.TRAIN,
        rollouts.c.bins.is_(None),
        rollouts.c.group_id.in_(superseded),
    )
    for row in connection.execute(select(rollouts.c.seq, rollouts.c.tokens).where(*lost)).all():
        connection.execute(
            update(rollouts)
            .where(rollouts.c.seq == row.seq)
            .values(bins={Bin.DROPPED_SUPERSEDED.value: row.tokens}, ledger_step=step)
        )


def _superseded(incarnation: int) -> Fault:
    return Fault(
        blame=Blame.SERVICE,
        code="superseded",
        message=f"start {incarnation} of the job plans its row again",
    )


def _find(
    connection: Connection, rollout_id: str, account_id: str | None, *, lock: bool
) -> Rollout:
    query = _LOCKED_BY_ID if lock else _BY_ID
    row = connection.execute(query, {"its_id": rollout_id}).first()
    if row is None or account_id not in (None, row.account_id):
        raise errors.NotFound("rollout", rollout_id)
    return from_row(Rollout, row)
