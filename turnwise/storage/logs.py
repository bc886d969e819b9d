"""Pages of a job's events: functions on an open connection."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from typing import Any

from sqlalchemy import ColumnElement, Connection, Select, Text, text, type_coerce

from turnwise.domain.event import Event, EventKind, Level
from turnwise.ports import LogQuery
from turnwise.storage.jobs import last_event
from turnwise.storage.rows import from_rows, select_nouns
from turnwise.storage.tables import events, to_json


def page(connection: Connection, account_id: str, query: LogQuery) -> list[Event]:
    """One page; `NotFound` without the job.

    Each of several levels or kinds is read for itself, in order, from the index over them.
    """
    last_event(connection, account_id, query.job_id)
    found = [
        from_rows(Event, connection.execute(part.limit(query.limit)).all())
        for part in _parts(query)
    ]
    merged = heapq.merge(*found, key=lambda event: event.seq, reverse=query.newest_first)
    return list(merged)[: query.limit]


def metrics_since(connection: Connection, account_id: str, job_id: str, after: int) -> list[Event]:
    """All METRICS events with seq > after, in order; `NotFound` without the job."""
    last_event(connection, account_id, job_id)
    columns = events.c
    its = select_nouns(
        Event, columns.job_id == job_id, columns.kind == EventKind.METRICS, columns.seq > after
    )
    its = _using(its, "ix_events_kind").order_by(columns.seq)
    return from_rows(Event, connection.execute(its).all())


def _parts(query: LogQuery) -> list[Select[Any]]:
    """Statements whose rows, merged, are the page: by the index that leaves the fewest rows."""
    columns = events.c
    wanted = _wanted(query)
    if query.rollout_id:
        its = wanted.where(text("rollout_id IS NOT NULL"), columns.rollout_id == query.rollout_id)
        return [_using(_also(its, query, "levels", "kinds", "step"), "ix_events_rollout")]
    if query.step is not None:
        its = wanted.where(text("step IS NOT NULL"), columns.step == query.step)
        return [_using(_also(its, query, "levels", "kinds"), "ix_events_step")]
    if query.text and not (query.levels and _LOUD.issuperset(query.levels)):
        return list(_saying(query, wanted))
    if query.levels:
        its = _also(wanted, query, "kinds")
        return [
            _using(its.where(columns.level == level), "ix_events_level")
            for level in sorted(set(query.levels))
        ]
    if query.kinds:
        return [
            _using(wanted.where(columns.kind == kind), "ix_events_kind")
            for kind in sorted(set(query.kinds))
        ]
    return [wanted]


_LOUD = frozenset({Level.WARNING, Level.ERROR})


def _saying(query: LogQuery, wanted: Select[Any]) -> Iterator[Select[Any]]:
    """Statements over what may say the text: most of a log are rollouts that have gone well."""
    columns = events.c
    kinds, levels = set(query.kinds or EventKind), set(query.levels or Level)
    for kind in sorted(kinds - {EventKind.ROLLOUT}):
        of_kind = _also(wanted.where(columns.kind == kind), query, "levels")
        yield _using(of_kind, "ix_events_kind")
    for level in sorted(levels & _LOUD if EventKind.ROLLOUT in kinds else ()):
        of_level = wanted.where(columns.level == level, columns.kind == EventKind.ROLLOUT)
        yield _using(of_level, "ix_events_level")


def _wanted(query: LogQuery) -> Select[Any]:
    columns = events.c
    found: list[ColumnElement[bool]] = [
        columns.job_id == query.job_id,
        columns.seq > query.after,
    ]
    if query.before is not None:
        found.append(columns.seq < query.before)
    if query.text:
        said = to_json(query.text)[1:-1]  # as it stands in the body
        found.append(type_coerce(columns.body, Text).icontains(said, autoescape=True))
    order = columns.seq.desc() if query.newest_first else columns.seq
    return select_nouns(Event, *found).order_by(order)


def _also(wanted: Select[Any], query: LogQuery, *names: str) -> Select[Any]:
    """Those of these conditions that the query has, checked row by row."""
    given: dict[str, tuple[ColumnElement[Any], Sequence[Any]]] = {
        "levels": (events.c.level, query.levels),
        "kinds": (events.c.kind, query.kinds),
        "step": (events.c.step, () if query.step is None else (query.step,)),
    }
    for name in names:
        column, values = given[name]
        if values:
            wanted = wanted.where(column.in_(values))
    return wanted


def _using(wanted: Select[Any], index: str) -> Select[Any]:
    return wanted.with_hint(events, f"INDEXED BY {index}", "sqlite")
