"""An account's own hubs: named, versioned documents; this service reads those of data sets.

A data set's document says in which bucket its rows lie, as the sagemaker SDK writes it:
`{"DatasetS3Bucket": "rows", "DatasetS3Prefix": "train.jsonl", ...}`.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from turnwise import errors
from turnwise.control.json_text import read_json
from turnwise.domain.access import Action, Principal
from turnwise.domain.resource import Resource
from turnwise.ports import Clock, Resources

HUB, CONTENT = "hub", "hub-content"
DATA_SET = "DataSet"
_FIRST = "1.0.0"


@dataclass(frozen=True, slots=True, kw_only=True)
class Hub:
    """A hub. `fields` are what its maker said of it."""

    name: str
    created_at: float
    updated_at: float
    fields: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class HubContent:
    """One version of a document. `fields` are what its maker said, the document among them."""

    hub: str
    kind: str
    name: str
    version: str
    created_at: float
    updated_at: float
    fields: Mapping[str, Any]

    @property
    def number(self) -> tuple[int, ...]:
        """The version as numbers, by which versions are ordered."""
        return tuple(int(part) for part in self.version.split("."))

    @property
    def document(self) -> str:
        """JSON."""
        return str(self.fields["HubContentDocument"])


class Hubs:
    """The hubs of one store. Each call requires a principal."""

    def __init__(self, resources: Resources, clock: Clock) -> None:
        self._resources = resources
        self._clock = clock
        self._importing = asyncio.Lock()

    async def create(self, principal: Principal, name: str, fields: Mapping[str, Any]) -> Hub:
        """Raises `Conflict` if it is there."""
        principal.require_all(Action.MANAGE, "hubs")
        record = self._record(principal, HUB, name, fields)
        return _hub(await self._resources.create_resource(record))

    async def hub(self, principal: Principal, name: str) -> Hub:
        """Raises `NotFound`."""
        principal.require_all(Action.READ, "hubs")
        return _hub(await self._resources.resource(principal.account_id, HUB, name))

    async def hubs(self, principal: Principal) -> list[Hub]:
        """Oldest first."""
        principal.require_all(Action.READ, "hubs")
        return [_hub(each) for each in await self._resources.resources(principal.account_id, HUB)]

    async def update(self, principal: Principal, name: str, fields: Mapping[str, Any]) -> Hub:
        """Replace what is said of it, by key. Raises `NotFound`."""
        principal.require_all(Action.MANAGE, "hubs")
        hub = await self.hub(principal, name)
        record = self._record(principal, HUB, name, {**hub.fields, **fields})
        return _hub(await self._resources.change_resource(record))

    async def delete(self, principal: Principal, name: str) -> None:
        """Raises `NotFound`, and `Conflict` while something is in it."""
        principal.require_all(Action.MANAGE, "hubs")
        await self.hub(principal, name)
        async with self._importing:
            if held := await self._contents(principal, f"{name}/"):
                raise errors.Conflict(f"hub {name!r} holds {len(held)} contents; delete them first")
            await self._resources.delete_resource(principal.account_id, HUB, name)

    # ── contents ──────────────────────────────────────────────────────────────────────────────

    async def add(
        self,
        principal: Principal,
        hub: str,
        kind: str,
        name: str,
        version: str,
        fields: Mapping[str, Any],
    ) -> HubContent:
        """Keep one version of a document; without a version, the one after the newest.

        Raises `NotFound` without the hub, `Conflict` for a version that is there, `InvalidInput`
        for a document that is no JSON object or, of a data set, does not say where the rows are.
        """
        principal.require_all(Action.MANAGE, "hubs")
        await self.hub(principal, hub)
        _check_document(kind, str(fields["HubContentDocument"]))
        async with self._importing:
            if not version:
                newest = await self._versions(principal, hub, kind, name)
                version = f"{newest[-1].number[0] + 1}.0.0" if newest else _FIRST
            key = f"{hub}/{kind}/{name}/{version}"
            record = self._record(principal, CONTENT, key, fields)
            return _content(await self._resources.create_resource(record))

    async def content(
        self, principal: Principal, hub: str, kind: str, name: str, version: str = ""
    ) -> HubContent:
        """A version, or the newest. Raises `NotFound`."""
        found = await self.versions(principal, hub, kind, name)
        for content in reversed(found):
            if version in ("", content.version):
                return content
        raise errors.NotFound(kind, f"{hub}/{name}/{version}".rstrip("/"))

    async def versions(
        self, principal: Principal, hub: str, kind: str, name: str
    ) -> list[HubContent]:
        """All versions, the lowest first; none if there is no such content."""
        principal.require_all(Action.READ, "hubs")
        return await self._versions(principal, hub, kind, name)

    async def newest(self, principal: Principal, hub: str, kind: str) -> list[HubContent]:
        """The newest version of each content of a kind. Raises `NotFound` without the hub."""
        await self.hub(principal, hub)
        found: dict[str, HubContent] = {}
        for content in await self._contents(principal, f"{hub}/{kind}/"):
            if content.name not in found or content.number > found[content.name].number:
                found[content.name] = content
        return list(found.values())

    async def remove(
        self, principal: Principal, hub: str, kind: str, name: str, version: str
    ) -> HubContent:
        """Delete one version; as it was. Raises `NotFound`."""
        principal.require_all(Action.MANAGE, "hubs")
        content = await self.content(principal, hub, kind, name, version)
        key = f"{hub}/{kind}/{name}/{content.version}"
        await self._resources.delete_resource(principal.account_id, CONTENT, key)
        return content

    async def _versions(
        self, principal: Principal, hub: str, kind: str, name: str
    ) -> list[HubContent]:
        found = await self._contents(principal, f"{hub}/{kind}/{name}/")
        return sorted(found, key=lambda content: content.number)

    async def _contents(self, principal: Principal, prefix: str) -> list[HubContent]:
        records = await self._resources.resources(principal.account_id, CONTENT, prefix=prefix)
        return [_content(record) for record in records]

    def _record(
        self, principal: Principal, kind: str, name: str, fields: Mapping[str, Any]
    ) -> Resource:
        return Resource(
            account_id=principal.account_id,
            kind=kind,
            name=name,
            body=dict(fields),
            created_at=self._clock.now(),
        )


def rows_uri(content: HubContent) -> str:
    """Where the rows of a data set are."""
    said = json.loads(content.document)
    return f"s3://{said['DatasetS3Bucket']}/{said['DatasetS3Prefix']}"


def _check_document(kind: str, document: str) -> None:
    said = read_json("HubContentDocument", document)
    if not isinstance(said, dict):
        raise errors.InvalidInput("HubContentDocument", document, "must be a JSON object")
    for name in ("DatasetS3Bucket", "DatasetS3Prefix") if kind == DATA_SET else ():
        if not isinstance(said.get(name), str) or not said[name]:
            raise errors.InvalidInput(
                f"HubContentDocument.{name}",
                said.get(name),
                "must be text",
                remedy="a data set says where its rows are: DatasetS3Bucket, DatasetS3Prefix",
            )


def _hub(record: Resource) -> Hub:
    return Hub(
        name=record.name,
        created_at=record.created_at,
        updated_at=record.updated_at,
        fields=record.body,
    )


def _content(record: Resource) -> HubContent:
    hub, kind, name, version = record.name.split("/")
    return HubContent(
        hub=hub,
        kind=kind,
        name=name,
        version=version,
        created_at=record.created_at,
        updated_at=record.updated_at,
        fields=record.body,
    )
