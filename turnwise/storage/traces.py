"""Traced calls and log entries: functions on an open connection.

A row of `trace_tags` per tag is what is searched: by account, kind and tag, newest first.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, Table, and_, bindparam, delete, exists, select

from turnwise.domain.traced import RUNNING, TracedCall, TracedLog, TraceQuery
from turnwise.storage.rows import TABLES, from_rows, select_nouns, to_row
from turnwise.storage.tables import trace_tags

#: What a row of `trace_tags` points at.
_KINDS: dict[type[Any], str] = {TracedCall: "call", TracedLog: "log"}


def add(connection: Connection, noun: TracedCall | TracedLog) -> None:
    """Insert, with a row per tag."""
    row = to_row(noun)
    del row["seq"]
    table = TABLES[type(noun)]
    seq = connection.execute(table.insert().returning(table.c.seq), row).scalar_one()
    its = {"account_id": noun.account_id, "kind": _KINDS[type(noun)], "seq": seq}
    tags = [its | {"tag": tag} for tag in dict.fromkeys(noun.tags)]
    if tags:
        connection.execute(trace_tags.insert(), tags)


def calls(connection: Connection, account_id: str, query: TraceQuery) -> list[TracedCall]:
    """A page, the newest first."""
    return from_rows(TracedCall, _page(connection, TracedCall, account_id, query))


def logs(connection: Connection, account_id: str, query: TraceQuery) -> list[TracedLog]:
    """A page, the newest first."""
    return from_rows(TracedLog, _page(connection, TracedLog, account_id, query))


def drop(connection: Connection, before: float, limit: int) -> int:
    """Remove up to `limit` calls and as many entries of before a time; how many it were."""
    return sum(_drop(connection, kind, before, limit) for kind in _KINDS)


def _page(connection: Connection, kind: type[Any], account_id: str, query: TraceQuery) -> Any:
    columns = TABLES[kind].c
    where = [columns.account_id == account_id]
    if query.since is not None:
        where.append(columns.at >= query.since)
    if query.until is not None:
        where.append(columns.at < query.until)
    if query.program:
        where.append(columns.program == query.program)
    if query.ended:
        where.append(columns.status_code != RUNNING)  # nor is NULL, which is unequal to nothing
    if query.before is not None:
        where.append(columns.seq < query.before)
    found = select_nouns(kind, *where).limit(query.limit)
    if not query.tags:
        return connection.execute(found.order_by(columns.seq.desc())).all()
    first, *others = dict.fromkeys(query.tags)
    found = found.where(*(_has(kind, account_id, tag) for tag in others))
    return connection.execute(_along(found, kind, account_id, first, query.before)).all()


def _along(found: Any, kind: type[Any], account_id: str, tag: str, before: int | None) -> Any:
    """The selection in the order of one tag's rows, so that a page reads no more than it needs."""
    its = trace_tags.c
    where = [its.account_id == account_id, its.kind == _KINDS[kind], its.tag == tag]
    if before is not None:
        where.append(its.seq < before)
    return (
        found.join(trace_tags, TABLES[kind].c.seq == its.seq).where(*where).order_by(its.seq.desc())
    )


def _has(kind: type[Any], account_id: str, tag: str) -> Any:
    its = trace_tags.alias().c
    return exists().where(
        its.account_id == account_id,
        its.kind == _KINDS[kind],
        its.tag == tag,
        its.seq == TABLES[kind].c.seq,
    )


def _drop(connection: Connection, kind: type[Any], before: float, limit: int) -> int:
    table: Table = TABLES[kind]
    its = table.c
    old = select(its.account_id, its.seq, its.tags).where(its.at < before)
    rows = connection.execute(old.order_by(its.at).limit(limit)).all()
    if not rows:
        return 0
    _drop_tags(connection, _KINDS[kind], rows)
    connection.execute(delete(table).where(its.seq.in_([row.seq for row in rows])))
    return len(rows)


def _drop_tags(connection: Connection, kind: str, rows: Sequence[Any]) -> None:
    its = trace_tags.c
    one = and_(
        its.account_id == bindparam("whose"),
        its.kind == kind,
        its.tag == bindparam("which"),
        its.seq == bindparam("number"),
    )
    gone = [
        {"whose": row.account_id, "which": tag, "number": row.seq}
        for row in rows
        for tag in row.tags
    ]
    if gone:
        connection.execute(delete(trace_tags).where(one), gone)
