"""The native API's routes to a job's tables."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request
from starlette.responses import StreamingResponse

from turnwise.control.exports import Exports, Format
from turnwise.domain.access import Principal
from turnwise.domain.rollout import Purpose, RolloutStatus
from turnwise.ports import RolloutQuery
from turnwise.wire.native.codec import MAX_PLACE

Caller = Callable[[Request], Awaitable[Principal]]


def export_routes(exports: Exports) -> Callable[[Caller], APIRouter]:
    """The routes, once it is known how a caller is verified."""

    def routes(principal: Caller) -> APIRouter:
        router = APIRouter(prefix="/api/v1/jobs")
        _add_tables(router, exports, principal)
        return router

    return routes


def _add_tables(router: APIRouter, exports: Exports, principal: Caller) -> None:
    caller = Depends(principal)

    @router.get("/{name}/export/metrics")
    async def metrics(
        name: str,
        format: Format = Format.JSON,
        metric: Annotated[list[str], Query()] = [],  # noqa: B006  FastAPI copies it
        who: Principal = caller,
    ) -> StreamingResponse:
        """A row per step; `metric`, which may be given often, is the beginning of a name."""
        pieces = await exports.metrics(who, name, format, metric)
        return StreamingResponse(pieces, media_type=format.media_type)

    @router.get("/{name}/export/rollouts")
    async def rollouts(
        name: str,
        format: Format = Format.JSON,
        step: Annotated[int | None, Query(ge=-1, le=MAX_PLACE)] = None,
        purpose: Purpose | None = None,
        status: RolloutStatus | None = None,
        who: Principal = caller,
    ) -> StreamingResponse:
        """A row per rollout; as JSON with its messages."""
        query = RolloutQuery(job_id=name, step=step, purpose=purpose, status=status)
        pieces = await exports.rollouts(who, query, format)
        return StreamingResponse(pieces, media_type=format.media_type)
