"""The page from which a job's metrics and rollouts are taken away as files."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request
from starlette.responses import HTMLResponse, StreamingResponse

from turnwise import errors
from turnwise.control.exports import Exports, Format
from turnwise.dashboard.forms import choice, whole
from turnwise.dashboard.rooms import Dashboard
from turnwise.domain.access import Principal
from turnwise.domain.job import JobKind
from turnwise.domain.metrics import metric
from turnwise.domain.rollout import Purpose, RolloutStatus
from turnwise.ports import RolloutQuery


def export_routes(dashboard: Dashboard) -> APIRouter:
    """`/dashboard/jobs/{name}/export` and the files below it."""
    routes = APIRouter(prefix="/dashboard/jobs/{name}/export")
    caller = Depends(dashboard.principal)
    rooms = dashboard.rooms
    exports = Exports(rooms.browse)

    @routes.get("")
    async def page(request: Request, name: str, who: Principal = caller) -> HTMLResponse:
        job = await rooms.jobs.describe(who, name)
        curves = await rooms.browse.metrics(who, name)
        return dashboard.pages.page(
            request,
            "export.html",
            principal=who,
            job=job,
            tab="export",
            metrics=[(each, _definition(each)) for each in curves],
            formats=list(Format),
            purposes=list(Purpose),
            statuses=list(RolloutStatus),
            has_results=job.spec.kind is JobKind.EVALUATION and job.status.is_final,
            url=rooms.url,
        )

    @routes.get("/metrics")
    async def metrics(
        name: str,
        format: Format = Format.CSV,
        metric: Annotated[list[str], Query()] = [],  # noqa: B006  FastAPI copies it
        who: Principal = caller,
    ) -> StreamingResponse:
        job = await rooms.jobs.describe(who, name)
        pieces = await exports.metrics(who, name, format, metric)
        return _file(pieces, f"{job.name}-metrics", format)

    @routes.get("/rollouts")
    async def rollouts(
        name: str,
        format: Format = Format.CSV,
        step: str = "",
        purpose: str = "",
        status: str = "",
        who: Principal = caller,
    ) -> StreamingResponse:
        job = await rooms.jobs.describe(who, name)
        query = RolloutQuery(
            job_id=name,
            step=whole(step, "step"),
            purpose=choice(Purpose, purpose, "purpose"),
            status=choice(RolloutStatus, status, "status"),
        )
        pieces = await exports.rollouts(who, query, format)
        return _file(pieces, f"{job.name}-rollouts", format)

    @routes.get("/results")
    async def results(
        name: str, format: Format = Format.CSV, who: Principal = caller
    ) -> StreamingResponse:
        """An evaluation's own files."""
        job = await rooms.jobs.describe(who, name)
        if format is Format.PARQUET:
            raise errors.InvalidInput("format", format.value, "is not one of results: csv, json")
        read = rooms.results.table if format is Format.CSV else rooms.results.document
        body = await read(who, name)
        return _file(_whole(body), f"{job.name}-results", format)

    return routes


def _definition(name: str) -> str:
    its = metric(name)
    return f"{its.definition} ({its.unit})"


async def _whole(body: bytes) -> AsyncIterator[bytes]:
    yield body


def _file(pieces: AsyncIterator[bytes], name: str, format: Format) -> StreamingResponse:
    headers = {"content-disposition": f'attachment; filename="{name}.{format.value}"'}
    return StreamingResponse(pieces, media_type=format.media_type, headers=headers)
