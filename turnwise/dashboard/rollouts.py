"""The list of a job's rollouts: filtered, sorted, searched, counted by reward, sampled."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter, Depends, Request
from starlette.responses import HTMLResponse

from turnwise.control.browse import RolloutRow
from turnwise.dashboard.histograms import HEIGHT, WIDTH, bars
from turnwise.dashboard.rollout_filters import SAMPLE, SIZES, Filters
from turnwise.dashboard.rooms import Dashboard
from turnwise.domain.access import Principal
from turnwise.domain.job import Job
from turnwise.domain.rollout import Purpose, RolloutStatus
from turnwise.ports import RolloutSort, Tally

#: The sortable columns and their titles.
COLUMNS = (
    (RolloutSort.REWARD, "Score"),
    (RolloutSort.TURNS, "Turns"),
    (RolloutSort.TOKENS, "Tokens"),
    (RolloutSort.DURATION, "Time"),
)


def rollout_list_routes(dashboard: Dashboard) -> APIRouter:
    """The list; to htmx only the part of it that filters change."""
    routes = APIRouter(prefix="/dashboard/jobs")
    caller = Depends(dashboard.principal)

    @routes.get("/{name}/rollouts")
    async def rollouts(request: Request, name: str, who: Principal = caller) -> HTMLResponse:
        job = await dashboard.rooms.jobs.describe(who, name)
        filters = Filters.of(request.query_params)
        template = "rollouts_found.html" if "hx-request" in request.headers else "rollouts.html"
        values = await _found(dashboard, who, job, filters)
        response = dashboard.pages.page(
            request, template, principal=who, job=job, tab="rollouts", **values
        )
        # What htmx asks for has every field of the form in its address; a reader needs fewer.
        here = filters.to(after=filters.after, back=filters.back)
        response.headers["hx-push-url"] = f"/dashboard/jobs/{job.name}/rollouts{here}"
        response.headers["vary"] = "HX-Request"
        return response

    return routes


async def _found(
    dashboard: Dashboard, who: Principal, job: Job, filters: Filters
) -> dict[str, Any]:
    """Everything that the templates show."""
    browse = dashboard.rooms.browse
    query = filters.query(job.job_id)
    tally = await browse.tally(who, job.job_id)
    rows, following = await _rows(dashboard, who, job, filters)
    histogram = await browse.histogram(who, query)
    return {
        "filters": filters,
        "rows": rows,
        "following": following,
        "histogram": histogram,
        "bars": bars(histogram, filters),
        "picture": (WIDTH, HEIGHT),
        "columns": COLUMNS,
        "seq": RolloutSort.SEQ,
        "total": sum(each.count for each in tally),
        "reasons": _reasons(tally),
        "steps": sorted({each.step for each in tally}),
        "purposes": list(Purpose),
        "statuses": list(RolloutStatus),
        "sizes": SIZES,
        "sample": SAMPLE,
    }


async def _rows(
    dashboard: Dashboard, who: Principal, job: Job, filters: Filters
) -> tuple[Sequence[RolloutRow], str]:
    """The rows, and the address of the page behind them, "" at the end."""
    browse = dashboard.rooms.browse
    if filters.sample and filters.step is not None:
        found = await browse.random_rollouts(
            who,
            job.job_id,
            filters.step,
            filters.purpose or Purpose.TRAIN,
            filters.sample,
            filters.seed,
        )
        return found, ""
    page = await browse.rollout_page(who, filters.query(job.job_id))
    return page.rows, filters.next_page(page.next.encode()) if page.next else ""


def _reasons(tally: Sequence[Tally]) -> list[str]:
    """The codes of all faults there were."""
    return sorted({each.fault_code for each in tally if each.fault_code})
