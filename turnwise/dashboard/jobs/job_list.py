"""The list of jobs, kept fresh while somebody looks."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

from fastapi import APIRouter, Depends, Request, Response
from starlette.responses import HTMLResponse, RedirectResponse

from turnwise import errors
from turnwise.dashboard.jobs.job_rows import JobFilter, JobRows, Shown, job_address
from turnwise.dashboard.rooms import Dashboard
from turnwise.domain.access import Principal
from turnwise.domain.job import JobKind
from turnwise.ports import JobSummary

#: A list that somebody looks at is compared with the store so often.
LOOK_S = 1.0


def job_list_routes(dashboard: Dashboard) -> APIRouter:
    """The list, at the dashboard's root, and addresses that lead to a job."""
    routes = APIRouter()
    caller = Depends(dashboard.principal)
    rows = JobRows(dashboard.rooms)

    @routes.get("/")
    async def root() -> RedirectResponse:
        return RedirectResponse("/dashboard")

    @routes.get("/favicon.ico")
    async def icon() -> RedirectResponse:
        return RedirectResponse(dashboard.pages.asset("icon.svg"))

    @routes.get("/dashboard")
    async def jobs(request: Request, who: Principal = caller) -> HTMLResponse:
        wanted = JobFilter.read(request.query_params)
        values = await _table(rows, who, wanted)
        return dashboard.pages.page(
            request, "jobs.html", principal=who, states=Shown, kinds=JobKind, **values
        )

    @routes.get("/dashboard/live")
    async def live(request: Request, who: Principal = caller) -> Response:
        wanted = JobFilter.read(request.query_params)
        view = _LiveJobs(dashboard, rows, who, wanted)
        stream = dashboard.hub.stream(view.key, view.render, view.news)
        return dashboard.streams.held(who.access_key_id, stream)

    @routes.get("/dashboard/fine-tuning/reinforcement/{job}")
    async def fine_tuning(job: str, who: Principal = caller) -> RedirectResponse:
        """What Fireworks' clients print once they have created a job."""
        return await _to_job(dashboard, who, job)

    @routes.get("/dashboard/evaluation-jobs/{job}")
    async def evaluation(job: str, who: Principal = caller) -> RedirectResponse:
        """The same of an evaluation."""
        return await _to_job(dashboard, who, job)

    return routes


async def _to_job(dashboard: Dashboard, who: Principal, job: str) -> RedirectResponse:
    found = await dashboard.rooms.jobs.describe(who, job)
    return RedirectResponse(job_address(found.name, found.job_id))


async def _table(rows: JobRows, who: Principal, wanted: JobFilter) -> dict[str, Any]:
    """What `jobs_table.html` is given."""
    page = await rows.page(who, wanted)
    return {
        "page": page,
        "wanted": wanted,
        "newest": wanted.address("/dashboard"),
        "older": wanted.address("/dashboard", after=page.next),
        "live": wanted.address("/dashboard/live", after=wanted.after),
        "back": wanted.address("/dashboard", after=wanted.after),
    }


@dataclass(slots=True)
class _LiveJobs:
    """One page of the list as a view of the hub; a key that is revoked ends it."""

    dashboard: Dashboard
    rows: JobRows
    who: Principal
    wanted: JobFilter
    _seen: list[JobSummary] = field(default_factory=list)
    _places: dict[str, int] = field(default_factory=dict)
    _renderings: int = 0

    @property
    def key(self) -> str:
        """Who holds the same key and looks at the same page sees the same."""
        return f"jobs {self.who.access_key_id} {self.wanted}"

    async def render(self) -> tuple[str, int]:
        """See `live.Render`."""
        who = await self._holder()
        self._seen, self._places = await self._look(who)
        values = await _table(self.rows, who, self.wanted)
        self._renderings += 1
        return self.dashboard.pages.text("jobs_table.html", **values), self._renderings

    async def news(self, seen: int) -> None:
        """See `live.News`."""
        while True:
            await asyncio.sleep(LOOK_S)
            if await self._look(await self._holder()) != (self._seen, self._places):
                return

    async def _look(self, who: Principal) -> tuple[list[JobSummary], dict[str, int]]:
        found = await self.rows.glance(who, self.wanted)
        return found, dict(await self.rows.ahead(who, found))

    async def _holder(self) -> Principal:
        try:
            return await self.dashboard.rooms.keyring.holder(self.who.access_key_id)
        except errors.UnknownKey:
            raise errors.Unauthenticated("the key was revoked") from None
