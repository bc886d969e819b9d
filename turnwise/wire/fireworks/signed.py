"""The routes behind signed addresses, which are the only ones that need no key."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import FileResponse

from turnwise import errors
from turnwise.domain.access import Action
from turnwise.wire.fireworks.calls import Call, FireworksRooms
from turnwise.wire.fireworks.evaluators import BUILD_LOG
from turnwise.wire.fireworks.names import DATASETS, EVALUATORS
from turnwise.wire.fireworks.uploads import (
    SIGNED,
    announced_size,
    check_range,
    exactly,
    signed_call,
    spooled,
)

Json = dict[str, Any]


def signed_routes(rooms: FireworksRooms) -> APIRouter:
    """PUT and GET of one file of a dataset or an evaluator."""
    routes = APIRouter(prefix=SIGNED)

    @routes.put("/{account}/{collection}/{id}/{name}")
    async def put(collection: str, id: str, name: str, request: Request) -> Json:
        size = announced_size(request)
        call = await signed_call(rooms, request, size)
        call.principal.require_all(Action.MANAGE, collection)
        check_range(request, size)
        pieces = exactly(request, size)
        if collection == EVALUATORS:
            await rooms.evaluators.put_archive(call.principal, id, pieces, size)
            return {}
        async with spooled(pieces, size) as file:
            await rooms.datasets.put(call.principal, id, name, file, is_whole=False)
        return {}

    @routes.get("/{account}/{collection}/{id}/{name}")
    async def get(collection: str, id: str, name: str, request: Request) -> Response:
        call = await signed_call(rooms, request, None)
        if collection == DATASETS:
            return FileResponse(await rooms.datasets.file(call.principal, id, name))
        if name == BUILD_LOG:
            log = await rooms.evaluators.build_log(call.principal, id)
            return Response(log, media_type="text/plain; charset=utf-8")
        return FileResponse(await _source(rooms, call, id), media_type="application/gzip")

    return routes


async def _source(rooms: FireworksRooms, call: Call, id: str) -> Path:
    archive = (await rooms.evaluators.get(call.principal, id)).archive
    if not archive:
        raise errors.NotFound("source code of evaluator", id)
    return rooms.blobs.path(archive)
