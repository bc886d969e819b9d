"""Models as something to ask or to take away: which ones, and whether their files hold.

Each call requires a principal.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

from turnwise import errors
from turnwise.control.lineage import adapter_folder
from turnwise.control.models.catalogue import Catalogue
from turnwise.domain.access import Action, Principal
from turnwise.modeling.fingerprint import base_sha256, fingerprint, verify
from turnwise.ports import BareModel, ModelPackage, ServedModel, Store


class ServedModels:
    """The registered models, and the base models, that a key may ask for a reply."""

    def __init__(self, store: Store, catalogue: Catalogue) -> None:
        self._store = store
        self._catalogue = catalogue

    async def model(self, principal: Principal, name: str) -> ServedModel:
        """The registered model of that name, or else the base model. As `package` and `base`."""
        try:
            return await self.package(principal, name)
        except errors.NotFound:
            return await self.base(principal, name)

    async def package(self, principal: Principal, name: str) -> ModelPackage:
        """By package id, "group/version", or "group" for the newest version.

        Raises `NotFound` and `Denied`.
        """
        principal.require(Action.SAMPLE)
        found = await self._store.package(principal.account_id, name)
        principal.require(Action.SAMPLE, job_id=found.job_id)
        return found

    async def base(self, principal: Principal, name: str) -> BareModel:
        """A base model by its name in the catalogue. Raises `NotFound` and `Denied`.

        One with a broken recipe is not there, as in the catalogue's list.
        """
        principal.require(Action.SAMPLE)
        try:
            found = await asyncio.to_thread(self._catalogue.model, name)
        except errors.InvalidInput:
            raise errors.NotFound("base model", name) from None
        principal.require_all(Action.SAMPLE, "base models")
        return BareModel(name=found.name, folder=str(found.folder))

    async def names(self, principal: Principal) -> list[str]:
        """Every group and every version that the key may ask for, the newest first; base models."""
        principal.require(Action.SAMPLE)
        found = await self._store.packages(principal.account_id)
        mine = [
            package
            for package in reversed(found)
            if package.pruned_at is None and principal.allows(Action.SAMPLE, job_id=package.job_id)
        ]
        groups = dict.fromkeys(package.group for package in mine)
        return [*groups, *(package.name for package in mine), *await self._base_names(principal)]

    async def _base_names(self, principal: Principal) -> list[str]:
        if principal.job_ids is not None:
            return []
        return [base.name for base in await asyncio.to_thread(self._catalogue.models)]


def verified_folder(package: ModelPackage) -> Path:
    """The package's PEFT folder, every byte of it as it was registered.

    Raises `Conflict` for a pruned one, `NotFound` for files that are gone, `Corrupted` for files
    that have changed.
    """
    folder = Path(adapter_folder(package))
    if not folder.is_dir():
        raise errors.NotFound("model folder", str(folder), remedy="its files have been removed")
    name = f"model {package.name}"
    if package.kind == "checkpoint":
        try:
            verify(Path(package.path), package.sha256)
        except errors.Corrupted as error:
            raise errors.Corrupted(f"{name} is damaged: {error}") from error
        return folder
    try:
        found = fingerprint(folder)
    except errors.InvalidInput as error:
        raise errors.Corrupted(f"{name} is damaged: {error}") from error
    if found != package.sha256:
        raise errors.Corrupted(
            f"{name} is damaged: the files at {folder} have sha256 {found[:12]}..., registered "
            f"were {package.sha256[:12]}...; use another version"
        )
    return folder


def verified_base(package: ModelPackage) -> Path:
    """The folder of the package's base model, as it was when the package was made.

    Raises `NotFound` for one that is gone, `Corrupted` for one that has changed.
    """
    folder, remedy = Path(package.base_model), "put the folder back, or export the adapter"
    if not (folder / "config.json").is_file():
        raise errors.NotFound("base model", package.base_model, remedy=remedy)
    was = package.metadata.get("base_model", {}).get("sha256", "")
    if was and was != (found := base_sha256(folder)):
        raise errors.Corrupted(
            f"model {package.name} was trained on another base: the files at {folder} have sha256 "
            f"{found[:12]}..., its own had {was[:12]}...; {remedy}"
        )
    return folder


def adapter_id(package: ModelPackage, folder: Path) -> str:
    """The id of the adapter in the package's verified folder."""
    return package.sha256 if package.kind == "adapter" else fingerprint(folder)
