"""Routes of datasets: made, filled by a form or at signed addresses, listed and read."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Depends, Request

from turnwise import errors
from turnwise.control.named_datasets import DatasetState, NamedDataset, NamedDatasets, file_name
from turnwise.domain.access import Action
from turnwise.wire.fireworks.calls import Call, Caller, FireworksRooms, asked_of, json_body
from turnwise.wire.fireworks.faults import Code, Refused
from turnwise.wire.fireworks.fields import Fields
from turnwise.wire.fireworks.listing import masked, page
from turnwise.wire.fireworks.names import DATASETS, full_name, rfc3339
from turnwise.wire.fireworks.uploads import (
    MAX_FORM_BYTES,
    download_url,
    form_file,
    spooled,
    upload_urls,
)

Json = dict[str, Any]

#: What may be said of a dataset and is given back.
_KEPT = ("displayName", "format", "userUploaded", "evalProtocol", "evaluationResult")
_ELSEWHERE = "rows are uploaded here; use :upload or :getUploadEndpoint"
_NOT_HERE = dict.fromkeys(("externalUrl", "splitted", "transformed", "sourceJobName"), _ELSEWHERE)


def dataset_routes(rooms: FireworksRooms, caller: Caller) -> APIRouter:
    """Routes below /v1/accounts/{account}/datasets."""
    routes = APIRouter(prefix="/v1/accounts/{account}/datasets")
    datasets, who = rooms.datasets, Depends(caller)
    _add_uploads(routes, rooms, who)

    @routes.post("")
    async def create(request: Request, call: Call = who) -> Json:
        call.principal.require_all(Action.MANAGE, "datasets")
        given = await json_body(request)
        said = _said(given)
        id = Fields(given).text("datasetId")
        try:
            return dataset_body(await datasets.create(call.principal, id, said), call.account)
        except errors.Conflict:
            raise Refused(Code.ALREADY_EXISTS, f"Dataset '{id}' already exists") from None

    @routes.get("")
    async def list_datasets(request: Request, call: Call = who) -> Json:
        found = await datasets.list(call.principal)
        return page(
            DATASETS, [dataset_body(each, call.account) for each in found], asked_of(request)
        )

    @routes.get("/{id}")
    async def get(id: str, request: Request, call: Call = who) -> Json:
        body = dataset_body(await datasets.get(call.principal, id), call.account)
        return masked(body, asked_of(request).read_mask)

    @routes.patch("/{id}")
    async def change(id: str, request: Request, call: Call = who) -> Json:
        call.principal.require_all(Action.MANAGE, "datasets")
        said = _said({"dataset": await json_body(request)})
        return dataset_body(await datasets.change(call.principal, id, said), call.account)

    @routes.delete("/{id}")
    async def delete(id: str, call: Call = who) -> Json:
        await datasets.delete(call.principal, id)
        return {}

    return routes


def _add_uploads(routes: APIRouter, rooms: FireworksRooms, who: Any) -> None:
    """The verbs, which come before the resource itself: its id could hold a colon."""
    datasets = rooms.datasets

    @routes.post("/{id}:upload")
    async def upload(id: str, request: Request, call: Call = who) -> Json:
        call.principal.require_all(Action.MANAGE, "datasets")
        await datasets.get(call.principal, id)
        content_type = request.headers.get("content-type", "")
        async with spooled(request.stream(), MAX_FORM_BYTES) as form:
            with tempfile.NamedTemporaryFile(prefix="turnwise-upload-") as part:
                to = Path(part.name)
                name = await asyncio.to_thread(form_file, form, content_type, to)
                made = await datasets.put(call.principal, id, name, to, is_whole=True)
                size = to.stat().st_size
        return {
            "id": full_name(call.account, DATASETS, id),
            "object": "file",
            "bytes": size,
            "filename": name,
            "created_at": int(made.updated_at),
            "purpose": "fine-tune",
        }

    @routes.post("/{id}:getUploadEndpoint")
    async def upload_endpoint(id: str, request: Request, call: Call = who) -> Json:
        call.principal.require_all(Action.MANAGE, "datasets")
        await datasets.get(call.principal, id)
        given = await json_body(request)
        urls = upload_urls(rooms, call, DATASETS, id, given)
        for name in urls:
            file_name(name)  # refused here, before it is sent
        return {"filenameToSignedUrls": urls}

    @routes.post("/{id}:validateUpload")
    async def validate(id: str, call: Call = who) -> Json:
        await datasets.finish(call.principal, id)
        return {}

    @routes.get("/{id}:getDownloadEndpoint")
    async def download_endpoint(id: str, call: Call = who) -> Json:
        found = await datasets.get(call.principal, id)
        urls = {name: download_url(rooms, call, DATASETS, id, name) for name in found.files}
        return {"filenameToSignedUrls": urls}


def _said(given: Json) -> Json:
    """What is said of a dataset. Raises `Refused` for rows that are elsewhere."""
    Fields(given).refuse({"sourceDatasetId": _ELSEWHERE})
    dataset = given.get("dataset", {})
    if not isinstance(dataset, dict):
        raise errors.InvalidInput("dataset", dataset, "is not an object")
    Fields(dataset, "dataset.").refuse(_NOT_HERE)
    return {name: dataset[name] for name in _KEPT if name in dataset}


def dataset_body(dataset: NamedDataset, account: str) -> Json:
    """A dataset; its rows are counted here, whatever its maker said."""
    return dict(dataset.given) | {
        "name": full_name(account, DATASETS, dataset.dataset_id),
        "state": dataset.state.value,
        "status": {"code": "OK", "message": ""},
        "exampleCount": str(dataset.rows),
        "createTime": rfc3339(dataset.created_at),
        "updateTime": rfc3339(dataset.updated_at),
        "createdBy": dataset.created_by,
    }


async def ready_dataset(datasets: NamedDatasets, call: Call, id: str) -> NamedDataset:
    """A dataset that has its rows. Raises `Refused` for one that a job cannot read."""
    try:
        found = await datasets.get(call.principal, id)
    except errors.NotFound:
        raise Refused(Code.NOT_FOUND, f"Dataset '{id}' not found in account") from None
    if found.state is not DatasetState.READY:
        raise Refused(
            Code.FAILED_PRECONDITION,
            f"Dataset '{id}' is {found.state.value}: upload its rows, and call :validateUpload "
            "where they were put at signed addresses",
        )
    return found
