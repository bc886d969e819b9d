"""Starting a job: by a form, by its job file, from another job, or from a registered model."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fastapi import APIRouter, Depends, Request, Response
from starlette.responses import HTMLResponse, RedirectResponse

from turnwise import errors
from turnwise.control.job_file import parse_job, read_text
from turnwise.dashboard.faults import status_of
from turnwise.dashboard.jobs.job_form import (
    FIELDS,
    Draft,
    FormField,
    as_yaml,
    draft_of,
    fields_of,
    fresh_name,
    short_job_file,
)
from turnwise.dashboard.jobs.job_rows import job_address
from turnwise.dashboard.rooms import Dashboard, DashboardRooms
from turnwise.domain.access import Action, Principal
from turnwise.domain.job import BASE, AgentKind, JobKind
from turnwise.ports import JobQuery, ModelPackage

Json = dict[str, Any]

#: Longer than any job file that a person wrote, and read in a fraction of a second.
MAX_CHARACTERS = 64 * 1024
#: The newest so many registered models are offered.
_OFFERED = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """What is wrong, and with which input; None where it is with none of the form."""

    text: str
    status: int
    field: FormField | None = None

    @classmethod
    def of(cls, error: errors.TurnwiseError, fields: Sequence[FormField]) -> Problem:
        """An error of a check, beside the input that it names."""
        inputs = {each.path: each for each in fields}
        found, text = inputs.get(_named(error)), str(error)
        if found is not None and isinstance(error, errors.InvalidInput):
            reason = "is needed" if error.value is None else error.reason
            text = reason + (
                f"; {error.remedy}" if error.remedy and error.value is not None else ""
            )
        return cls(field=found, text=text, status=status_of(error))


def _named(error: errors.TurnwiseError) -> str:
    """The setting that an error is about; empty where it names none."""
    if isinstance(error, errors.InvalidInput):
        return error.field.partition("[")[0]
    if isinstance(error, errors.NotFound) and error.kind == "agent":
        return "agent.name"
    is_taken = isinstance(error, errors.Conflict) and "exists already" in str(error)
    return "name" if is_taken else ""


def new_job_routes(dashboard: Dashboard) -> APIRouter:
    """GET and POST /dashboard/jobs/new, and the preview of what a form says."""
    routes = APIRouter(prefix="/dashboard/jobs/new")
    caller = Depends(dashboard.principal)
    rooms = dashboard.rooms

    async def page(
        request: Request,
        who: Principal,
        draft: Draft,
        *,
        text: str | None = None,
        problem: Problem | None = None,
        is_fine: bool = False,
    ) -> HTMLResponse:
        """The form; with `text`, the editor of the job file instead."""
        return dashboard.pages.page(
            request,
            "new_job.html",
            principal=who,
            status=problem.status if problem else 200,
            draft=draft,
            groups=FIELDS[draft.kind],
            offers=await _offers(rooms, who),
            rest=as_yaml(draft.rest),
            preview=as_yaml(draft.job_file()),
            text=text,
            problem=problem,
            is_fine=is_fine,
        )

    @routes.get("")
    async def form(request: Request, who: Principal = caller) -> HTMLResponse:
        _require(who)
        query = request.query_params
        kind = JobKind.EVALUATION if query.get("kind") == JobKind.EVALUATION else JobKind.TRAIN
        if query.get("from"):
            draft = await _from_job(rooms, who, query["from"])
        elif query.get("from_model"):
            draft = await _from_model(rooms, who, query["from_model"], kind)
        else:
            draft = Draft(kind=kind, values=_named_in(query))
        text = as_yaml(draft.job_file()) if query.get("as") == "yaml" else None
        return await page(request, who, draft, text=text)

    @routes.post("")
    async def start(request: Request, who: Principal = caller) -> Response:
        _require(who)
        given = await _given(request)
        wanted, text = given.get("do", "start"), given.get("job_file")
        draft = Draft()
        try:
            draft = await asyncio.to_thread(_draft, given)
            if wanted == "yaml":
                return await page(request, who, draft, text=as_yaml(draft.job_file()))
            if wanted == "form":
                return await page(request, who, draft)
            spec = parse_job(await _with_folders(rooms, draft.job_file()))
            if wanted != "start":
                return await page(request, who, draft, text=text, is_fine=True)
            job = await rooms.jobs.create(who, spec)
        except errors.TurnwiseError as error:
            inputs = [] if text is not None else fields_of(draft.kind)
            return await page(request, who, draft, text=text, problem=Problem.of(error, inputs))
        return RedirectResponse(job_address(job.name, job.job_id), status_code=303)

    @routes.post("/preview")
    async def preview(request: Request, who: Principal = caller) -> HTMLResponse:
        _require(who)
        draft = await asyncio.to_thread(_draft, await _given(request))
        return dashboard.pages.page(
            request, "job_preview.html", principal=who, preview=as_yaml(draft.job_file())
        )

    return routes


def _require(who: Principal) -> None:
    who.require_all(Action.MANAGE, "new jobs")


async def _given(request: Request) -> Mapping[str, str]:
    """The form's texts. Raises `InvalidInput` for one that nobody typed."""
    given = {
        name: value for name, value in (await request.form()).items() if isinstance(value, str)
    }
    for name, value in given.items():
        if len(value) > MAX_CHARACTERS:
            raise errors.InvalidInput(
                name, value, "is too long", remedy=f"use at most {MAX_CHARACTERS} characters"
            )
    return given


def _draft(given: Mapping[str, str]) -> Draft:
    """What was filled in. Raises `InvalidInput` for a job file that is none."""
    if "job_file" in given:
        return draft_of(_mapping(given["job_file"]))
    kind = JobKind.EVALUATION if given.get("kind") == JobKind.EVALUATION else JobKind.TRAIN
    values = {each.path: given.get(each.path, "") for each in fields_of(kind)}
    # Browsers send line ends of their own.
    rest = given.get("rest", "").replace("\r\n", "\n")
    return Draft(kind=kind, values=values, rest=_mapping(rest) if rest.strip() else {})


def _mapping(text: str) -> Mapping[str, Any]:
    data = read_text(text)
    if not isinstance(data, Mapping):
        raise errors.InvalidInput("job file", data, "is not a mapping of settings")
    return data


# ── what a form begins with ───────────────────────────────────────────────────────────────────


def _named_in(query: Mapping[str, str]) -> dict[str, str]:
    """What a page of an upload wants a job to use."""
    values = {"dataset": query.get("dataset", "")}
    if evaluator := query.get("evaluator"):
        values |= {"agent.kind": AgentKind.EVALUATOR.value, "agent.target": evaluator}
    return values


async def _from_job(rooms: DashboardRooms, who: Principal, name: str) -> Draft:
    """Another job's configuration, under a name of its own."""
    job = await rooms.jobs.describe(who, name)
    return await _with_name(rooms, who, draft_of(short_job_file(job.spec)), job.name)


async def _from_model(rooms: DashboardRooms, who: Principal, name: str, kind: JobKind) -> Draft:
    """The configuration of the job that made a model, beginning with it or evaluating it."""
    package = await rooms.registry.package(who, name)
    job_file = _recorded(package) | {"model": package.base_model}
    for setting in ("input_adapter", "resume_from", "output_group", "checkpoint_group"):
        job_file.pop(setting, None)
    if kind is JobKind.EVALUATION:
        kept = ("model", "agent", "prompt_column", "label_column", "rollout", "seed")
        its = {key: job_file[key] for key in kept if key in job_file}
        rows = job_file.get("validation_dataset") or job_file.get("dataset")
        its |= {"dataset": rows} if rows else {}
        evaluated = {"kind": kind.value, "evaluation": {"models": [BASE, package.name]}}
        return await _with_name(
            rooms, who, draft_of(its | evaluated), f"{package.group}-evaluation"
        )
    start = "resume_from" if package.kind == "checkpoint" else "input_adapter"
    made = package.metadata.get("job", {}).get("name", package.group)
    return await _with_name(rooms, who, draft_of(job_file | {start: package.name}), made)


def _recorded(package: ModelPackage) -> Json:
    """The job file kept with a model; nothing of an adapter that no job made."""
    config = package.metadata.get("config")
    if not config:
        return {}
    try:
        return short_job_file(parse_job(config))
    except errors.InvalidInput:  # of a version that knew other settings
        return {key: config[key] for key in ("dataset", "agent") if key in config}


async def _with_name(rooms: DashboardRooms, who: Principal, draft: Draft, like: str) -> Draft:
    stem = like.rstrip("0123456789").rstrip("-") or like
    alike = JobQuery(account_id=who.account_id, name=stem, limit=1000)
    taken = {job.name for job in await rooms.browse.job_page(who, alike)}
    return replace(draft, values={**draft.values, "name": fresh_name(like, taken)})


async def _with_folders(rooms: DashboardRooms, job_file: Json) -> Json:
    """The job file with a base model's folder in place of its name in the catalogue."""
    model = job_file.get("model")
    bases = await asyncio.to_thread(rooms.catalogue.models)
    folder = next((str(base.folder) for base in bases if base.name == model), None)
    return job_file if folder is None else job_file | {"model": folder}


async def _offers(rooms: DashboardRooms, who: Principal) -> dict[str, list[str]]:
    """What inputs suggest, by the name of the list."""
    packages = [each for each in await rooms.registry.packages(who) if each.pruned_at is None]
    newest = packages[::-1]
    names = {
        kind: [each.name for each in newest if each.kind == kind][:_OFFERED]
        for kind in ("adapter", "checkpoint")
    }
    return {
        "bases": [base.name for base in await asyncio.to_thread(rooms.catalogue.models)],
        "adapters": names["adapter"],
        "checkpoints": names["checkpoint"],
        "agents": [agent.name for agent in await rooms.agents.list(who)],
        "datasets": [each.uri for each in await rooms.datasets.list(who)],
        "evaluators": [each.evaluator_id for each in await rooms.evaluators.list(who)],
    }
