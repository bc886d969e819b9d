"""What a job starts from, by the name that its request gives: a base model, or an adapter."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from turnwise import errors
from turnwise.control.lineage import adapter_folder
from turnwise.control.models.catalogue import BaseModel, Catalogue
from turnwise.modeling.adapter_config import read_config
from turnwise.ports import ModelPackage
from turnwise.wire.fireworks.calls import Call, FireworksRooms
from turnwise.wire.fireworks.faults import Code, Refused
from turnwise.wire.fireworks.job_request import JobRequest
from turnwise.wire.fireworks.names import MODELS, PUBLIC, full_name, split

Json = dict[str, Any]

#: Tokens that a model reads and writes where its folder is not one of the catalogue.
DEFAULT_LENGTH = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """The base model's folder, the most tokens it reads and writes, and the adapter with its shape.

    `adapter` is the name of a registered model, "" to start from the base model alone.
    """

    model: str
    max_length: int
    adapter: str = ""
    lora: Json | None = None


async def start_of(rooms: FireworksRooms, call: Call, asked: JobRequest) -> Start:
    """Find what a job starts from. Raises `Refused`, `InvalidInput`."""
    if asked.base_model:
        base = await _base(rooms, call, asked.base_model)
        return Start(model=str(base.folder), max_length=base.sequence_length)
    package = await _adapter(rooms, call, asked.warm_start_from)
    known = await asyncio.to_thread(rooms.catalogue.of_folder, package.base_model)
    return Start(
        model=package.base_model,
        max_length=known.sequence_length if known else DEFAULT_LENGTH,
        adapter=package.name,
        lora=await asyncio.to_thread(_shape, package),
    )


async def model_name(rooms: FireworksRooms, call: Call, field: str, name: str) -> str:
    """The full name of the base model or the adapter that a field names. Raises `Refused`."""
    account, id = split(field, name, MODELS)
    if account in ("", call.account) and await adapter_named(rooms, call, id):
        return full_name(call.account, MODELS, id)
    if account in ("", PUBLIC) and await base_named(rooms.catalogue, id):
        return full_name(PUBLIC, MODELS, id)
    raise Refused(
        Code.NOT_FOUND,
        f"Model '{name}' not found; GET /v1/accounts/{call.account}/models and "
        f"/v1/accounts/{PUBLIC}/models list them",
    )


async def _base(rooms: FireworksRooms, call: Call, name: str) -> BaseModel:
    account, id = split("training_config.base_model", name, MODELS)
    if account in ("", PUBLIC, call.account) and (base := await base_named(rooms.catalogue, id)):
        return base
    if account in ("", call.account) and await adapter_named(rooms, call, id):
        raise Refused(
            Code.INVALID_ARGUMENT,
            f"training_config.base_model: {name} is not of kind base_model, but HF_PEFT_ADDON; "
            "send it as warm_start_from",
        )
    raise Refused(
        Code.NOT_FOUND,
        f"Model '{name}' not found; GET /v1/accounts/{PUBLIC}/models lists this server's base "
        "models",
    )


async def _adapter(rooms: FireworksRooms, call: Call, name: str) -> ModelPackage:
    account, id = split("training_config.warm_start_from", name, MODELS)
    if account in ("", call.account) and (package := await adapter_named(rooms, call, id)):
        return package
    if account in ("", PUBLIC, call.account) and await base_named(rooms.catalogue, id):
        raise Refused(
            Code.INVALID_ARGUMENT,
            f"training_config.warm_start_from: {name} is not of kind HF_PEFT_ADDON, but "
            "HF_BASE_MODEL; send it as base_model",
        )
    raise Refused(
        Code.NOT_FOUND,
        f"Model '{name}' not found; GET /v1/accounts/{call.account}/models lists the account's",
    )


async def base_named(catalogue: Catalogue, id: str) -> BaseModel | None:
    """This server's base model of that name, if there is one."""
    try:
        return await asyncio.to_thread(catalogue.model, id)
    except errors.NotFound:
        return None


async def adapter_named(rooms: FireworksRooms, call: Call, id: str) -> ModelPackage | None:
    """The newest adapter of that group, if there is one."""
    try:
        package = await rooms.browse.package(call.principal, id)
    except errors.NotFound:
        return None
    return package if package.kind == "adapter" and package.group == id else None


def _shape(package: ModelPackage) -> Json:
    """The `lora` block of an adapter. Blocks."""
    config = read_config(Path(adapter_folder(package)))
    return {
        "rank": config["r"],
        "alpha": config["lora_alpha"],
        "target_modules": sorted(config["target_modules"]),
    }
