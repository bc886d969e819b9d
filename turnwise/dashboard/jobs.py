"""The list of jobs."""

from __future__ import annotations

from fastapi import APIRouter, Depends, Request
from starlette.responses import HTMLResponse, RedirectResponse

from turnwise.dashboard.rooms import Dashboard
from turnwise.domain.access import Principal


def job_list_routes(dashboard: Dashboard) -> APIRouter:
    """The list, at the dashboard's root."""
    routes = APIRouter()
    caller = Depends(dashboard.principal)

    @routes.get("/")
    async def root() -> RedirectResponse:
        return RedirectResponse("/dashboard")

    @routes.get("/favicon.ico")
    async def icon() -> RedirectResponse:
        return RedirectResponse(dashboard.pages.asset("icon.svg"))

    @routes.get("/dashboard")
    async def jobs(request: Request, who: Principal = caller) -> HTMLResponse:
        found = await dashboard.rooms.jobs.list(who)
        return dashboard.pages.page(request, "jobs.html", principal=who, jobs=found)

    return routes
