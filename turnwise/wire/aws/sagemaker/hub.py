"""Hubs: the public one shows the base models and their recipes; an account's own hold data sets."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from turnwise import errors
from turnwise.control.models.catalogue import BaseModel, Catalogue
from turnwise.control.models.hubs import DATA_SET, Hub, HubContent, Hubs, rows_uri
from turnwise.control.models.recipe_files import (
    EVALUATION,
    OVERRIDES,
    TEMPLATE,
    TRAINING,
    RecipeFiles,
)
from turnwise.domain.access import Action, Principal
from turnwise.wire.aws.arns import PUBLIC_HUB, HubContentArn
from turnwise.wire.aws.paging import page
from turnwise.wire.aws.sagemaker.tags import Tags
from turnwise.wire.aws.service import Call, Handler, Json

MODEL = "Model"
#: The kinds of documents that an own hub keeps.
_KEPT = (DATA_SET, "JsonDoc")
_HUB_ARN = re.compile(r"arn:[a-z0-9.-]+:sagemaker:([\w-]+):(\d{12}|aws):hub/(.+)")

#: By these the SDK knows what a model can be used for without reading its document.
_KEYWORDS = ("@recipe:finetuning_mtrl_lora", "@recipe:evaluation_mtrlevaluation")

_HUB_FIELDS = ("HubDescription", "HubDisplayName", "HubSearchKeywords", "S3StorageConfig")
_CONTENT_FIELDS = (
    "DocumentSchemaVersion",
    "HubContentDisplayName",
    "HubContentDescription",
    "HubContentMarkdown",
    "HubContentDocument",
    "SupportStatus",
    "HubContentSearchKeywords",
)
#: What a summary leaves out.
_LONG = ("HubContentMarkdown", "HubContentDocument", "LastModifiedTime", "HubName", "HubArn")


@dataclass(frozen=True, slots=True, kw_only=True)
class HubRooms:
    """What the handlers call."""

    hubs: Hubs
    catalogue: Catalogue
    recipes: RecipeFiles
    tags: Tags


def hub_handlers(rooms: HubRooms) -> dict[str, Handler]:
    """Hubs and their contents."""
    served = _Hub(rooms)
    return {
        "CreateHub": served.create,
        "DescribeHub": served.describe,
        "ListHubs": served.list,
        "UpdateHub": served.update,
        "DeleteHub": served.delete,
        "ImportHubContent": served.import_content,
        "DescribeHubContent": served.describe_content,
        "ListHubContents": served.list_contents,
        "ListHubContentVersions": served.list_versions,
        "DeleteHubContent": served.delete_content,
    }


async def dataset_uri(hubs: Hubs, principal: Principal, arn: str) -> str:
    """Where the rows of a data set are, by its ARN; the newest version if it names none.

    Raises `InvalidInput`, and `NotFound` for what is not of the caller's account.
    """
    place = HubContentArn.parse(arn, "DatasetArn")
    if place.kind != DATA_SET:
        raise errors.InvalidInput("DatasetArn", arn, "is not the ARN of a data set")
    found = await hubs.content(principal, place.hub, DATA_SET, place.name, place.version)
    if found.fields["HubContentArn"] != str(replace(place, version="")):  # another account's
        raise errors.NotFound(DATA_SET, arn)
    return rows_uri(found)


class _Hub:
    def __init__(self, rooms: HubRooms) -> None:
        self._hubs = rooms.hubs
        self._catalogue = rooms.catalogue
        self._recipes = rooms.recipes
        self._tags = rooms.tags

    # ── hubs ──────────────────────────────────────────────────────────────────────────────────

    async def create(self, call: Call, given: Json) -> Json:
        """A hub of the account's own."""
        name = given["HubName"]
        _refuse_public(name)
        await self._hubs.create(call.principal, name, _kept(given, _HUB_FIELDS))
        arn = _hub_arn(call, name)
        await self._tags.put(call, arn, given.get("Tags", []))
        return {"HubArn": arn}

    async def describe(self, call: Call, given: Json) -> Json:
        """A hub; `SageMakerPublicHub` holds this server's base models."""
        return await self._described(call, _hub_name(call, given))

    async def list(self, call: Call, given: Json) -> Json:
        """`SageMakerPublicHub`, and the account's own."""
        names = [PUBLIC_HUB]
        if call.principal.job_ids is None:  # own hubs are the whole account's
            names += [hub.name for hub in await self._hubs.hubs(call.principal)]
        found = [await self._described(call, name) for name in names]
        found = [
            {key: value for key, value in each.items() if key != "S3StorageConfig"}
            for each in found
            if given.get("NameContains", "").lower() in each["HubName"].lower()
            and _in_time(given, "CreationTime", each["CreationTime"])
            and _in_time(given, "LastModifiedTime", each["LastModifiedTime"])
        ]
        by = {"CreationTime": "CreationTime", "HubStatus": "HubStatus"}
        shown, token = page(_sorted(found, given, by, "HubName"), given, default=100)
        return {"HubSummaries": shown, "NextToken": token}

    async def update(self, call: Call, given: Json) -> Json:
        """Words about a hub of the account's own."""
        name = _hub_name(call, given)
        _refuse_public(name)
        await self._hubs.update(call.principal, name, _kept(given, _HUB_FIELDS))
        return {"HubArn": _hub_arn(call, name)}

    async def delete(self, call: Call, given: Json) -> Json:
        """A hub of the account's own, once it is empty."""
        name = _hub_name(call, given)
        _refuse_public(name)
        await self._hubs.delete(call.principal, name)
        await self._tags.drop(call, _hub_arn(call, name))
        return {}

    async def _described(self, call: Call, name: str) -> Json:
        if name == PUBLIC_HUB:
            call.principal.require(Action.READ)
            about = "The base models of this server"
            hub = Hub(name=name, created_at=0.0, updated_at=0.0, fields={"HubDescription": about})
        else:
            hub = await self._hubs.hub(call.principal, name)
        return {
            "HubName": hub.name,
            "HubArn": _hub_arn(call, hub.name),
            "HubStatus": "InService",
            "CreationTime": hub.created_at,
            "LastModifiedTime": hub.updated_at,
            **hub.fields,
        }

    # ── contents ──────────────────────────────────────────────────────────────────────────────

    async def import_content(self, call: Call, given: Json) -> Json:
        """Data sets and JSON documents, into a hub of the account's own; not models."""
        hub, kind = _hub_name(call, given), given["HubContentType"]
        _refuse_public(hub)
        if kind not in _KEPT:
            raise errors.InvalidInput(
                "HubContentType",
                kind,
                f"is not kept here, only {' and '.join(_KEPT)}",
                remedy="`turnwise models add-base FOLDER --name NAME` adds a base model",
            )
        name = given["HubContentName"]
        arn = HubContentArn(
            region=call.region, owner=call.account.number, hub=hub, kind=kind, name=name
        )
        content = await self._hubs.add(
            call.principal,
            hub,
            kind,
            name,
            given.get("HubContentVersion", ""),
            _kept(given, _CONTENT_FIELDS) | {"HubContentArn": str(arn)},
        )
        described = _content_of(call, content)
        await self._tags.put(call, described["HubContentArn"], given.get("Tags", []))
        return {name: described[name] for name in ("HubArn", "HubContentArn")}

    async def describe_content(self, call: Call, given: Json) -> Json:
        """A content; of a base model its recipes, with the S3 URIs of their defaults."""
        hub, kind, name = _hub_name(call, given), given["HubContentType"], given["HubContentName"]
        version = given.get("HubContentVersion", "")
        if hub != PUBLIC_HUB:
            await self._hubs.hub(call.principal, hub)
            found = await self._hubs.content(call.principal, hub, kind, name, version)
            return _content_of(call, found)
        call.principal.require(Action.READ)
        if kind != MODEL:
            raise errors.NotFound(kind, name)
        model = await asyncio.to_thread(self._catalogue.model, name)
        if version not in ("", model.version):
            raise errors.NotFound("base model", f"{name} {version}")
        return self._model(call, model)

    async def list_contents(self, call: Call, given: Json) -> Json:
        """A hub's contents of one kind, each in its newest version."""
        hub, kind = _hub_name(call, given), given["HubContentType"]
        if hub != PUBLIC_HUB:
            own = await self._hubs.newest(call.principal, hub, kind)
            return _listed((_content_of(call, each) for each in own), given)
        call.principal.require(Action.READ)
        models = await asyncio.to_thread(self._catalogue.models) if kind == MODEL else []
        return _listed((self._model(call, each) for each in models), given)

    async def list_versions(self, call: Call, given: Json) -> Json:
        """The versions of a content; a base model has one."""
        hub, kind, name = _hub_name(call, given), given["HubContentType"], given["HubContentName"]
        if hub == PUBLIC_HUB:
            one = await self.describe_content(
                call, {"HubName": hub, "HubContentType": kind, "HubContentName": name}
            )
            return _listed([one], given)
        await self._hubs.hub(call.principal, hub)
        found = await self._hubs.versions(call.principal, hub, kind, name)
        if not found:
            raise errors.NotFound(kind, name)
        least = tuple(int(part) for part in given.get("MinVersion", "0").split("."))
        return _listed((_content_of(call, each) for each in found if each.number >= least), given)

    async def delete_content(self, call: Call, given: Json) -> Json:
        """One version of a content of the account's own."""
        hub = _hub_name(call, given)
        _refuse_public(hub)
        removed = await self._hubs.remove(
            call.principal,
            hub,
            given["HubContentType"],
            given["HubContentName"],
            given["HubContentVersion"],
        )
        await self._tags.drop(call, _content_of(call, removed)["HubContentArn"])
        return {}

    def _model(self, call: Call, model: BaseModel) -> Json:
        """A base model as the hub's content."""
        arn = HubContentArn(region=call.region, kind=MODEL, name=model.name, version=model.version)
        return {
            "HubContentName": model.name,
            "HubContentArn": str(arn),
            "HubContentVersion": model.version,
            "HubContentType": MODEL,
            "DocumentSchemaVersion": "2.0.0",
            "HubName": PUBLIC_HUB,
            "HubArn": _hub_arn(call, PUBLIC_HUB),
            "HubContentDisplayName": model.name,
            "HubContentDescription": f"Base model {model.name}",
            "HubContentDocument": json.dumps(self._document(model)),
            "HubContentSearchKeywords": list(_KEYWORDS),
            "HubContentStatus": "Available",
            "SupportStatus": "Supported",
            "CreationTime": model.folder.stat().st_mtime,
        }

    def _document(self, model: BaseModel) -> Json:
        return {
            "GatedBucket": False,
            "RecipeCollection": [
                self._recipe(model, TRAINING)
                | {
                    "Name": f"{model.name}-mtrl-lora",
                    "DisplayName": f"Multi-turn reinforcement learning of {model.name} with LoRA",
                    "Type": "FineTuning",
                    "CustomizationTechnique": "MTRL",
                    "Peft": "LORA",
                },
                self._recipe(model, EVALUATION)
                | {
                    "Name": f"{model.name}-mtrl-evaluation",
                    "DisplayName": f"Multi-turn evaluation of {model.name}",
                    "Type": "Evaluation",
                    "EvaluationType": "MTRLEvaluation",
                },
            ],
        }

    def _recipe(self, model: BaseModel, file: str) -> Json:
        """What both recipes of a model say."""
        recipe = {
            "SmtjRecipeTemplateS3Uri": self._recipes.uri(model, file + TEMPLATE),
            "SmtjOverrideParamsS3Uri": self._recipes.uri(model, file + OVERRIDES),
            "IsSubscriptionModel": False,
        }
        if thousands := model.sequence_length // 1024:  # the SDK reads no other unit
            recipe["SequenceLength"] = f"{thousands}K"
        return recipe


# ── names and lists ───────────────────────────────────────────────────────────────────────────


def _hub_name(call: Call, given: Json) -> str:
    """A hub's name, given as it is or as an ARN of the account, or of the public hub."""
    text: str = given["HubName"]
    found = _HUB_ARN.fullmatch(text)
    if found is None:
        return text
    owner = "aws" if found[3] == PUBLIC_HUB else call.account.number
    if (found[1], found[2]) != (call.region, owner):
        raise errors.NotFound("hub", text)
    return found[3]


def _hub_arn(call: Call, name: str) -> str:
    owner = "aws" if name == PUBLIC_HUB else call.account.number
    return f"arn:aws:sagemaker:{call.region}:{owner}:hub/{name}"


def _refuse_public(name: str) -> None:
    if name == PUBLIC_HUB:
        raise errors.Denied(
            f"hub {PUBLIC_HUB} is the server's own: `turnwise models add-base FOLDER --name NAME` "
            "adds a base model"
        )


def _content_of(call: Call, content: HubContent) -> Json:
    return {
        "HubContentName": content.name,
        "HubContentVersion": content.version,
        "HubContentType": content.kind,
        "HubName": content.hub,
        "HubArn": _hub_arn(call, content.hub),
        "HubContentStatus": "Available",
        "CreationTime": content.created_at,
        "LastModifiedTime": content.updated_at,
        **content.fields,
        "HubContentArn": f"{content.fields['HubContentArn']}/{content.version}",
    }


def _kept(given: Json, names: Iterable[str]) -> Json:
    return {name: given[name] for name in names if name in given}


def _listed(described: Iterable[Json], given: Json) -> Json:
    """A page of summaries of these contents, filtered and sorted as asked."""
    found = [
        {name: value for name, value in each.items() if name not in _LONG}
        for each in described
        if given.get("NameContains", "").lower() in each["HubContentName"].lower()
        and _in_time(given, "CreationTime", each["CreationTime"])
    ]
    by = {"CreationTime": "CreationTime", "HubContentStatus": "HubContentStatus"}
    found = _sorted(found, given, by, "HubContentName")
    shown, token = page(found, given, default=100)
    return {"HubContentSummaries": shown, "NextToken": token}


def _in_time(given: Json, name: str, at: float) -> bool:
    after, before = given.get(f"{name}After"), given.get(f"{name}Before")
    return (after is None or at > after) and (before is None or at < before)


def _sorted(found: list[Json], given: Json, by: Mapping[str, str], otherwise: str) -> list[Json]:
    member = by.get(given.get("SortBy", ""), otherwise)

    def key(item: Json) -> tuple[Any, ...]:
        version = item.get("HubContentVersion", "0")
        return item[member], item[otherwise], [int(part) for part in version.split(".")]

    return sorted(found, key=key, reverse=given.get("SortOrder") == "Descending")
