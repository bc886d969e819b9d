"""The pages of one job, and the stream that keeps its overview fresh."""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any
from urllib.parse import urlencode

from fastapi import APIRouter, Depends, Form, Query, Request, Response
from markupsafe import Markup
from starlette.responses import HTMLResponse, RedirectResponse

from turnwise import errors
from turnwise.control.job_file import as_mapping
from turnwise.control.notes import MAX_CHARS, JobNotes, Notes
from turnwise.dashboard.job.evaluation_tables import tables
from turnwise.dashboard.job.job_charts import sections
from turnwise.dashboard.job.job_files import as_yaml, blocks, commands, setting_lines
from turnwise.dashboard.job.timeline import epochs
from turnwise.dashboard.jobs.job_rows import job_address
from turnwise.dashboard.jobs.job_watch import JobView, Watches
from turnwise.dashboard.pages import Pages
from turnwise.dashboard.rooms import Dashboard
from turnwise.diagnostics import Finding
from turnwise.domain.access import Action, Principal
from turnwise.domain.job import Job, JobStatus

#: Steps on the overview; the others are a page away.
STEPS = 20
#: Steps of a page of all steps.
STEPS_PAGE = 200
#: Checkpoints on the overview: the newest.
CHECKPOINTS = 20
#: A stream looks for news so long before it renders anyway, for what no event tells.
LOOK_S = 10.0
#: Of one core, what rendering a job's charts may take: those of a thousand steps, which take most
#: of a second, are drawn again after most of a minute.
SHARE = 0.015
#: Jobs whose rendered parts are kept.
_RENDERED = 64

#: The parts of the overview, each the content of the element of that id.
PARTS = {
    "job-state": "job/state.html",
    "job-now": "job/now.html",
    "job-findings": "job/findings.html",
    "job-charts": "job/charts.html",
    "job-steps": "job/steps.html",
    "job-checkpoints": "job/checkpoints.html",
    "job-usage": "job/usage.html",
    "job-history": "job/history.html",
}

#: Those that change with a step alone, and are long.
_SLOW = frozenset({"job-charts", "job-steps", "job-checkpoints"})

Parts = Mapping[str, Markup]


def job_page_routes(dashboard: Dashboard) -> APIRouter:
    """Pages under /dashboard/jobs/{name}."""
    routes = APIRouter(prefix="/dashboard/jobs")
    caller = Depends(dashboard.principal)
    rooms, pages = dashboard.rooms, dashboard.pages
    watches = Watches(rooms)
    overview = Overview(pages)
    notes = JobNotes(rooms.jobs, rooms.resources, rooms.clock)

    async def shown(
        request: Request,
        who: Principal,
        name: str,
        *,
        written: Notes | None = None,
        problem: str = "",
    ) -> HTMLResponse:
        view = await watches.view(who, name)
        results = await _results(dashboard, who, view)
        return pages.page(
            request,
            "job/overview.html",
            principal=who,
            status=400 if problem else 200,
            tab="overview",
            **_head(who, view.job),
            view=view,
            parts=await overview.parts(view),
            results=results,
            notes=written or await notes.of(who, view.job.job_id),
            max_chars=MAX_CHARS,
            problem=problem,
        )

    @routes.get("/{name}")
    async def job(request: Request, name: str, who: Principal = caller) -> HTMLResponse:
        return await shown(request, who, name)

    @routes.get("/{name}/live")
    async def live(name: str, who: Principal = caller) -> Response:
        found = await rooms.jobs.describe(who, name)
        view = _LiveJob(dashboard, watches, overview, found)
        may_look = dashboard.reading(who, found.job_id)
        stream = dashboard.hub.stream(view.key, view.render, view.news, may_look)
        return dashboard.streams.held(who.access_key_id, stream)

    @routes.post("/{name}/notes")
    async def write(
        request: Request,
        name: str,
        description: Annotated[str, Form()] = "",
        hypothesis: Annotated[str, Form()] = "",
        result: Annotated[str, Form()] = "",
        who: Principal = caller,
    ) -> Response:
        found = await rooms.jobs.describe(who, name)
        given = Notes(description=description, hypothesis=hypothesis, result=result)
        try:
            await notes.write(who, found.job_id, given)
        except errors.InvalidInput as error:
            return await shown(request, who, name, written=given, problem=str(error))
        return RedirectResponse(f"{job_address(found.name, found.job_id)}#notes", status_code=303)

    @routes.get("/{name}/steps")
    async def steps(
        request: Request,
        name: str,
        before: Annotated[int | None, Query(ge=0)] = None,
        who: Principal = caller,
    ) -> HTMLResponse:
        view = await watches.view(who, name)
        lines = view.watch.timeline.steps(before=before, limit=STEPS_PAGE + 1)
        page = lines[:STEPS_PAGE]
        return pages.page(
            request,
            "job/all_steps.html",
            principal=who,
            tab="overview",
            **_head(who, view.job),
            view=view,
            epochs=epochs(page),
            before=before,
            older=page[-1].step if len(lines) > STEPS_PAGE else None,
        )

    @routes.get("/{name}/configuration")
    async def configuration(request: Request, name: str, who: Principal = caller) -> HTMLResponse:
        found = await rooms.jobs.describe(who, name)
        lines = setting_lines(found.spec)
        return pages.page(
            request,
            "job/configuration.html",
            principal=who,
            tab="configuration",
            **_head(who, found),
            changed=[line for line in lines if not line.is_default],
            blocks=list(blocks(lines)),
            commands=commands(found.spec, rooms.url),
            whole=as_yaml(as_mapping(found.spec)),
        )

    return routes


def _head(who: Principal, job: Job) -> dict[str, Any]:
    """What `job_base.html` and the buttons need."""
    may_manage = who.allows(Action.MANAGE, job_id=job.job_id)
    is_final = job.status.is_final
    return {
        "job": job,
        "address": job_address(job.name, job.job_id),
        "may_manage_job": may_manage,
        "may_stop": may_manage and not is_final and job.status is not JobStatus.STOPPING,
        "may_resume": may_manage and job.status in (JobStatus.STOPPED, JobStatus.FAILED),
        "may_delete": may_manage and is_final,
    }


async def _results(dashboard: Dashboard, who: Principal, view: JobView) -> Sequence[Any]:
    """An evaluation's tables; none of a training job, and before there are any."""
    if view.is_training:
        return ()
    try:
        document = await dashboard.rooms.results.document(who, view.job.job_id)
    except errors.Conflict:
        return ()
    return await asyncio.to_thread(lambda: tables(json.loads(document)))


# ── parts ─────────────────────────────────────────────────────────────────────────────────────


@dataclass(slots=True)
class _Kept:
    """A job's parts as rendered, and what those that are long were rendered from."""

    version: tuple[int, ...] = ()
    parts: dict[str, Markup] = field(default_factory=dict)
    slow_at: float = -math.inf  # when those were rendered, on the monotonic clock
    slow_took_s: float = 0.0  # and for how long a thread computed

    def is_due(self, version: tuple[int, ...], is_final: bool) -> bool:
        """Whether to render the long parts again: they are old, and it is not their time yet."""
        if version == self.version:
            return False
        return is_final or time.monotonic() - self.slow_at >= self.slow_took_s / SHARE


class Overview:
    """Renders the parts of a job's page; charts and steps only when there is a new one.

    They hold nothing that depends on who looks: whoever may read a job sees the same.
    """

    def __init__(self, pages: Pages) -> None:
        self._pages = pages
        self._kept: OrderedDict[str, _Kept] = OrderedDict()

    async def parts(self, view: JobView) -> Parts:
        """The content of each part."""
        kept = self._kept.setdefault(view.job.job_id, _Kept())
        self._kept.move_to_end(view.job.job_id)
        while len(self._kept) > _RENDERED:
            self._kept.popitem(last=False)
        version = (view.watch.curves.seq, len(view.watch.timeline), view.asked.step)
        is_due = kept.is_due(version, view.job.status.is_final)
        names = [name for name in PARTS if is_due or name not in _SLOW]
        # Tables of numbers are long for an event loop that answers agents meanwhile.
        made, took_s = await asyncio.to_thread(self._render, view, names)
        kept.parts = {**kept.parts, **made}
        if is_due:
            kept.version, kept.slow_at, kept.slow_took_s = version, time.monotonic(), took_s
        return {name: kept.parts[name] for name in PARTS}

    def _render(self, view: JobView, names: Sequence[str]) -> tuple[dict[str, Markup], float]:
        """The parts of these names, and the seconds that this thread computed."""
        began = time.thread_time()
        values = self._values(view, names)
        made = {name: Markup(self._pages.text(PARTS[name], **values)) for name in names}
        return made, time.thread_time() - began

    def _values(self, view: JobView, names: Sequence[str]) -> dict[str, Any]:
        address = job_address(view.job.name, view.job.job_id)
        timeline = view.watch.timeline
        charts = sections(view.watch.curves, f"{address}/rollouts") if "job-charts" in names else ()
        return {
            "view": view,
            "job": view.job,
            "address": address,
            "sections": charts if view.is_training else (),
            "epochs": epochs(timeline.steps(limit=STEPS)),
            "num_steps": len(timeline),
            "phases": timeline.phases[::-1],
            "packages": view.asked.packages[:CHECKPOINTS],
            "num_packages": len(view.asked.packages),
            "validated": timeline.validated,
            "rollouts_of": lambda finding: _rollouts_of(address, finding),
        }


#: The words of `ports.RolloutQuery` in the address of the list of rollouts.
_IN_ADDRESS = {"fault_code": "reason"}


def _rollouts_of(address: str, finding: Finding) -> str:
    """Where rollouts of a finding are listed; empty where none are more telling than others."""
    if not finding.rollouts:
        return ""
    # A step's figures are of the rollouts that it trained; a validation's of those begun at it.
    words = _IN_ADDRESS if "purpose" in finding.rollouts else {**_IN_ADDRESS, "step": "trained"}
    named = {words.get(name, name): value for name, value in finding.rollouts.items()}
    return f"{address}/rollouts?{urlencode(named)}"


# ── live ──────────────────────────────────────────────────────────────────────────────────────


class _LiveJob:
    """A job's overview as a view of the hub: one rendering for all who look.

    Reads as one who may read this job alone; each viewer's own right is asked by the stream.
    """

    def __init__(
        self, dashboard: Dashboard, watches: Watches, overview: Overview, job: Job
    ) -> None:
        self._dashboard = dashboard
        self._watches = watches
        self._overview = overview
        self._job_id = job.job_id
        self._reader = Principal(
            account_id=job.account_id,
            actions=frozenset({Action.READ}),
            job_ids=frozenset({job.job_id}),
            name="job page",
        )
        self.key = f"job {job.job_id}"

    async def render(self) -> tuple[Sequence[str], int]:
        """See `live.Render`."""
        view = await self._watches.view(self._reader, self._job_id)
        parts = await self._overview.parts(view)
        return [_partial(id, text) for id, text in parts.items()], view.newest

    async def news(self, seen: int) -> None:
        """See `live.News`. Returns after a while without an event too: a queue moves by itself."""
        await self._dashboard.rooms.browse.events(
            self._reader, self._job_id, after=seen, limit=1, wait_s=LOOK_S
        )


def _partial(id: str, text: str) -> str:
    """The content of an element, as htmx takes it among others."""
    return f'<hx-partial hx-target="#{id}" hx-swap="innerMorph">{text}</hx-partial>'
