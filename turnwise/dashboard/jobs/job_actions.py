"""What a page does to a job: cancel, resume, delete; each asks once, by script or by a page."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Annotated

from fastapi import APIRouter, Depends, Form, Request, Response
from starlette.responses import HTMLResponse, RedirectResponse

from turnwise import errors
from turnwise.control.jobs import Jobs
from turnwise.dashboard.jobs.job_rows import job_address
from turnwise.dashboard.rooms import Dashboard
from turnwise.dashboard.session import safe_next
from turnwise.domain.access import Action, Principal
from turnwise.domain.job import Job


@dataclass(frozen=True, slots=True, kw_only=True)
class JobAction:
    """A button, the question behind it, and the call that answers yes."""

    label: str
    question: str  # about {name}
    consequence: str
    call: Callable[[Jobs, Principal, str], Awaitable[Job]]
    is_dangerous: bool = False


ACTIONS: Mapping[str, JobAction] = {
    "stop": JobAction(
        label="Cancel",
        question="Cancel job {name}?",
        consequence="The step under way is dropped; the model of the step before is its output. "
        "It can be resumed from its last checkpoint.",
        call=Jobs.stop,
        is_dangerous=True,
    ),
    "resume": JobAction(
        label="Resume",
        question="Resume job {name}?",
        consequence="It goes on from its last checkpoint as soon as there is a place.",
        call=Jobs.resume,
    ),
    "delete": JobAction(
        label="Delete",
        question="Delete job {name}?",
        consequence="Its events, metrics and rollouts are removed for good. The models that it "
        "registered stay.",
        call=Jobs.delete,
        is_dangerous=True,
    ),
}


def job_action_routes(dashboard: Dashboard) -> APIRouter:
    """POST /dashboard/jobs/{name}/{action}; GET shows the question."""
    routes = APIRouter(prefix="/dashboard/jobs")
    caller = Depends(dashboard.principal)
    jobs = dashboard.rooms.jobs

    def ask(
        request: Request, who: Principal, job: Job, verb: str, next: str, problem: str = ""
    ) -> HTMLResponse:
        return dashboard.pages.page(
            request,
            "confirm.html",
            principal=who,
            status=409 if problem else 200,
            title=ACTIONS[verb].question.format(name=job.name),
            text=ACTIONS[verb].consequence,
            label=ACTIONS[verb].label,
            is_dangerous=ACTIONS[verb].is_dangerous,
            action=f"{job_address(job.name, job.job_id)}/{verb}",
            next=next,
            back=next or job_address(job.name, job.job_id),
            problem=problem,
        )

    async def found(who: Principal, name: str) -> Job:
        job = await jobs.describe(who, name)
        who.require(Action.MANAGE, job_id=job.job_id)
        return job

    def add(verb: str) -> None:
        @routes.get(f"/{{name}}/{verb}")
        async def question(
            request: Request, name: str, next: str = "", who: Principal = caller
        ) -> HTMLResponse:
            return ask(request, who, await found(who, name), verb, _back(next))

        @routes.post(f"/{{name}}/{verb}")
        async def act(
            request: Request,
            name: str,
            confirmed: Annotated[str, Form()] = "",
            next: Annotated[str, Form()] = "",
            who: Principal = caller,
        ) -> Response:
            job, after = await found(who, name), _back(next)
            if not confirmed:
                return ask(request, who, job, verb, after)
            try:
                await ACTIONS[verb].call(jobs, who, job.job_id)
            except (errors.Conflict, errors.InvalidInput, errors.Corrupted) as error:
                return ask(request, who, job, verb, after, problem=str(error))
            gone = "/dashboard" if verb == "delete" else job_address(job.name, job.job_id)
            return RedirectResponse(after or gone, status_code=303)

    for verb in ACTIONS:
        add(verb)
    return routes


def _back(next: str) -> str:
    """Where the reader came from; empty where it did not say."""
    return safe_next(next) if next else ""
