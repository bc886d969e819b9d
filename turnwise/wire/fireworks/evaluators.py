"""Routes of evaluators: made, uploaded at a signed address, built, read."""

from __future__ import annotations

import dataclasses
from typing import Any

from fastapi import APIRouter, Depends, Request

from turnwise import errors
from turnwise.domain.access import Action
from turnwise.domain.evaluator import Evaluator, EvaluatorState
from turnwise.wire.fireworks.calls import Call, Caller, FireworksRooms, asked_of, json_body
from turnwise.wire.fireworks.faults import Code, Refused
from turnwise.wire.fireworks.fields import Fields
from turnwise.wire.fireworks.listing import masked, page
from turnwise.wire.fireworks.names import EVALUATORS, check_id, full_name, rfc3339
from turnwise.wire.fireworks.uploads import download_url, upload_urls

Json = dict[str, Any]

#: The names of what may be read at a signed address.
SOURCE, BUILD_LOG = "source.tar.gz", "build.log"

_FIELDS = {
    "entryPoint": "entry_point",
    "displayName": "display_name",
    "description": "description",
    "commitHash": "commit_hash",
    "requirements": "requirements",
    "defaultDataset": "default_dataset",
}
_NOT_HERE = {
    "criteria": "managed RFT requires an eval3 evaluator: upload a project with its pytest entry "
    "point, as `eval-protocol upload` does"
}
_CODES = {
    EvaluatorState.BUILDING: "OK",
    EvaluatorState.ACTIVE: "OK",
    EvaluatorState.BUILD_FAILED: "FAILED_PRECONDITION",
}


def evaluator_routes(rooms: FireworksRooms, caller: Caller) -> APIRouter:
    """Routes below /v1/accounts/{account}/evaluators, and evaluatorsV2 to make one."""
    routes = APIRouter(prefix="/v1/accounts/{account}")
    evaluators, who = rooms.evaluators, Depends(caller)
    _add_builds(routes, rooms, who)

    @routes.post("/evaluatorsV2")
    @routes.post("/evaluators")
    async def create(request: Request, call: Call = who) -> Json:
        call.principal.require_all(Action.MANAGE, "evaluators")
        given = Fields(await json_body(request))
        id = check_id("evaluator_id", given.text("evaluatorId"))
        evaluator = dataclasses.replace(
            Evaluator(account_id=call.principal.account_id, evaluator_id=id),
            created_by=call.principal.name,
            created_at=rooms.clock.now(),
            **dict[str, Any](_said(given.block("evaluator"))),
        )
        try:
            made = await evaluators.create(call.principal, evaluator)
        except errors.Conflict:
            raise Refused(Code.ALREADY_EXISTS, f"Evaluator '{id}' already exists") from None
        return evaluator_body(made, call.account)

    @routes.get("/evaluators")
    async def list_evaluators(request: Request, call: Call = who) -> Json:
        found = await evaluators.list(call.principal)
        bodies = [evaluator_body(each, call.account) for each in found]
        return page(EVALUATORS, bodies, asked_of(request))

    @routes.get("/evaluators/{id}")
    async def get(id: str, request: Request, call: Call = who) -> Json:
        body = evaluator_body(await evaluators.get(call.principal, id), call.account)
        return masked(body, asked_of(request).read_mask)

    @routes.patch("/evaluators/{id}")
    async def change(id: str, request: Request, call: Call = who) -> Json:
        call.principal.require_all(Action.MANAGE, "evaluators")
        said = _said(Fields(await json_body(request), "evaluator."))
        changed = await evaluators.change(call.principal, id, **said)
        return evaluator_body(changed, call.account)

    @routes.delete("/evaluators/{id}")
    async def delete(id: str, call: Call = who) -> Json:
        await evaluators.delete(call.principal, id)
        return {}

    return routes


def _add_builds(routes: APIRouter, rooms: FireworksRooms, who: Any) -> None:
    """The verbs, which come before the resource itself: its id could hold a colon."""
    evaluators = rooms.evaluators

    @routes.post("/evaluators/{id}:getUploadEndpoint")
    async def upload_endpoint(id: str, request: Request, call: Call = who) -> Json:
        call.principal.require_all(Action.MANAGE, "evaluators")
        await evaluators.get(call.principal, id)
        urls = upload_urls(rooms, call, EVALUATORS, id, await json_body(request))
        if len(urls) != 1:
            raise errors.InvalidInput(
                "filename_to_size", sorted(urls), "are several files", remedy="send one tar.gz"
            )
        return {"filenameToSignedUrls": urls}

    @routes.post("/evaluators/{id}:validateUpload")
    async def validate(id: str, call: Call = who) -> Json:
        await evaluators.build(call.principal, id)
        return {}

    @routes.get("/evaluators/{id}:getBuildLogEndpoint")
    async def build_log(id: str, call: Call = who) -> Json:
        await evaluators.get(call.principal, id)
        return {"buildLogSignedUri": download_url(rooms, call, EVALUATORS, id, BUILD_LOG)}

    @routes.get("/evaluators/{id}:getSourceCodeSignedUrl")
    async def source_code(id: str, call: Call = who) -> Json:
        if not (await evaluators.get(call.principal, id)).archive:
            raise Refused(Code.NOT_FOUND, f"Evaluator '{id}' has no source code: none was uploaded")
        url = download_url(rooms, call, EVALUATORS, id, SOURCE)
        return {"filenameToSignedUrls": {SOURCE: url}}


def _said(given: Fields) -> dict[str, str]:
    """The fields of an evaluator that are there."""
    given.refuse(_NOT_HERE)
    return {ours: given.text(name) for name, ours in _FIELDS.items() if given.has(name)}


def evaluator_body(evaluator: Evaluator, account: str) -> Json:
    """An evaluator; its state is text, which the client looks at."""
    return {
        "name": full_name(account, EVALUATORS, evaluator.evaluator_id),
        **{name: getattr(evaluator, ours) for name, ours in _FIELDS.items()},
        "state": evaluator.state.value,
        "status": {"code": _CODES[evaluator.state], "message": evaluator.message},
        "source": {"type": "TYPE_UPLOAD"},
        "encryptionState": "ENCRYPTION_STATE_PLAINTEXT",
        "createdBy": evaluator.created_by,
        "createTime": rfc3339(evaluator.created_at),
        "updateTime": rfc3339(evaluator.updated_at),
    }


async def active_evaluator(rooms: FireworksRooms, call: Call, id: str) -> Evaluator:
    """An evaluator that a job can use. Raises `Refused`."""
    try:
        found = await rooms.evaluators.get(call.principal, id)
    except errors.NotFound:
        raise Refused(Code.NOT_FOUND, f"Evaluator '{id}' not found in account") from None
    if found.state is not EvaluatorState.ACTIVE:
        reason = f": {found.message}" if found.message else ""
        raise Refused(Code.FAILED_PRECONDITION, f"Evaluator '{id}' is {found.state.value}{reason}")
    return found
