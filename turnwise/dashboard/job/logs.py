"""A job's log: what happened, line by line, filtered and followed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urlencode

from fastapi import APIRouter, Depends, Request
from starlette.responses import HTMLResponse, StreamingResponse

from turnwise.control.browse import PAGE
from turnwise.control.log_lines import line
from turnwise.dashboard.forms import choice, whole
from turnwise.dashboard.rooms import Dashboard
from turnwise.dashboard.tail import Rendered, Tails
from turnwise.domain.access import Principal
from turnwise.domain.event import Event, Level
from turnwise.ports import LogQuery

#: Lines on a page.
LINES = 200

#: What a level in the form lets through: itself and all louder ones.
_FROM = {level: tuple(list(Level)[place:]) for place, level in enumerate(Level)}


@dataclass(frozen=True, slots=True, kw_only=True)
class LogFilter:
    """What the form holds, as it was typed."""

    level: str = ""
    q: str = ""
    rollout: str = ""
    step: str = ""

    def query(self, job_id: str) -> LogQuery:
        """What it asks of the store. Raises `InvalidInput` naming the field."""
        level = choice(Level, self.level, "level")
        return LogQuery(
            job_id=job_id,
            levels=_FROM[level] if level else (),
            text=self.q.strip(),
            rollout_id=self.rollout.strip(),
            step=whole(self.step, "step"),
        )

    def url(self, **changed: object) -> str:
        """The query string of the page with this filter."""
        given = {name: getattr(self, name) for name in ("level", "q", "rollout", "step")}
        return urlencode({key: value for key, value in {**given, **changed}.items() if value})


@dataclass(frozen=True, slots=True, kw_only=True)
class LogLine:
    """An event as a line; `before` and `after` surround the rollout's id in the text."""

    seq: int
    at: float
    level: Level
    before: str
    rollout_id: str = ""
    after: str = ""
    step: int | None = None


def log_line(event: Event) -> LogLine:
    """A line in which the rollout that it is about can be linked."""
    text = line(event).removeprefix(f"{event.level.value.upper()} ")
    rollout_id = str(event.body.get("rollout_id") or "")
    before, found, after = text.partition(rollout_id) if rollout_id else (text, "", "")
    step = event.body.get("step")
    return LogLine(
        seq=event.seq,
        at=event.at,
        level=event.level,
        before=before,
        rollout_id=found,
        after=after,
        step=step if isinstance(step, int) and step >= 0 else None,
    )


def _filter(level: str = "", q: str = "", rollout: str = "", step: str = "") -> LogFilter:
    return LogFilter(level=level, q=q, rollout=rollout, step=step)


def log_routes(dashboard: Dashboard) -> APIRouter:
    """`/dashboard/jobs/{name}/logs` and its stream."""
    routes = APIRouter(prefix="/dashboard/jobs/{name}/logs")
    caller, filtered = Depends(dashboard.principal), Depends(_filter)
    rooms = dashboard.rooms
    tails = Tails()

    @routes.get("")
    async def page(
        request: Request,
        name: str,
        before: str = "",
        after: str = "",
        chosen: LogFilter = filtered,
        who: Principal = caller,
    ) -> HTMLResponse:
        job = await rooms.jobs.describe(who, name)
        query = replace(
            chosen.query(job.job_id),
            before=whole(before, "before"),
            after=whole(after, "after") or 0,
            limit=LINES + 1,
            newest_first=not after,
        )
        events = await rooms.browse.log_events(who, query)
        has_more = len(events) > LINES
        events = sorted(events[:LINES], key=lambda event: event.seq)
        is_newest = not before and not (after and has_more)
        return dashboard.pages.page(
            request,
            "logs.html",
            principal=who,
            job=job,
            tab="logs",
            chosen=chosen,
            levels=list(Level),
            lines=[log_line(event) for event in events],
            older=_older(events, chosen, has_more=has_more or bool(after)),
            newer="" if is_newest else _newer(events, chosen),
            follow=_follow(job.name, events, chosen) if is_newest else "",
            is_over=job.status.is_final,
        )

    @routes.get("/live")
    async def live(
        request: Request,
        name: str,
        after: str = "",
        chosen: LogFilter = filtered,
        who: Principal = caller,
    ) -> StreamingResponse:
        job = await rooms.jobs.describe(who, name)
        query = chosen.query(job.job_id)
        newest = await rooms.browse.last_event(who, job.job_id)
        seen = whole(request.headers.get("last-event-id", "") or after, "after") or 0
        key = f"{job.job_id}?{chosen.url()}"

        async def read(past: int) -> tuple[Sequence[Rendered], int]:
            return await _read(dashboard, who, query, past)

        async def news(past: int) -> None:
            await rooms.browse.wait(who, job.job_id, after=past)

        may_look = dashboard.reading(who, job.job_id)
        stream = tails.stream(key, max(0, min(seen, newest)), read, news, may_look)
        return dashboard.streams.held(who.access_key_id, stream)

    return routes


async def _read(
    dashboard: Dashboard, who: Principal, query: LogQuery, past: int
) -> tuple[Sequence[Rendered], int]:
    """Rendered lines past a number, and up to where the log has been looked through."""
    newest = await dashboard.rooms.browse.last_event(who, query.job_id)
    found = await dashboard.rooms.browse.log_events(who, replace(query, after=past, limit=PAGE))
    lines = [
        (
            event.seq,
            dashboard.pages.text("log_line.html", line=log_line(event), job_id=event.job_id),
        )
        for event in found
    ]
    is_all = len(found) < PAGE
    return lines, max(newest, past) if is_all else found[-1].seq


def _older(events: Sequence[Event], chosen: LogFilter, *, has_more: bool) -> str:
    return chosen.url(before=events[0].seq) if events and has_more and events[0].seq > 1 else ""


def _newer(events: Sequence[Event], chosen: LogFilter) -> str:
    return chosen.url(after=events[-1].seq) if events else chosen.url()


def _follow(job_name: str, events: Sequence[Event], chosen: LogFilter) -> str:
    """The address of the stream that goes on from the page's last line."""
    last: dict[str, Any] = {"after": events[-1].seq} if events else {}
    return f"/dashboard/jobs/{job_name}/logs/live?{chosen.url(**last)}"
