"""Two to six jobs side by side: curves, settings, outcomes, and a paired test where one is fair."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request
from starlette.responses import HTMLResponse

from turnwise.control.job_file import as_mapping
from turnwise.dashboard.comparing import chosen, differences, finals, overlays, paired
from turnwise.dashboard.rooms import Dashboard
from turnwise.domain.access import Principal
from turnwise.domain.curves import Curve, Curves
from turnwise.domain.job import Job, JobKind
from turnwise.domain.ledger import TokenUsage
from turnwise.domain.rollout import Purpose
from turnwise.ports import RolloutQuery

#: Rollouts that are read at once, for the paired comparison.
_PAGE = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """One of the jobs compared. `rows_sha256` is of the file that `row_rewards` are of."""

    job: Job
    curves: Mapping[str, Curve]
    usage: TokenUsage
    elapsed_s: float | None
    rows_sha256: str
    row_rewards: Mapping[int, float]


def compare_routes(dashboard: Dashboard) -> APIRouter:
    """`/dashboard/compare?job=a&job=b`."""
    routes = APIRouter()
    caller = Depends(dashboard.principal)

    @routes.get("/dashboard/compare")
    async def compare(
        request: Request,
        job: Annotated[list[str], Query()] = [],  # noqa: B006  FastAPI copies it
        who: Principal = caller,
    ) -> HTMLResponse:
        names = chosen(job)
        sides = await asyncio.gather(*(_side(dashboard, who, name) for name in names))
        settings = differences([as_mapping(side.job.spec) for side in sides])
        rewards = {s.job.name: (s.rows_sha256, s.row_rewards) for s in sides}
        pairs = await asyncio.to_thread(paired, rewards)  # draws some thousand samples
        return dashboard.pages.page(
            request,
            "compare.html",
            principal=who,
            sides=sides,
            charts=overlays({side.job.name: side.curves for side in sides}),
            finals=finals([side.curves for side in sides]),
            differing=[each for each in settings if each.differs],
            alike=[each for each in settings if not each.differs],
            pairs=pairs,
        )

    return routes


async def _side(dashboard: Dashboard, who: Principal, name: str) -> Side:
    rooms = dashboard.rooms
    job = await rooms.jobs.describe(who, name)
    curves = Curves()
    curves.add(await rooms.browse.metrics_since(who, job.job_id))
    sha256, rewards = await _row_rewards(dashboard, who, job)
    end = job.ended_at or rooms.clock.now()
    return Side(
        job=job,
        curves=curves,
        usage=await rooms.browse.usage(who, job.job_id),
        elapsed_s=None if job.started_at is None else end - job.started_at,
        rows_sha256=sha256,
        row_rewards=rewards,
    )


async def _row_rewards(
    dashboard: Dashboard, who: Principal, job: Job
) -> tuple[str, Mapping[int, float]]:
    """The mean reward of each held-out row that the job was last measured on, and their file."""
    if job.inputs is None or len(job.spec.evaluated_models) > 1:
        return "", {}  # one of several models compares them on its own page
    is_evaluation = job.spec.kind is JobKind.EVALUATION
    purpose = Purpose.EVALUATION if is_evaluation else Purpose.VALIDATION
    tally = await dashboard.rooms.browse.tally(who, job.job_id)
    step = max((each.step for each in tally if each.purpose is purpose), default=None)
    sha256 = job.inputs.dataset_sha256 if is_evaluation else job.inputs.validation_sha256
    if step is None:
        return sha256, {}
    query = RolloutQuery(job_id=job.job_id, purpose=purpose, step=step, is_valid=True, limit=_PAGE)
    rewards: defaultdict[int, list[float]] = defaultdict(list)
    while found := await dashboard.rooms.browse.rollouts(who, query):
        for each in found:
            if (reward := each.rollout.reward) is not None:
                rewards[each.rollout.row_index].append(reward)
        query = replace(query, after=found[-1].cursor())
    return sha256, {row: fmean(each) for row, each in rewards.items()}
