"""The registered models of an account as things to manage: groups, notes on versions, own adapters.

A package is immutable; what is said about it later (approval, properties) is kept beside it, under
its id. A group is there once it is made, or once a job has registered something in it.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import turnwise
from turnwise import errors
from turnwise.control.models.catalogue import BaseModel, Catalogue
from turnwise.control.objects.locations import parse_location
from turnwise.domain.access import Action, Principal
from turnwise.domain.resource import Resource
from turnwise.modeling.adapter_config import (
    CONFIG_FILE,
    TENSORS_FILE,
    check_adapter,
    read_config,
)
from turnwise.modeling.fingerprint import base_sha256, fingerprint
from turnwise.ports import Blobs, Clock, ModelPackage, NewId, Resources, Store

log = logging.getLogger(__name__)

GROUP = "model-package-group"
NOTES = "model-package-notes"
#: The blobs of adapters that users have registered themselves.
OWN_ADAPTERS = "models"


class ObjectFiles(Protocol):
    """Objects of buckets as files: `control.objects.buckets.Buckets`."""

    async def get(self, account_id: str, bucket: str, key: str) -> tuple[Any, Path]:
        """An object and its file. Raises `NotFound`."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class PackageGroup:
    """A name under which versions are registered. `fields` are what its maker said of it."""

    name: str
    created_at: float
    fields: Mapping[str, Any] = field(default_factory=dict)
    is_made: bool = True  # else it is there by its packages alone


class Registry:
    """Manages one store's registered models. Each call requires a principal."""

    def __init__(
        self,
        *,
        store: Store,
        resources: Resources,
        blobs: Blobs,
        objects: ObjectFiles,
        catalogue: Catalogue,
        clock: Clock,
        new_id: NewId,
    ) -> None:
        self._store = store
        self._resources = resources
        self._blobs = blobs
        self._objects = objects
        self._catalogue = catalogue
        self._clock = clock
        self._new_id = new_id
        self._changing = asyncio.Lock()  # what is read and written back, and what checks first

    # ── groups ────────────────────────────────────────────────────────────────────────────────

    async def create_group(
        self, principal: Principal, name: str, fields: Mapping[str, Any]
    ) -> PackageGroup:
        """Raises `Conflict` for one that is there, by its packages or made before."""
        principal.require_all(Action.MANAGE, "groups of models")
        async with self._changing:
            if await self._store.packages(principal.account_id, group=name):
                raise errors.Conflict(f"model package group {name!r} exists already")
            try:
                return await self._make_group(principal.account_id, name, fields)
            except errors.Conflict:
                raise errors.Conflict(f"model package group {name!r} exists already") from None

    async def group(self, principal: Principal, name: str) -> PackageGroup:
        """Raises `NotFound`."""
        principal.require(Action.READ)
        try:
            return _group(await self._resources.resource(principal.account_id, GROUP, name))
        except errors.NotFound:
            its = await self.packages(principal, group=name)
        if not its:
            raise errors.NotFound("model package group", name)
        return PackageGroup(name=name, created_at=its[0].created_at, is_made=False)

    async def groups(self, principal: Principal) -> list[PackageGroup]:
        """Those that were made, and those that jobs have filled, oldest first."""
        principal.require(Action.READ)
        records = await self._resources.resources(principal.account_id, GROUP)
        found = {record.name: _group(record) for record in records}
        for package in await self._store.packages(principal.account_id):
            if principal.allows(Action.READ, job_id=package.job_id):
                group = PackageGroup(
                    name=package.group, created_at=package.created_at, is_made=False
                )
                found.setdefault(package.group, group)
        return sorted(found.values(), key=lambda group: group.created_at)

    async def delete_group(self, principal: Principal, name: str) -> None:
        """Raises `NotFound`, and `Conflict` while something is registered in it."""
        principal.require_all(Action.MANAGE, "groups of models")
        async with self._changing:
            if held := await self._store.packages(principal.account_id, group=name):
                raise errors.Conflict(
                    f"model package group {name!r} holds {len(held)} model packages; delete them "
                    "first"
                )
            try:
                await self._resources.delete_resource(principal.account_id, GROUP, name)
            except errors.NotFound:
                raise errors.NotFound("model package group", name) from None

    async def _make_group(
        self, account_id: str, name: str, fields: Mapping[str, Any]
    ) -> PackageGroup:
        record = Resource(
            account_id=account_id,
            kind=GROUP,
            name=name,
            body=dict(fields),
            created_at=self._clock.now(),
        )
        return _group(await self._resources.create_resource(record))

    # ── packages ──────────────────────────────────────────────────────────────────────────────

    async def package(self, principal: Principal, name: str) -> ModelPackage:
        """By package id, "group/version", or "group" for the newest. Raises `NotFound`."""
        principal.require(Action.READ)
        found = await self._store.package(principal.account_id, name)
        principal.require(Action.READ, job_id=found.job_id)
        return found

    async def packages(
        self, principal: Principal, *, group: str | None = None
    ) -> list[ModelPackage]:
        """Oldest first, those that the key may see."""
        principal.require(Action.READ)
        found = await self._store.packages(principal.account_id, group=group)
        return [each for each in found if principal.allows(Action.READ, job_id=each.job_id)]

    async def notes(self, account_id: str) -> dict[str, Mapping[str, Any]]:
        """What has been said about packages, by their ids."""
        records = await self._resources.resources(account_id, NOTES)
        return {record.name: record.body for record in records}

    async def notes_of(self, package: ModelPackage) -> Mapping[str, Any]:
        """What has been said about one."""
        try:
            found = await self._resources.resource(package.account_id, NOTES, package.package_id)
        except errors.NotFound:
            return {}
        return found.body

    async def annotate(
        self,
        principal: Principal,
        name: str,
        said: Mapping[str, Any],
        *,
        properties: Mapping[str, str] | None = None,
        without: tuple[str, ...] = (),
    ) -> ModelPackage:
        """Say something about a package: `said` replaces by key, `properties` are a map of texts.

        `without` names properties to take off first.
        """
        package = await self.package(principal, name)
        principal.require(Action.MANAGE, job_id=package.job_id)
        async with self._changing:
            before = await self.notes_of(package)
            kept = {k: v for k, v in before.get("properties", {}).items() if k not in without}
            body = {**before, **said, "properties": kept | dict(properties or {})}
            await self._keep_notes(package, body)
        return package

    async def _keep_notes(self, package: ModelPackage, body: Mapping[str, Any]) -> None:
        record = Resource(
            account_id=package.account_id,
            kind=NOTES,
            name=package.package_id,
            body=body,
            created_at=self._clock.now(),
        )
        try:
            await self._resources.change_resource(record)
        except errors.NotFound:
            await self._resources.create_resource(record)

    async def delete(self, principal: Principal, name: str) -> ModelPackage:
        """Delete one version, and its files unless something else is made of them.

        `name` is a package id or "group/version". Raises `NotFound`, and `Conflict` while a job
        that has not ended needs it.
        """
        package = await self.package(principal, name)
        principal.require(Action.MANAGE, job_id=package.job_id)
        if name not in (package.package_id, package.name):
            raise errors.InvalidInput(
                "model", name, "names no version", remedy=f"give one, as {package.name}"
            )
        async with self._changing:
            deleted, paths = await self._store.delete_package(
                package.account_id, package.package_id
            )
            groups = await self._resources.resources(package.account_id, GROUP)
            if package.group not in {record.name for record in groups}:  # it outlives its packages
                await self._make_group(package.account_id, package.group, {})
            for path in paths:
                await self._remove(path)
            if await self.notes_of(package):
                await self._resources.delete_resource(package.account_id, NOTES, package.package_id)
        return deleted

    async def _remove(self, path: str) -> None:
        """Remove what lies among the blobs. What cannot be removed is a warning: it is unlisted."""
        root = self._blobs.path(OWN_ADAPTERS).parent
        if not Path(path).is_relative_to(root):
            log.warning(
                "the files of a deleted model stay at %s: it is none of this server's", path
            )
            return
        try:
            await self._blobs.delete(Path(path).relative_to(root).as_posix())
        except OSError as error:
            log.warning("the files of a deleted model stay at %s: %s", path, error)

    # ── adapters of the user's own ────────────────────────────────────────────────────────────

    async def register(
        self, principal: Principal, group: str, uri: str, *, base: str = ""
    ) -> ModelPackage:
        """Register a copy of a PEFT folder in a bucket as the next version of a group.

        `base` is a base model's name; without one, the adapter's own configuration says it.
        Raises `InvalidInput` for what is no plain LoRA adapter of that base, `NotFound`.
        """
        principal.require_all(Action.MANAGE, "models of one's own")
        await self.group(principal, group)
        held = await self._store.packages(principal.account_id, group=group)
        if any(package.kind != "adapter" for package in held):
            raise errors.InvalidInput(
                "ModelPackageGroupName", group, "holds checkpoints", remedy="name another group"
            )
        package_id = self._new_id("package")
        key = f"{OWN_ADAPTERS}/{package_id}"
        folder = self._blobs.path(key)
        try:
            await self._copy(principal.account_id, uri, folder)
            package = await asyncio.to_thread(
                self._package, principal.account_id, package_id, group, folder, uri, base
            )
        except BaseException:
            await self._blobs.delete(key)
            raise
        # Not to be given up half-way: once the store has it, its files stay.
        return await asyncio.shield(self._keep(package, key))

    async def _keep(self, package: ModelPackage, key: str) -> ModelPackage:
        try:
            version = await self._store.next_version(package.account_id, [package.group])
            [kept] = await self._store.register([replace(package, version=version)])
        except errors.TurnwiseError:
            await self._blobs.delete(key)
            raise
        return kept

    async def _copy(self, account_id: str, uri: str, folder: Path) -> None:
        place = parse_location(uri, "S3Uri")
        files = {}
        for name in (CONFIG_FILE, TENSORS_FILE):
            at = place.below(name)
            if not at.bucket:
                raise errors.InvalidInput("S3Uri", uri, "is no s3:// URI")
            try:
                _, files[name] = await self._objects.get(account_id, at.bucket, at.key)
            except errors.NotFound:
                raise errors.InvalidInput(
                    "S3Uri",
                    uri,
                    f"has no {name} below it",
                    remedy="give the folder of a PEFT adapter: adapter_config.json beside "
                    "adapter_model.safetensors",
                ) from None
        await asyncio.to_thread(_copy_files, files, folder)

    def _package(
        self, account_id: str, package_id: str, group: str, folder: Path, uri: str, base: str
    ) -> ModelPackage:
        config = read_config(folder)
        model = self._base(base, str(config.get("base_model_name_or_path") or ""))
        check_adapter(folder, model.folder)
        return ModelPackage(
            package_id=package_id,
            account_id=account_id,
            group=group,
            version=1,
            kind="adapter",
            path=str(folder),
            sha256=fingerprint(folder),
            base_model=str(model.folder),
            job_id="",
            step=0,
            created_at=self._clock.now(),
            metadata={
                "imported_from": uri,
                "base_model": {"path": str(model.folder), "sha256": base_sha256(model.folder)},
                "code": f"turnwise {turnwise.__version__}",
            },
        )

    def _base(self, name: str, path: str) -> BaseModel:
        if name:
            return self._catalogue.model(name)
        if path and (found := self._catalogue.of_folder(path)):
            return found
        raise errors.InvalidInput(
            "BaseModel",
            path or None,
            "is no base model of this server",
            remedy="name the adapter's base in BaseModel.HubContentName; "
            "`turnwise models add-base FOLDER --name NAME` adds one",
        )


def _group(record: Resource) -> PackageGroup:
    return PackageGroup(name=record.name, created_at=record.created_at, fields=record.body)


def _copy_files(files: Mapping[str, Path], folder: Path) -> None:
    """Copies, so that neither a change of the objects nor of their files is one of the model."""
    try:
        folder.mkdir(mode=0o700)
        for name, file in files.items():
            shutil.copyfile(file, folder / name)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise errors.StorageFull(f"no room to register {folder.name}; make room") from error
