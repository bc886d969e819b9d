"""The audit trail's chain: functions on an open connection, called by the one writer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from sqlalchemy import ColumnElement, Connection, Select, Text, delete, type_coerce, update

from turnwise.domain.audit import (
    AuditDraft,
    AuditHead,
    AuditQuery,
    AuditRecord,
    AuditSegment,
    Sealer,
    chained,
)
from turnwise.storage.rows import from_row, from_rows, select_nouns, to_row
from turnwise.storage.tables import audit_heads, audit_records, audit_segments, to_json

#: An open segment is sealed before the record that would be one too many, or that is so much later
#: than its first. Retention drops whole segments, so this is also how exact it is.
SEGMENT_RECORDS = 10_000
SEGMENT_S = 24 * 3600.0


def append(
    connection: Connection, account_id: str, drafts: Sequence[AuditDraft], sealer: Sealer
) -> int:
    """Add records to the end of an account's chain; the number of the last one."""
    row = connection.execute(_its_head(account_id).with_for_update()).first()
    head = AuditHead(account_id=account_id) if row is None else from_row(AuditHead, row)
    rows = []
    for draft in drafts:
        if _is_full(head, draft.at):
            head = _sealed(connection, head, sealer)
        if head.last_seq < head.open_seq:
            head = replace(head, open_at=draft.at)
        digest = chained(head.digest, draft.body)
        head = replace(head, last_seq=head.last_seq + 1, last_at=draft.at, digest=digest)
        rows.append(_fields(draft, account_id, head))
    if rows:
        connection.execute(audit_records.insert(), rows)
        head = replace(head, seal=sealer.head(head))
        _keep(connection, head, is_new=row is None)
    return head.last_seq


_DRAFTED = tuple(AuditDraft.__dataclass_fields__)


def _fields(draft: AuditDraft, account_id: str, head: AuditHead) -> dict[str, Any]:
    its = {"account_id": account_id, "seq": head.last_seq, "digest": head.digest}
    return {name: getattr(draft, name) for name in _DRAFTED} | its


def _is_full(head: AuditHead, now: float) -> bool:
    count = head.last_seq - head.open_seq + 1
    return count >= SEGMENT_RECORDS or (count > 0 and now - head.open_at >= SEGMENT_S)


def _sealed(connection: Connection, head: AuditHead, sealer: Sealer) -> AuditHead:
    """Close the open segment; the head with an empty one."""
    segment = AuditSegment(
        account_id=head.account_id,
        first_seq=head.open_seq,
        last_seq=head.last_seq,
        last_at=head.last_at,
        previous=head.open_digest,
        digest=head.digest,
        seal="",
    )
    segment = replace(segment, seal=sealer.segment(segment))
    connection.execute(audit_segments.insert(), to_row(segment))
    return replace(head, open_seq=head.last_seq + 1, open_digest=head.digest)


def _keep(connection: Connection, head: AuditHead, *, is_new: bool) -> None:
    if is_new:
        connection.execute(audit_heads.insert(), to_row(head))
        return
    its = audit_heads.c.account_id == head.account_id
    connection.execute(update(audit_heads).where(its).values(to_row(head)))


def _its_head(account_id: str) -> Select[Any]:
    return select_nouns(AuditHead, audit_heads.c.account_id == account_id)


def head(connection: Connection, account_id: str) -> AuditHead:
    """The end of an account's chain; that of an empty one if it has no records."""
    row = connection.execute(_its_head(account_id)).first()
    return AuditHead(account_id=account_id) if row is None else from_row(AuditHead, row)


def segments(connection: Connection, account_id: str) -> list[AuditSegment]:
    """Sealed segments in order, dropped ones included."""
    query = select_nouns(AuditSegment, audit_segments.c.account_id == account_id)
    query = query.order_by(audit_segments.c.first_seq)
    return from_rows(AuditSegment, connection.execute(query).all())


def find(connection: Connection, account_id: str, query: AuditQuery) -> list[AuditRecord]:
    """Records that a query asks for, in its order."""
    columns = audit_records.c
    chosen = select_nouns(AuditRecord, columns.account_id == account_id, *_conditions(query))
    order = columns.seq.desc() if query.newest_first else columns.seq
    return from_rows(
        AuditRecord, connection.execute(chosen.order_by(order).limit(query.limit)).all()
    )


def _conditions(query: AuditQuery) -> list[ColumnElement[bool]]:
    columns = audit_records.c
    equal = {
        columns.category: query.category,
        columns.name: query.name or None,
        columns.source: query.source or None,
        columns.user_name: query.user_name or None,
        columns.access_key_id: query.access_key_id or None,
        columns.event_id: query.event_id or None,
        columns.read_only: query.read_only,
    }
    found = [column == value for column, value in equal.items() if value is not None]
    holds = {columns.resources: query.resource, columns.resource_types: query.resource_type}
    for column, value in holds.items():
        if value:  # one of a JSON list of texts
            found.append(type_coerce(column, Text).contains(to_json(value), autoescape=True))
    if query.since is not None:
        found.append(columns.at >= query.since)
    if query.until is not None:
        found.append(columns.at <= query.until)
    if query.before is not None:
        found.append(columns.seq < query.before)
    if query.after:
        found.append(columns.seq > query.after)
    return found


def drop(connection: Connection, account_id: str, before: float, now: float) -> int:
    """Remove the records of the oldest segments that ended before a time; how many segments."""
    dropped = 0
    for segment in segments(connection, account_id):
        if segment.dropped_at is not None:
            continue
        if segment.last_at >= before:
            break
        records, columns = audit_records.c, audit_segments.c
        connection.execute(
            delete(audit_records).where(
                records.account_id == account_id, records.seq <= segment.last_seq
            )
        )
        its = (columns.account_id == account_id, columns.first_seq == segment.first_seq)
        connection.execute(update(audit_segments).where(*its).values(dropped_at=now))
        dropped += 1
    return dropped
