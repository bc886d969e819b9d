"""S3's operations on single objects."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import BinaryIO
from urllib.parse import parse_qs, unquote_to_bytes

from turnwise import errors
from turnwise.control.objects.buckets import Buckets, StoredObject
from turnwise.control.objects.content import opened_pieces
from turnwise.wire.aws.protocols import Reply
from turnwise.wire.aws.s3 import conditions, xml
from turnwise.wire.aws.s3.asked import Asked, Handler, answer, empty, split_path
from turnwise.wire.aws.s3.body import read_body
from turnwise.wire.aws.service import AwsError

_PIECE = 1 << 20

#: Headers that are kept with an object and given back with it.
_KEPT = ("cache-control", "content-disposition", "content-encoding", "content-language", "expires")
_CHECKSUM = "x-amz-checksum-"


def object_operations(buckets: Buckets) -> dict[str, Handler]:
    """The handlers by operation."""
    operations = ObjectOperations(buckets)
    return {
        "HeadObject": operations.head,
        "GetObject": operations.get,
        "PutObject": operations.put,
        "CopyObject": operations.copy,
        "DeleteObject": operations.delete,
    }


class ObjectOperations:
    """Each takes a call and gives its answer."""

    def __init__(self, buckets: Buckets) -> None:
        self._buckets = buckets

    async def head(self, asked: Asked) -> Reply:
        """What GetObject would say, without the content."""
        stored, _ = await self._buckets.get(asked.account_id, asked.bucket, asked.key)
        reply, _ = _described(asked, stored)
        return reply

    async def get(self, asked: Asked) -> Reply:
        """The content, or a range of it, from the file as it goes out."""
        stored, file = await self.open(asked.account_id, asked.bucket, asked.key)
        try:
            reply, span = _described(asked, stored)
        except AwsError:
            file.close()
            raise
        return replace(reply, pieces=_content(file, *span))

    async def put(self, asked: Asked) -> Reply:
        """Keep what was sent."""
        sent = await asyncio.to_thread(read_body, asked.request)
        stored = await self._conditionally(
            asked,
            lambda replaces: self._buckets.put(
                asked.account_id,
                asked.bucket,
                asked.key,
                sent.data,
                content_type=asked.header("content-type"),
                metadata=asked.metadata,
                headers=kept_headers(asked) | dict(sent.checksums),
                replaces=replaces,
            ),
        )
        return empty(headers=(("etag", f'"{stored.etag}"'), *checksums(stored)))

    async def copy(self, asked: Asked) -> Reply:
        """Keep a copy of another object, with its metadata or with new one."""
        bucket, key = copy_source(asked)
        stored, file = await self.open(asked.account_id, bucket, key)
        with file:
            check_copied(asked, stored)
            is_replaced = asked.header("x-amz-metadata-directive").upper() == "REPLACE"
            if (bucket, key) == (asked.bucket, asked.key) and not is_replaced:
                raise AwsError(
                    "InvalidRequest", "an object is copied to itself only to replace its metadata"
                )
            content_type, metadata = stored.content_type, stored.metadata
            headers: Mapping[str, str] = {
                name: value for name, value in stored.headers.items() if name in _KEPT
            }
            if is_replaced:
                content_type, metadata = asked.header("content-type"), asked.metadata
                headers = kept_headers(asked)
            made = await self._conditionally(
                asked,
                lambda replaces: self._buckets.put_pieces(
                    asked.account_id,
                    asked.bucket,
                    asked.key,
                    opened_pieces(file),
                    content_type=content_type,
                    metadata=metadata,
                    headers=headers,
                    replaces=replaces,
                ),
            )
        return answer(
            "CopyObjectResult",
            [("LastModified", xml.timestamp(made.modified)), ("ETag", f'"{made.etag}"')],
        )

    async def delete(self, asked: Asked) -> Reply:
        """Gone, or it was never there."""
        await self._buckets.delete(asked.account_id, asked.bucket, asked.key)
        return empty(204)

    async def open(self, account_id: str, bucket: str, key: str) -> tuple[StoredObject, BinaryIO]:
        """An object and its open file, which stays readable if the object is replaced."""
        while True:
            stored, path = await self._buckets.get(account_id, bucket, key)
            try:
                return stored, await asyncio.to_thread(path.open, "rb")
            except FileNotFoundError:  # replaced or deleted just now, else it is lost
                if (await self._buckets.get(account_id, bucket, key))[1] == path:
                    raise errors.Corrupted(f"the content of object {key!r} is gone") from None

    async def _conditionally(
        self, asked: Asked, write: Callable[[str | None], Awaitable[StoredObject]]
    ) -> StoredObject:
        """Write, if what is there is what the conditional headers want."""
        replaces = conditions.replaced(asked.request.headers)
        try:
            return await write(replaces)
        except errors.Conflict:
            raise conditions.failed("If-Match or If-None-Match") from None


def copy_source(asked: Asked) -> tuple[str, str]:
    """Bucket and key that a copy is made of."""
    check_owner(asked, "x-amz-source-expected-bucket-owner")
    path, _, query = asked.header("x-amz-copy-source").partition("?")
    if parse_qs(query).get("versionId", ["null"]) != ["null"]:
        raise AwsError("NotImplemented", "objects have no versions here", status=501)
    bucket, key = split_path("/" + path.lstrip("/"))
    if not key:  # some clients encode the slash between the two, too
        decoded = unquote_to_bytes(path).decode(errors="replace")
        bucket, _, key = decoded.lstrip("/").partition("/")
    if not bucket or not key:
        raise AwsError("InvalidArgument", "x-amz-copy-source must be bucket/key")
    return bucket, key


def check_owner(asked: Asked, header: str) -> None:
    """Raise unless the bucket's owner is whom the client expects."""
    expected = asked.header(header)
    if expected and expected != asked.call.account.number:
        raise AwsError("AccessDenied", f"{header}: account {expected} does not own it", status=403)


def check_copied(asked: Asked, stored: StoredObject) -> None:
    """Raise unless a copy's source is what the client expects."""
    if conditions.is_unchanged(stored, asked.request.headers, "x-amz-copy-source-"):
        raise conditions.failed("x-amz-copy-source-if-none-match or -if-modified-since")


def kept_headers(asked: Asked) -> dict[str, str]:
    """What is kept of a write's headers, to be given back with the content."""
    found = {name: asked.header(name) for name in _KEPT if asked.header(name)}
    encodings = [each.strip() for each in found.get("content-encoding", "").split(",")]
    if "aws-chunked" in encodings:  # of this transfer, not of the object
        rest = ",".join(each for each in encodings if each != "aws-chunked")
        found.pop("content-encoding")
        found |= {"content-encoding": rest} if rest else {}
    return found


def checksums(stored: StoredObject) -> tuple[tuple[str, str], ...]:
    """An object's checksums as headers; they are of the whole of it."""
    found = [each for each in stored.headers.items() if each[0].startswith(_CHECKSUM)]
    return (*found, *([("x-amz-checksum-type", "FULL_OBJECT")] if found else []))


def _described(asked: Asked, stored: StoredObject) -> tuple[Reply, tuple[int, int]]:
    """The answer to a read without its content, and which bytes that is. Raises `AwsError`."""
    request = asked.request.headers
    headers = {
        "etag": f'"{stored.etag}"',
        "last-modified": conditions.http_date(stored.modified),
        "accept-ranges": "bytes",
        # A page among somebody's objects must not act for whoever looks at it.
        "content-security-policy": "sandbox",
        **{name: value for name, value in stored.headers.items() if name in _KEPT},
        **{"x-amz-meta-" + name: value for name, value in stored.metadata.items()},
    }
    if conditions.is_unchanged(stored, request):
        return _without_body(304, headers), (0, 0)
    span = conditions.byte_range(request.get("range", ""), stored.size)
    start, end = span or (0, stored.size)
    headers["content-length"] = str(end - start)
    if span is not None:
        headers["content-range"] = f"bytes {start}-{end - 1}/{stored.size}"
    elif request.get("x-amz-checksum-mode", "").upper() == "ENABLED":
        headers |= dict(checksums(stored))
    media_type = stored.content_type
    for name in ("content-type", *_KEPT):
        if value := _override(asked, name):
            headers |= {name: value}
    media_type = headers.pop("content-type", media_type)
    return _without_body(200 if span is None else 206, headers, media_type), (start, end)


def _override(asked: Asked, name: str) -> str:
    """What a (presigned) URL wants a header of the answer to be; "" for as it is."""
    value = asked.query.get("response-" + name, "")
    if not value.isprintable() or not value.isascii():
        raise AwsError("InvalidArgument", f"response-{name}: {value!r} is no value of a header")
    return value


def _without_body(
    status: int, headers: Mapping[str, str], media_type: str = "application/octet-stream"
) -> Reply:
    return Reply(
        status=status,
        body=b"",
        media_type=media_type,
        headers=tuple(headers.items()),
        pieces=_nothing(),
    )


def bounded_pieces(pieces: Iterable[bytes], count: int) -> Iterator[bytes]:
    """The first so many bytes."""
    for piece in pieces:
        if count <= 0:
            return
        yield piece[:count]
        count -= len(piece)


async def _nothing() -> AsyncGenerator[bytes, None]:
    return
    yield  # it is a generator all the same


async def _content(file: BinaryIO, start: int, end: int) -> AsyncGenerator[bytes, None]:
    """These bytes of an open file, which is closed after them."""
    with file:
        file.seek(start)
        while start < end:
            piece = await asyncio.to_thread(file.read, min(_PIECE, end - start))
            if not piece:
                raise errors.Corrupted("the content of an object is shorter than it was")
            start += len(piece)
            yield piece
