"""Named records: functions on an open connection."""

from __future__ import annotations

from sqlalchemy import ColumnElement, Connection, delete, func, update
from sqlalchemy.exc import IntegrityError

from turnwise import errors
from turnwise.domain.resource import Resource
from turnwise.storage.rows import from_row, from_rows, select_nouns, to_row
from turnwise.storage.tables import resources


def create(connection: Connection, resource: Resource) -> Resource:
    """Insert; `Conflict` if the name is taken."""
    values = to_row(resource) | {"updated_at": resource.created_at}
    del values["seq"]
    try:
        connection.execute(resources.insert(), values)
    except IntegrityError:
        raise errors.Conflict(f"{resource.kind} {resource.name!r} exists already") from None
    return find(connection, resource.account_id, resource.kind, resource.name)


def change(connection: Connection, resource: Resource, now: float) -> Resource:
    """Replace the body; `NotFound`."""
    where = _its(resource.account_id, resource.kind, resource.name)
    values = {"body": resource.body, "updated_at": now}
    connection.execute(update(resources).where(*where).values(values))
    return find(connection, resource.account_id, resource.kind, resource.name)


def find(connection: Connection, account_id: str, kind: str, name: str) -> Resource:
    """`NotFound`."""
    where = _its(account_id, kind, name)
    row = connection.execute(select_nouns(Resource, *where)).first()
    if row is None:
        raise errors.NotFound(kind, name)
    return from_row(Resource, row)


def listed(connection: Connection, account_id: str, kind: str, prefix: str) -> list[Resource]:
    """Oldest first, those whose names begin with `prefix`."""
    where = [resources.c.account_id == account_id, resources.c.kind == kind]
    if prefix:
        # Not LIKE, which takes no account of case in SQLite.
        where.append(func.substr(resources.c.name, 1, len(prefix)) == prefix)
    query = select_nouns(Resource, *where).order_by(resources.c.seq)
    return from_rows(Resource, connection.execute(query).all())


def remove(connection: Connection, account_id: str, kind: str, name: str) -> Resource:
    """The record as it was; `NotFound`."""
    removed = find(connection, account_id, kind, name)
    forget(connection, account_id, kind, name)
    return removed


def forget(connection: Connection, account_id: str, kind: str, name: str) -> None:
    """Remove a record; one that is not there is fine."""
    connection.execute(delete(resources).where(*_its(account_id, kind, name)))


def _its(account_id: str, kind: str, name: str) -> tuple[ColumnElement[bool], ...]:
    columns = resources.c
    return columns.account_id == account_id, columns.kind == kind, columns.name == name
