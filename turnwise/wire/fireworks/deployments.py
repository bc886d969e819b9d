"""Routes of deployments: further names that models answer by.

Every model of this server answers whoever may ask it, without a deployment. So one is ready at
once, takes no accelerator, and is there for clients that ask for a model by its deployment's name.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import APIRouter, Depends, Request

from turnwise import errors
from turnwise.domain.access import Action
from turnwise.domain.resource import Resource
from turnwise.ports import Resources
from turnwise.system import random_letters
from turnwise.wire.fireworks.calls import Call, Caller, FireworksRooms, asked_of, json_body
from turnwise.wire.fireworks.faults import Code, Refused
from turnwise.wire.fireworks.fields import Fields
from turnwise.wire.fireworks.listing import masked, page
from turnwise.wire.fireworks.names import DEPLOYMENTS, check_id, full_name, rfc3339
from turnwise.wire.fireworks.starting import model_name

Json = dict[str, Any]

KIND = "fireworks-deployment"  # of the records

#: Finds the full name of a deployment's model: (account id, deployment id). Raises `NotFound`.
FindDeployed = Callable[[str, str], Awaitable[str]]


def find_deployed(resources: Resources) -> FindDeployed:
    """What finds the models of deployments among those records."""

    async def find(account_id: str, id: str) -> str:
        return str((await resources.resource(account_id, KIND, id)).body["model"])

    return find


def deployment_routes(rooms: FireworksRooms, caller: Caller) -> APIRouter:
    """Routes below /v1/accounts/{account}/deployments."""
    routes = APIRouter(prefix=f"/v1/accounts/{{account}}/{DEPLOYMENTS}")
    resources, who = rooms.resources, Depends(caller)

    @routes.post("")
    async def create(request: Request, call: Call = who) -> Json:
        call.principal.require_all(Action.MANAGE, DEPLOYMENTS)
        asked_id = request.query_params.get("deploymentId", "")
        id = check_id("deployment_id", asked_id or random_letters(8))
        given = Fields(await json_body(request))
        model = await model_name(rooms, call, "base_model", given.text("baseModel"))
        record = Resource(
            account_id=call.principal.account_id,
            kind=KIND,
            name=id,
            body={
                "model": model,
                "display_name": given.text("displayName"),
                "created_by": call.principal.name,
            },
            created_at=rooms.clock.now(),
        )
        try:
            return _body(await resources.create_resource(record), call.account)
        except errors.Conflict:
            raise Refused(Code.ALREADY_EXISTS, f"Deployment '{id}' already exists") from None

    @routes.get("")
    async def list_deployments(request: Request, call: Call = who) -> Json:
        call.principal.require_all(Action.READ, DEPLOYMENTS)
        found = await resources.resources(call.principal.account_id, KIND)
        bodies = [_body(each, call.account) for each in found]
        return page(DEPLOYMENTS, bodies, asked_of(request))

    @routes.get("/{id}")
    async def get(id: str, request: Request, call: Call = who) -> Json:
        call.principal.require_all(Action.READ, DEPLOYMENTS)
        found = await resources.resource(call.principal.account_id, KIND, id)
        return masked(_body(found, call.account), asked_of(request).read_mask)

    @routes.delete("/{id}")
    async def delete(id: str, call: Call = who) -> Json:
        call.principal.require_all(Action.MANAGE, DEPLOYMENTS)
        await resources.delete_resource(call.principal.account_id, KIND, id)
        return {}

    return routes


def _body(record: Resource, account: str) -> Json:
    at = rfc3339(record.created_at)
    return {
        "name": full_name(account, DEPLOYMENTS, record.name),
        "displayName": record.body["display_name"],
        "baseModel": record.body["model"],
        "state": "READY",
        "status": {"code": "OK", "message": "the model answers without an accelerator of its own"},
        "createTime": at,
        "updateTime": at,
        "createdBy": record.body["created_by"],
    }
