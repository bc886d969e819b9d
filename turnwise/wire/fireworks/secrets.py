"""Routes of secrets, which go in and never come out."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Depends, Request

from turnwise import errors
from turnwise.control.secrets import Secret
from turnwise.domain.access import Action
from turnwise.wire.fireworks.calls import Call, Caller, FireworksRooms, asked_of, json_body
from turnwise.wire.fireworks.faults import Code, Refused
from turnwise.wire.fireworks.listing import page
from turnwise.wire.fireworks.names import full_name, own_id, rfc3339

Json = dict[str, Any]

SECRETS = "secrets"


def secret_routes(rooms: FireworksRooms, caller: Caller) -> APIRouter:
    """Routes below /v1/accounts/{account}/secrets."""
    routes = APIRouter(prefix="/v1/accounts/{account}/secrets")
    secrets, who = rooms.secrets, Depends(caller)

    @routes.post("")
    async def create(request: Request, call: Call = who) -> Json:
        call.principal.require_all(Action.MANAGE, "secrets")
        given = await json_body(request)
        id = own_id("name", _text(given, "name"), call.account, SECRETS)
        key_name, value = _text(given, "keyName"), _text(given, "value")
        try:
            await secrets.create(call.principal, id, key_name, value)
        except errors.Conflict:
            raise Refused(Code.ALREADY_EXISTS, f"Secret '{id}' already exists") from None
        return _body(await secrets.get(call.principal, id), call.account)

    @routes.get("")
    async def list_secrets(request: Request, call: Call = who) -> Json:
        found = await secrets.list(call.principal)
        return page(SECRETS, [_body(each, call.account) for each in found], asked_of(request))

    @routes.get("/{id}")
    async def get(id: str, call: Call = who) -> Json:
        return _body(await secrets.get(call.principal, id), call.account)

    @routes.patch("/{id}")
    async def change(id: str, request: Request, call: Call = who) -> Json:
        call.principal.require_all(Action.MANAGE, "secrets")
        given = await json_body(request)
        key_name = _text(given, "keyName") if given.get("keyName") else ""
        changed = await secrets.change(
            call.principal, id, key_name=key_name, value=_text(given, "value")
        )
        return _body(changed, call.account)

    @routes.delete("/{id}")
    async def delete(id: str, call: Call = who) -> Json:
        await secrets.delete(call.principal, id)
        return {}

    return routes


def _text(given: Json, name: str) -> str:
    """A field's text. What is sent in its place is not repeated: it may be a secret."""
    value = given.get(name)
    if not isinstance(value, str):
        kind = type(value).__name__
        raise errors.InvalidInput(name, f"({kind})", "is not text", remedy="it is required")
    return value


def _body(secret: Secret, account: str) -> Json:
    return {
        "name": full_name(account, SECRETS, secret.secret_id),
        "keyName": secret.key_name,
        "createTime": rfc3339(secret.created_at),
        "updateTime": rfc3339(secret.updated_at),
    }
