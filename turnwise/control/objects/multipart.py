"""Objects that come in parts: each is kept by itself until they are joined or given up."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence

from turnwise import errors
from turnwise.control.objects.buckets import OCTETS, Buckets
from turnwise.domain.objects import Part, StoredObject, Upload, check_key


class Multipart:
    """Uploads under way, by account."""

    def __init__(self, buckets: Buckets) -> None:
        self._buckets = buckets
        self._store = buckets.store

    async def start(
        self,
        account_id: str,
        bucket: str,
        key: str,
        content_type: str = OCTETS,
        metadata: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Upload:
        """Begin. Raises `NotFound` without the bucket, `Denied` for a view, `InvalidInput`."""
        self._buckets.check_writable(bucket)
        check_key(key)
        upload = Upload(
            upload_id=self._buckets.new_id("upl"),
            bucket=bucket,
            key=key,
            started_at=self._buckets.clock.now(),
            content_type=content_type or OCTETS,
            metadata=dict(metadata or {}),
            headers=dict(headers or {}),
        )
        await self._store.start_upload(account_id, upload)
        return upload

    async def find(self, account_id: str, bucket: str, key: str, upload_id: str) -> Upload:
        """An upload of that object. Raises `NotFound`."""
        upload = await self._store.upload(account_id, upload_id)
        if (upload.bucket, upload.key) != (bucket, key):
            raise errors.NotFound("upload", upload_id)
        return upload

    async def listed(self, account_id: str, bucket: str, prefix: str = "") -> Sequence[Upload]:
        """Those under way in a bucket, by key and age. Raises `NotFound` without the bucket."""
        return await self._store.uploads(account_id, bucket, prefix)

    async def put_part(
        self, account_id: str, upload: Upload, number: int, pieces: Iterable[bytes]
    ) -> Part:
        """Keep a part, in place of the one of its number."""
        written = await self._buckets.content.write(pieces)
        part = Part(
            number=number,
            size=written.size,
            etag=written.md5,
            modified=self._buckets.clock.now(),
            blob=written.blob,
        )
        async with self._buckets.content.unless_kept(written):
            freed = await self._store.put_part(account_id, upload.upload_id, part)
        await self._buckets.content.remove(freed)
        return part

    async def parts(self, account_id: str, upload: Upload) -> Sequence[Part]:
        """What has been received, by number."""
        return await self._store.parts(account_id, upload.upload_id)

    async def complete(
        self, account_id: str, upload: Upload, parts: Sequence[Part], replaces: str | None = None
    ) -> StoredObject:
        """Join these parts into the object; the others are dropped."""
        try:
            written = await self._buckets.content.join([part.blob for part in parts])
        except FileNotFoundError:
            raise errors.Conflict(
                f"upload {upload.upload_id} has changed while it was being completed"
            ) from None
        stored = StoredObject(
            bucket=upload.bucket,
            key=upload.key,
            size=written.size,
            etag=joined_etag(part.etag for part in parts),
            modified=self._buckets.clock.now(),
            content_type=upload.content_type,
            metadata=upload.metadata,
            headers=upload.headers,
        )
        async with self._buckets.content.unless_kept(written):
            freed = await self._store.end_upload(
                account_id, upload.upload_id, stored, written.blob, replaces=replaces
            )
        await self._buckets.content.remove(freed)
        return stored

    async def abort(self, account_id: str, upload: Upload) -> None:
        """Drop an upload with its parts."""
        freed = await self._store.end_upload(account_id, upload.upload_id)
        await self._buckets.content.remove(freed)


def joined_etag(etags: Iterable[str]) -> str:
    """The ETag of an object that came in parts: the MD5 of the parts' MD5s, and their number.

    >>> joined_etag(["d41d8cd98f00b204e9800998ecf8427e"])
    '59adb24ef3cdbe0297f05b395827453f-1'
    """
    digests = [bytes.fromhex(etag) for etag in etags]
    return f"{hashlib.md5(b''.join(digests), usedforsecurity=False).hexdigest()}-{len(digests)}"
