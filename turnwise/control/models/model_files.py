"""Registered models as a read-only bucket: `<group>/<version>/<file>` for a package's files."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Sequence
from pathlib import Path

from turnwise import errors
from turnwise.domain.objects import StoredObject
from turnwise.ports import ModelPackage, Store


def models_bucket(region: str) -> str:
    """The bucket that shows them; each account sees its own models in it.

    >>> models_bucket("us-west-2")
    'turnwise-models-us-west-2'
    """
    return f"turnwise-models-{region}"


class ModelFiles:
    """`control.objects.buckets.View` of an account's registered models."""

    def __init__(self, store: Store, bucket: str) -> None:
        self._store = store
        self.bucket = bucket

    def uri(self, package: ModelPackage) -> str:
        """Where a package's files are shown."""
        return f"s3://{self.bucket}/{package.name}/"

    async def list(self, account_id: str, prefix: str) -> list[StoredObject]:
        """The files of all kept packages whose keys begin with the prefix."""
        found = await self._files(account_id, prefix)
        return [stored for key, (stored, _) in found.items() if key.startswith(prefix)]

    async def path(self, account_id: str, key: str) -> Path:
        """The file of a key. Raises `NotFound`."""
        found = await self._files(account_id, key)
        if key not in found:  # so that a key can name nothing but what is listed
            raise errors.NotFound("object", key)
        return found[key][1]

    async def _files(self, account_id: str, prefix: str) -> dict[str, tuple[StoredObject, Path]]:
        packages = [
            package
            for package in await self._store.packages(account_id)
            if package.pruned_at is None and _may_hold(package, prefix)
        ]
        return await asyncio.to_thread(self._read, packages)

    def _read(self, packages: Sequence[ModelPackage]) -> dict[str, tuple[StoredObject, Path]]:
        return {
            stored.key: (stored, file)
            for package in packages
            for file in sorted(Path(package.path).rglob("*"))
            if file.is_file() and (stored := self._stored(package, file))
        }

    def _stored(self, package: ModelPackage, file: Path) -> StoredObject:
        name = file.relative_to(package.path).as_posix()
        # No MD5 of the content, which would have to be read for each listing: as an ETag of an
        # object in parts, which nobody takes for one.
        digest = hashlib.md5(f"{package.sha256} {name}".encode(), usedforsecurity=False)
        return StoredObject(
            bucket=self.bucket,
            key=f"{package.name}/{name}",
            size=file.stat().st_size,
            etag=f"{digest.hexdigest()}-1",
            modified=package.created_at,
        )


def _may_hold(package: ModelPackage, prefix: str) -> bool:
    folder = f"{package.name}/"
    return folder.startswith(prefix) or prefix.startswith(folder)
