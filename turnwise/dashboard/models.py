"""Registered models: what there is, where it comes from, how to call it, and taking it away."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any
from urllib.parse import quote

from fastapi import APIRouter, Depends, Form, Query, Request, Response
from starlette.responses import HTMLResponse, RedirectResponse, StreamingResponse
from starlette.types import Receive, Scope, Send

from turnwise import errors
from turnwise.dashboard.jobs.job_form import as_yaml
from turnwise.dashboard.jobs.job_rows import job_address
from turnwise.dashboard.rooms import Dashboard, DashboardRooms
from turnwise.domain.access import Action, Principal
from turnwise.domain.event import EventKind
from turnwise.domain.rollout import Purpose
from turnwise.ports import Archive, JobQuery, JobSummary, ModelPackage

#: Groups of one page of the list, the newest versions of each, and versions of a group's page.
GROUPS, NEWEST, VERSIONS = 20, 5, 50
#: More jobs than the packages of a page come from.
_JOBS = 1000

_REWARD = "rollout/reward/mean"
_KINDS = ("adapter", "checkpoint")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelRow:
    """A version with what was measured of it. `job` is None for one that is gone, or never was."""

    package: ModelPackage
    job: JobSummary | None
    validation: Mapping[str, float] = field(default_factory=dict)

    @property
    def address(self) -> str:
        """Its page."""
        return model_address(self.package)

    @property
    def job_address(self) -> str:
        """The page of the job that made it."""
        return job_address(self.job.name, self.job.job_id) if self.job else ""

    @property
    def job_name(self) -> str:
        """What the job was called, also once it is deleted."""
        return (
            self.job.name if self.job else str(self.package.metadata.get("job", {}).get("name", ""))
        )

    @property
    def reward(self) -> float | None:
        """The mean reward of the step that made it."""
        return _number(self.package.metadata.get("metrics", {}), _REWARD)

    @property
    def validated(self) -> float | None:
        """The mean reward of its validation."""
        return _number(self.validation, "val/reward/mean")

    @property
    def success(self) -> float | None:
        """The share of its validation's prompts that one attempt solves."""
        return _number(self.validation, "val/reward/pass_at_1")

    @property
    def is_output(self) -> bool:
        """Whether its job ended with it."""
        return self.job is not None and self.job.output == self.package.name


@dataclass(frozen=True, slots=True)
class ModelGroup:
    """A group with its newest versions, newest first."""

    name: str
    count: int
    rows: tuple[ModelRow, ...]

    @property
    def address(self) -> str:
        """The page of all its versions."""
        return f"/dashboard/models/{quote(self.name)}"


def model_address(package: ModelPackage) -> str:
    """A version's page."""
    return f"/dashboard/models/{quote(package.group)}/{package.version}"


def _number(values: Mapping[str, Any], name: str) -> float | None:
    value = values.get(name)
    return float(value) if isinstance(value, int | float) else None


def model_routes(dashboard: Dashboard) -> APIRouter:
    """Routes below /dashboard/models."""
    routes = APIRouter(prefix="/dashboard/models")
    caller = Depends(dashboard.principal)
    rooms, pages = dashboard.rooms, dashboard.pages

    @routes.get("")
    async def groups(
        request: Request,
        kind: str = "adapter",
        name: str = "",
        skip: Annotated[int, Query(ge=0, le=10**9)] = 0,
        who: Principal = caller,
    ) -> HTMLResponse:
        if kind not in _KINDS:
            raise errors.InvalidInput(
                "kind", kind, "is not a choice", remedy="allowed: " + ", ".join(_KINDS)
            )
        found = _grouped(await rooms.registry.packages(who), kind, name)
        shown = list(found.items())[skip : skip + GROUPS]
        rows = await _rows(rooms, who, [each for _, its in shown for each in its[:NEWEST]])
        by_name = {row.package.name: row for row in rows}
        return pages.page(
            request,
            "models.html",
            principal=who,
            kind=kind,
            name=name,
            skip=skip,
            size=GROUPS,
            has_more=len(found) > skip + GROUPS,
            groups=[
                ModelGroup(group, len(its), tuple(by_name[each.name] for each in its[:NEWEST]))
                for group, its in shown
            ],
        )

    @routes.get("/{group}")
    async def group(
        request: Request, group: str, before: int | None = None, who: Principal = caller
    ) -> HTMLResponse:
        its = (await rooms.registry.packages(who, group=group))[::-1]
        if not its:
            await rooms.registry.group(who, group)
        wanted = [each for each in its if before is None or each.version < before]
        shown = await _rows(rooms, who, wanted[:VERSIONS])
        return pages.page(
            request,
            "model_group.html",
            principal=who,
            group=ModelGroup(group, len(its), tuple(shown)),
            before=before,
            older=wanted[VERSIONS - 1].version if len(wanted) > VERSIONS else None,
        )

    @routes.get("/{group}/{version}")
    async def version(
        request: Request, group: str, version: int, who: Principal = caller
    ) -> HTMLResponse:
        package = await rooms.registry.package(who, f"{group}/{version}")
        [row] = await _rows(rooms, who, [package])
        return pages.page(
            request,
            "model.html",
            principal=who,
            row=row,
            package=package,
            twin=await _twin(rooms, who, package),
            config=as_yaml(package.metadata.get("config", {})),
            call=_call(rooms.url, package.name),
            may_change=who.allows(Action.MANAGE, job_id=package.job_id),
        )

    _add_moves(routes, dashboard)
    return routes


def _add_moves(routes: APIRouter, dashboard: Dashboard) -> None:
    caller = Depends(dashboard.principal)
    rooms = dashboard.rooms

    @routes.get("/{group}/{version}/archive")
    async def archive(
        group: str, version: int, merged: bool = False, who: Principal = caller
    ) -> Response:
        """The package as a tar file: its PEFT folder, or a model folder with it merged in."""
        package = await rooms.registry.package(who, f"{group}/{version}")
        opened = await rooms.archives.open(package, merged=merged)
        name = f"{group}-{version}{'-merged' if merged else ''}.tar"
        try:
            return _Download(opened, await opened.size(), name)
        except BaseException:
            await opened.close()
            raise

    async def ask(
        request: Request, who: Principal, package: ModelPackage, problem: str = ""
    ) -> HTMLResponse:
        who.require(Action.MANAGE, job_id=package.job_id)
        address = model_address(package)
        return dashboard.pages.page(
            request,
            "confirm.html",
            principal=who,
            status=409 if problem else 200,
            title=f"Delete model {package.name}?",
            text="Its files are removed for good, unless another model is made of them. Its number "
            "is never given again.",
            label="Delete",
            is_dangerous=True,
            action=f"{address}/delete",
            next="",
            back=address,
            problem=problem,
        )

    @routes.get("/{group}/{version}/delete")
    async def question(
        request: Request, group: str, version: int, who: Principal = caller
    ) -> HTMLResponse:
        return await ask(request, who, await rooms.registry.package(who, f"{group}/{version}"))

    @routes.post("/{group}/{version}/delete")
    async def delete(
        request: Request,
        group: str,
        version: int,
        confirmed: Annotated[str, Form()] = "",
        who: Principal = caller,
    ) -> Response:
        package = await rooms.registry.package(who, f"{group}/{version}")
        if not confirmed:
            return await ask(request, who, package)
        try:
            await rooms.registry.delete(who, package.name)
        except errors.Conflict as error:
            return await ask(request, who, package, str(error))
        return RedirectResponse(f"/dashboard/models/{quote(group)}", status_code=303)


def _grouped(
    packages: Sequence[ModelPackage], kind: str, name: str
) -> dict[str, list[ModelPackage]]:
    """Versions by group, both newest first; `name` is a part of the group's, in any case."""
    found: dict[str, list[ModelPackage]] = {}
    for package in reversed(packages):
        if package.kind == kind and name.strip().lower() in package.group.lower():
            found.setdefault(package.group, []).append(package)
    return found


async def _rows(
    rooms: DashboardRooms, who: Principal, packages: Sequence[ModelPackage]
) -> list[ModelRow]:
    """With their jobs and validations; each job is asked once."""
    ids = frozenset(package.job_id for package in packages if package.job_id)
    its = JobQuery(account_id=who.account_id, job_ids=ids, limit=_JOBS)
    jobs = {job.job_id: job for job in await rooms.browse.job_page(who, its)} if ids else {}
    validations = {job_id: await _validations(rooms, who, job_id) for job_id in jobs}
    return [
        ModelRow(
            package=package,
            job=jobs.get(package.job_id),
            validation=validations.get(package.job_id, {}).get(package.step + 1, {}),
        )
        for package in packages
    ]


async def _validations(
    rooms: DashboardRooms, who: Principal, job_id: str
) -> dict[int, dict[str, float]]:
    """What a job's validations measured, by the number of steps done before."""
    found = await rooms.browse.events(who, job_id, kinds=[EventKind.EVALUATION])
    return {
        int(event.body["step"]): dict(event.body["values"])
        for event in found
        if event.body["purpose"] == Purpose.VALIDATION
    }


async def _twin(
    rooms: DashboardRooms, who: Principal, package: ModelPackage
) -> ModelPackage | None:
    """The same step's package of the other kind, if it has one."""
    if not package.job_id:
        return None
    try:
        return await rooms.registry.package(who, package.twin)
    except errors.NotFound:
        return None


def _call(url: str, name: str) -> str:
    """How to ask a registered model for a reply."""
    return (
        f"curl {url}/v1/chat/completions \\\n"
        '  -H "Authorization: Bearer $TURNWISE_API_KEY" \\\n'
        '  -H "Content-Type: application/json" \\\n'
        f'  -d \'{{"model": "{name}", "messages": [{{"role": "user", "content": "Hello"}}]}}\''
    )


class _Download(StreamingResponse):
    """An archive on its way; closed at the end, whoever ends it."""

    def __init__(self, archive: Archive, size: int, name: str) -> None:
        headers = {
            "content-length": str(size),
            "content-disposition": f'attachment; filename="{name}"',
        }
        super().__init__(archive.pieces(), media_type="application/x-tar", headers=headers)
        self._archive = archive

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self._archive.close()
