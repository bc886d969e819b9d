"""An account's buckets of objects: what AWS's clients keep in S3, on this server.

Rows are in the store, content is in files (`control.objects.content`). Each account has a namespace
of its own. A bucket may also be a view of what another room has, which is then read-only.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from turnwise import errors
from turnwise.control.objects.content import Content
from turnwise.control.objects.locations import parse_location
from turnwise.control.objects.transfer import Remote, Transfer
from turnwise.domain.objects import (
    Fetch,
    Listing,
    StoredObject,
    check_bucket_name,
    check_key,
    list_page,
)
from turnwise.ports import Blobs, Clock, NewId, Objects

__all__ = ["Buckets", "Listing", "StoredObject", "View"]

OCTETS = "application/octet-stream"

#: An upload that nobody has completed after so long is given up when the server starts.
MAX_UPLOAD_AGE_S = 7 * 24 * 3600.0


class View(Protocol):
    """What another room shows as a read-only bucket."""

    async def list(self, account_id: str, prefix: str) -> list[StoredObject]:
        """All objects whose keys begin with the prefix, in any order."""
        ...

    async def path(self, account_id: str, key: str) -> Path:
        """The file of an object. Raises `NotFound`."""
        ...


class Buckets:
    """Buckets and objects by account. Who may call is the door's to say."""

    def __init__(
        self,
        store: Objects,
        blobs: Blobs,
        clock: Clock,
        new_id: NewId,
        *,
        remote: Remote | None = None,
        private: Path | None = None,
    ) -> None:
        """`remote` has the buckets that are not here; no file:// leads into `private`."""
        self.store = store
        self.content = Content(blobs, new_id)
        self.clock = clock
        self.new_id = new_id
        self.transfer = Transfer(self, remote, private)
        self._views: dict[str, View] = {}

    def mount(self, bucket: str, view: View) -> None:
        """Show a view as a bucket of every account."""
        check_bucket_name(bucket)
        self._views[bucket] = view

    async def recover(self) -> None:
        """Remove what a crash has left, and uploads that nobody has ended. Before any write."""
        await self.store.end_uploads_before(self.clock.now() - MAX_UPLOAD_AGE_S)
        await self.content.sweep(await self.store.blobs_in_use())

    # ── buckets ───────────────────────────────────────────────────────────────────────────────

    async def create(self, account_id: str, bucket: str) -> None:
        """Raises `InvalidInput` for a name that S3 would not allow, `Conflict` if it is there."""
        check_bucket_name(bucket)
        if bucket in self._views:
            raise errors.Conflict(f"bucket {bucket!r} exists already")
        await self.store.create_bucket(account_id, bucket)

    async def exists(self, account_id: str, bucket: str) -> bool:
        """Whether the account has such a bucket, or a view is shown by that name."""
        return bucket in await self.names(account_id)

    async def names(self, account_id: str) -> Mapping[str, float]:
        """All buckets by name, with the times they were created."""
        own = {each.name: each.created_at for each in await self.store.buckets(account_id)}
        return dict(sorted((dict.fromkeys(self._views, 0.0) | own).items()))

    async def delete_bucket(self, account_id: str, bucket: str) -> None:
        """Raises `NotFound`, and `Conflict` while it is not empty."""
        self.check_writable(bucket)
        await self.store.delete_bucket(account_id, bucket)

    def check_writable(self, bucket: str) -> None:
        """Raise `Denied` for a view."""
        if bucket in self._views:
            raise errors.Denied(f"bucket {bucket!r} is read-only: the server itself fills it")

    # ── objects ───────────────────────────────────────────────────────────────────────────────

    async def put(
        self,
        account_id: str,
        bucket: str,
        key: str,
        data: bytes,
        content_type: str = OCTETS,
        metadata: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        replaces: str | None = None,
    ) -> StoredObject:
        """Keep an object, in place of the one of that key; all of it or nothing.

        With `replaces`, only in place of one of that ETag ("": of none), else `Conflict`. Raises
        `NotFound` without the bucket, `Denied` for a view, `InvalidInput`, `StorageFull`.
        """
        return await self.put_pieces(
            account_id, bucket, key, [data], content_type, metadata, headers, replaces
        )

    async def put_pieces(
        self,
        account_id: str,
        bucket: str,
        key: str,
        pieces: Iterable[bytes],
        content_type: str = OCTETS,
        metadata: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        replaces: str | None = None,
    ) -> StoredObject:
        """`put` of content that comes in pieces, read in a thread."""
        self.check_writable(bucket)
        check_key(key)
        written = await self.content.write(pieces)
        stored = StoredObject(
            bucket=bucket,
            key=key,
            size=written.size,
            etag=written.md5,
            modified=self.clock.now(),
            content_type=content_type or OCTETS,
            metadata=dict(metadata or {}),
            headers={"x-amz-checksum-crc32": written.crc32} | dict(headers or {}),
        )
        async with self.content.unless_kept(written):
            freed = await self.store.put_object(account_id, stored, written.blob, replaces=replaces)
        await self.content.remove(freed)
        return stored

    async def head(self, account_id: str, bucket: str, key: str) -> StoredObject:
        """An object without its content. Raises `NotFound` of kind "bucket" or "object"."""
        stored, _ = await self.get(account_id, bucket, key)
        return stored

    async def get(self, account_id: str, bucket: str, key: str) -> tuple[StoredObject, Path]:
        """An object and its file, which is there until it is replaced or deleted.

        Raises `NotFound` of kind "bucket" or "object".
        """
        if view := self._views.get(bucket):
            for stored in await view.list(account_id, key):
                if stored.key == key:
                    return stored, await view.path(account_id, key)
            raise errors.NotFound("object", key)
        check_key(key)
        stored, blob = await self.store.object(account_id, bucket, key)
        return stored, self.content.path(blob)

    async def list(
        self,
        account_id: str,
        bucket: str,
        prefix: str = "",
        delimiter: str = "",
        after: str = "",
        limit: int = 1000,
    ) -> Listing:
        """A page of the objects whose keys begin with `prefix` and follow `after`.

        Keys that go on alike up to `delimiter` are shown as one prefix.
        """
        if view := self._views.get(bucket):
            found = sorted(await view.list(account_id, prefix), key=lambda each: each.key.encode())
            return list_page(
                _fetch_from(found), prefix=prefix, delimiter=delimiter, after=after, limit=limit
            )
        return await self.store.list_objects(
            account_id, bucket, prefix=prefix, delimiter=delimiter, after=after, limit=limit
        )

    async def all_below(self, account_id: str, bucket: str, prefix: str) -> Sequence[StoredObject]:
        """Every object whose key begins with the prefix, in order."""
        found: list[StoredObject] = []
        page = await self.list(account_id, bucket, prefix)
        found += page.objects
        while page.next:
            page = await self.list(account_id, bucket, prefix, after=page.next)
            found += page.objects
        return found

    async def delete(self, account_id: str, bucket: str, *keys: str) -> None:
        """Remove objects; one that is not there is fine. Raises `NotFound` without the bucket."""
        for key in keys:
            self.check_delete(bucket, key)
        await self.content.remove(await self.store.delete_objects(account_id, bucket, keys))

    def check_delete(self, bucket: str, key: str) -> None:
        """Raise what would keep this object from being removed."""
        self.check_writable(bucket)
        check_key(key)

    # ── to and from files ─────────────────────────────────────────────────────────────────────

    async def download(self, account_id: str, uri: str) -> Path:
        """A local path of a file, or of a folder for a prefix, good for reading.

        It is good until the server is started again. Raises `InvalidInput`.
        """
        return await self.transfer.download(account_id, parse_location(uri))

    async def upload(self, account_id: str, folder: Path, uri: str) -> None:
        """Keep every file of a folder, under its relative name, below the URI.

        Raises `InvalidInput`, `Denied`, `StorageFull`.
        """
        await self.transfer.upload(account_id, folder, parse_location(uri))


def _fetch_from(found: Sequence[StoredObject]) -> Fetch:
    """Pages of objects in memory, which are in order."""
    keys = [each.key.encode() for each in found]

    def fetch(low: bytes, high: bytes, count: int) -> Sequence[StoredObject]:
        first = bisect.bisect_left(keys, low)
        last = bisect.bisect_left(keys, high) if high else len(keys)
        return found[first : min(last, first + count)]

    return fetch
