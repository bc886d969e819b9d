"""Routes of models: this server's base models, and the account's adapters."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter, Depends, Request

from turnwise import errors
from turnwise.control.models.catalogue import BaseModel
from turnwise.domain.access import Action
from turnwise.ports import ModelPackage
from turnwise.wire.fireworks.calls import Call, FireworksRooms, asked_of, open_caller
from turnwise.wire.fireworks.listing import masked, page
from turnwise.wire.fireworks.names import JOBS, MODELS, PUBLIC, full_name, rfc3339
from turnwise.wire.fireworks.starting import adapter_named, base_named

Json = dict[str, Any]


def model_routes(rooms: FireworksRooms) -> APIRouter:
    """Routes below /v1/accounts/{account}/models; base models are of the account `fireworks`."""
    routes = APIRouter(prefix="/v1/accounts/{account}/models")
    who = Depends(open_caller(rooms, may_be_public=True))

    @routes.get("")
    async def list_models(account: str, request: Request, call: Call = who) -> Json:
        call.principal.require(Action.READ)
        if account == PUBLIC:
            found = await asyncio.to_thread(rooms.catalogue.models)
            return page(MODELS, [_base_body(each) for each in found], asked_of(request))
        packages = await rooms.browse.packages(call.principal)
        bodies = [_adapter_body(each, call.account) for each in _newest(packages)]
        return page(MODELS, bodies, asked_of(request))

    @routes.get("/{id}")
    async def get(account: str, id: str, request: Request, call: Call = who) -> Json:
        call.principal.require(Action.READ)
        body: Json | None = None
        if account == PUBLIC and (base := await base_named(rooms.catalogue, id)):
            body = _base_body(base)
        elif account == call.account and (package := await adapter_named(rooms, call, id)):
            body = _adapter_body(package, account)
        if body is None:
            raise errors.NotFound("model", full_name(account, MODELS, id))
        return masked(body, asked_of(request).read_mask)

    return routes


def _newest(packages: Sequence[ModelPackage]) -> list[ModelPackage]:
    """The newest adapter of each group."""
    return list({each.group: each for each in packages if each.kind == "adapter"}.values())


def _base_body(base: BaseModel) -> Json:
    return {
        "name": full_name(PUBLIC, MODELS, base.name),
        "displayName": base.name,
        "kind": "HF_BASE_MODEL",
        "state": "READY",
        "contextLength": base.sequence_length,
        "trainingContextLength": base.sequence_length,
        "supportsLora": True,
        "tunable": True,
        "rlTunable": True,
        "public": True,
    }


def _adapter_body(package: ModelPackage, account: str) -> Json:
    lora = package.metadata.get("config", {}).get("lora", {})
    job = package.metadata.get("job", {}).get("name", "")
    return {
        "name": full_name(account, MODELS, package.group),
        "displayName": package.group,
        "description": f"version {package.version}, after step {package.step}",
        "kind": "HF_PEFT_ADDON",
        "state": "READY",
        "createTime": rfc3339(package.created_at),
        "peftDetails": {
            "baseModel": full_name(PUBLIC, MODELS, package.base_model.rpartition("/")[2]),
            "r": lora.get("rank", 0),
            "targetModules": list(lora.get("target_modules", ())),
        },
        "fineTuningJob": full_name(account, JOBS, job) if job else "",
    }
