"""Logs of registered agents: functions on an open connection."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection, delete, select

from turnwise.domain.agent import AgentLogEntry
from turnwise.storage.rows import from_rows, select_nouns, to_row
from turnwise.storage.tables import agent_logs


def append(connection: Connection, entries: Sequence[AgentLogEntry]) -> None:
    """Insert, in this order."""
    rows = [to_row(entry) for entry in entries]
    for row in rows:
        del row["seq"]
    connection.execute(agent_logs.insert(), rows)


def page(
    connection: Connection,
    account_id: str,
    agent: str,
    after: int,
    limit: int,
    since: float | None,
    until: float | None,
) -> list[AgentLogEntry]:
    """Entries with seq > `after`, in order."""
    columns = agent_logs.c
    where = [columns.account_id == account_id, columns.agent == agent, columns.seq > after]
    if since is not None:
        where.append(columns.at >= since)
    if until is not None:
        where.append(columns.at < until)
    query = select_nouns(AgentLogEntry, *where).order_by(columns.seq).limit(limit)
    return from_rows(AgentLogEntry, connection.execute(query).all())


def trim(connection: Connection, account_id: str, agent: str, keep: int) -> None:
    """Remove all but the newest `keep` entries."""
    columns = agent_logs.c
    its = (columns.account_id == account_id, columns.agent == agent)
    newest_to_go = (
        select(columns.seq).where(*its).order_by(columns.seq.desc()).limit(1).offset(keep)
    )
    seq = connection.execute(newest_to_go).scalar()
    if seq is not None:
        connection.execute(delete(agent_logs).where(*its, columns.seq <= seq))
