"""The list of a job's rollouts: filtered, sorted, searched, counted by reward, sampled."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from fastapi import APIRouter, Depends, Request
from starlette.responses import HTMLResponse

from turnwise.control.browse import RolloutRow
from turnwise.dashboard.recent import Recent
from turnwise.dashboard.rollouts.histograms import HEIGHT, WIDTH, bars
from turnwise.dashboard.rollouts.rollout_filters import SAMPLE, SIZES, Filters
from turnwise.dashboard.rooms import Dashboard
from turnwise.domain.access import Principal
from turnwise.domain.job import Job
from turnwise.domain.rollout import Purpose, RolloutStatus
from turnwise.ports import Histogram, RolloutQuery, RolloutSort, Tally

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
    finder = _Finder(dashboard)

    @routes.get("/{name}/rollouts")
    async def rollouts(request: Request, name: str, who: Principal = caller) -> HTMLResponse:
        job = await dashboard.rooms.jobs.describe(who, name)
        filters = Filters.of(request.query_params)
        values = await finder.found(who, job, filters)
        template = "rollouts_found.html" if "hx-request" in request.headers else "rollouts.html"
        response = await asyncio.to_thread(
            lambda: dashboard.pages.page(
                request, template, principal=who, job=job, tab="rollouts", **values
            )
        )
        # What htmx asks for has every field of the form in its address; a reader needs fewer.
        here = filters.to(after=filters.after, back=filters.back)
        response.headers["hx-push-url"] = f"/dashboard/jobs/{job.name}/rollouts{here}"
        response.headers["vary"] = "HX-Request"
        return response

    return routes


class _Finder:
    """Finds what a list shows. Callers have the right to read the job."""

    def __init__(self, dashboard: Dashboard) -> None:
        self._browse = dashboard.rooms.browse
        self._tallies: Recent[Sequence[Tally]] = Recent(dashboard.rooms.clock)
        self._histograms: Recent[Histogram] = Recent(dashboard.rooms.clock)

    async def found(self, who: Principal, job: Job, filters: Filters) -> dict[str, Any]:
        """Everything that the templates show."""
        query = filters.query(job.job_id)
        (rows, following), tally, histogram = await asyncio.gather(
            self._rows(who, filters, query),
            self._tallies.get(job.job_id, lambda: self._browse.tally(who, job.job_id)),
            self._histogram(who, query),
        )
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
        self, who: Principal, filters: Filters, query: RolloutQuery
    ) -> tuple[Sequence[RolloutRow], str]:
        """The rows, and the address of the page behind them, "" at the end."""
        step = filters.step if filters.trained is None else filters.trained
        if filters.sample and step is not None:
            found = await self._browse.random_rollouts(
                who,
                query.job_id,
                step,
                filters.purpose or Purpose.TRAIN,
                filters.sample,
                filters.seed,
                is_trained=filters.trained is not None,
            )
            return found, ""
        page = await self._browse.rollout_page(who, query)
        return page.rows, filters.next_page(page.next.encode()) if page.next else ""

    async def _histogram(self, who: Principal, query: RolloutQuery) -> Histogram:
        """Of all that is let through but for the range of scores, whatever page is shown."""
        counted = replace(
            query,
            reward_ge=None,
            reward_lt=None,
            sort=RolloutSort.SEQ,
            descending=False,
            after=None,
            limit=1,
        )
        return await self._histograms.get(counted, lambda: self._browse.histogram(who, counted))


def _reasons(tally: Sequence[Tally]) -> list[str]:
    """The codes of all faults there were."""
    return sorted({each.fault_code for each in tally if each.fault_code})
