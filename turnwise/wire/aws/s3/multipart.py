"""S3's operations on objects that come in parts."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence

from turnwise import errors
from turnwise.control.objects.buckets import Buckets
from turnwise.control.objects.content import opened_pieces
from turnwise.control.objects.multipart import Multipart
from turnwise.domain.objects import MAX_PAGE, Part, Upload
from turnwise.wire.aws.protocols import Reply
from turnwise.wire.aws.s3 import conditions, xml
from turnwise.wire.aws.s3.asked import Asked, Handler, answer, empty
from turnwise.wire.aws.s3.body import read_body
from turnwise.wire.aws.s3.buckets import owner
from turnwise.wire.aws.s3.objects import (
    ObjectOperations,
    bounded_pieces,
    check_copied,
    copy_source,
    kept_headers,
)
from turnwise.wire.aws.service import AwsError

#: Smallest part, but for the last one.
MIN_PART_BYTES = 5 * 1024 * 1024
MAX_PARTS = 10_000


def multipart_operations(buckets: Buckets) -> dict[str, Handler]:
    """The handlers by operation."""
    operations = MultipartOperations(buckets)
    return {
        "CreateMultipartUpload": operations.create,
        "UploadPart": operations.upload_part,
        "UploadPartCopy": operations.copy_part,
        "CompleteMultipartUpload": operations.complete,
        "AbortMultipartUpload": operations.abort,
        "ListParts": operations.list_parts,
        "ListMultipartUploads": operations.list_uploads,
    }


class MultipartOperations:
    """Each takes a call and gives its answer."""

    def __init__(self, buckets: Buckets) -> None:
        self._multipart = Multipart(buckets)
        self._objects = ObjectOperations(buckets)

    async def create(self, asked: Asked) -> Reply:
        """Begin an upload."""
        upload = await self._multipart.start(
            asked.account_id,
            asked.bucket,
            asked.key,
            content_type=asked.header("content-type"),
            metadata=asked.metadata,
            headers=kept_headers(asked),
        )
        return answer(
            "InitiateMultipartUploadResult", [*_its(upload), ("UploadId", upload.upload_id)]
        )

    async def upload_part(self, asked: Asked) -> Reply:
        """Keep what was sent as a part."""
        upload = await self._upload(asked)
        number = asked.number("partNumber", 0, low=1, high=MAX_PARTS)
        sent = await asyncio.to_thread(read_body, asked.request)
        part = await self._multipart.put_part(asked.account_id, upload, number, [sent.data])
        return empty(headers=(("etag", f'"{part.etag}"'), *sent.checksums.items()))

    async def copy_part(self, asked: Asked) -> Reply:
        """Keep an object, or a range of it, as a part."""
        upload = await self._upload(asked)
        number = asked.number("partNumber", 0, low=1, high=MAX_PARTS)
        stored, file = await self._objects.open(asked.account_id, *copy_source(asked))
        with file:
            check_copied(asked, stored)
            span = conditions.byte_range(asked.header("x-amz-copy-source-range"), stored.size)
            start, end = span or (0, stored.size)
            file.seek(start)
            pieces = bounded_pieces(opened_pieces(file), end - start)
            part = await self._multipart.put_part(asked.account_id, upload, number, pieces)
        return answer(
            "CopyPartResult",
            [("LastModified", xml.timestamp(part.modified)), ("ETag", f'"{part.etag}"')],
        )

    async def complete(self, asked: Asked) -> Reply:
        """Join the parts that are named."""
        upload = await self._upload(asked)
        wanted = named_parts(read_body(asked.request).data)
        parts = chosen(await self._multipart.parts(asked.account_id, upload), wanted)
        replaces = conditions.replaced(asked.request.headers)
        try:
            stored = await self._multipart.complete(asked.account_id, upload, parts, replaces)
        except errors.Conflict:
            if replaces is None:
                raise
            raise conditions.failed("If-Match or If-None-Match") from None
        place = f"/{upload.bucket}/{upload.key}"
        return answer(
            "CompleteMultipartUploadResult",
            [("Location", place), *_its(upload), ("ETag", f'"{stored.etag}"')],
        )

    async def abort(self, asked: Asked) -> Reply:
        """Drop the upload with its parts."""
        await self._multipart.abort(asked.account_id, await self._upload(asked))
        return empty(204)

    async def list_parts(self, asked: Asked) -> Reply:
        """What has been received."""
        upload = await self._upload(asked)
        after = asked.number("part-number-marker", 0)
        limit = min(asked.number("max-parts", MAX_PAGE), MAX_PAGE)
        found = await self._multipart.parts(asked.account_id, upload)
        rest = [part for part in found if part.number > after]
        page = rest[:limit]
        content: list[tuple[str, xml.Content]] = [
            *_its(upload),
            ("UploadId", upload.upload_id),
            ("Initiator", owner(asked)),
            ("Owner", owner(asked)),
            ("StorageClass", "STANDARD"),
            ("PartNumberMarker", after),
            ("NextPartNumberMarker", page[-1].number if page else after),
            ("MaxParts", limit),
            ("IsTruncated", len(rest) > len(page)),
            *(("Part", _described(part)) for part in page),
        ]
        return answer("ListPartsResult", content)

    async def list_uploads(self, asked: Asked) -> Reply:
        """Those under way in a bucket; all on one page up to 1000, then by key marker."""
        marker = asked.query.get("key-marker", ""), asked.query.get("upload-id-marker", "")
        limit = min(asked.number("max-uploads", MAX_PAGE), MAX_PAGE)
        prefix = asked.query.get("prefix", "")
        found = await self._multipart.listed(asked.account_id, asked.bucket, prefix)
        rest = _uploads_after(found, *marker)
        page = rest[:limit]
        content: list[tuple[str, xml.Content]] = [
            ("Bucket", asked.bucket),
            ("KeyMarker", marker[0]),
            ("UploadIdMarker", marker[1]),
            ("Prefix", prefix),
            ("MaxUploads", limit),
            ("IsTruncated", len(rest) > len(page)),
        ]
        if page and len(rest) > len(page):
            content += [
                ("NextKeyMarker", page[-1].key),
                ("NextUploadIdMarker", page[-1].upload_id),
            ]
        for upload in page:
            its: list[tuple[str, xml.Content]] = [
                ("Key", upload.key),
                ("UploadId", upload.upload_id),
                ("Initiator", owner(asked)),
                ("Owner", owner(asked)),
                ("StorageClass", "STANDARD"),
                ("Initiated", xml.timestamp(upload.started_at)),
            ]
            content.append(("Upload", its))
        return answer("ListMultipartUploadsResult", content)

    async def _upload(self, asked: Asked) -> Upload:
        return await self._multipart.find(
            asked.account_id, asked.bucket, asked.key, asked.query.get("uploadId", "")
        )


def named_parts(body: bytes) -> list[tuple[int, str]]:
    """Numbers and ETags in the order in which a client wants its parts joined."""
    wanted = xml.Element.parse(body, "CompleteMultipartUpload")
    parts = []
    for each in wanted.all("Part"):
        number = each.text("PartNumber").strip()
        if not re.fullmatch("[0-9]{1,9}", number):
            raise xml.malformed(f"has part number {number[:60]!r}")
        parts.append((int(number), each.text("ETag").strip().strip('"')))
    if not parts:
        raise xml.malformed("names no part")
    return parts


def chosen(received: Sequence[Part], wanted: Sequence[tuple[int, str]]) -> list[Part]:
    """The parts that are wanted. Raises `AwsError` where they cannot be joined."""
    numbers = [number for number, _ in wanted]
    if numbers != sorted(set(numbers)):
        raise AwsError("InvalidPartOrder", "the parts are not in the order of their numbers")
    by_number = {part.number: part for part in received}
    for number, etag in wanted:
        if number not in by_number or by_number[number].etag != etag:
            raise AwsError("InvalidPart", f"part {number} with ETag {etag} has not been received")
    parts = [by_number[number] for number in numbers]
    for part in parts[:-1]:
        if part.size < MIN_PART_BYTES:
            raise AwsError(
                "EntityTooSmall",
                f"part {part.number} has {part.size} bytes; all but the last need at least "
                f"{MIN_PART_BYTES}",
            )
    return parts


def _its(upload: Upload) -> list[tuple[str, xml.Content]]:
    return [("Bucket", upload.bucket), ("Key", upload.key)]


def _described(part: Part) -> xml.Content:
    return [
        ("PartNumber", part.number),
        ("LastModified", xml.timestamp(part.modified)),
        ("ETag", f'"{part.etag}"'),
        ("Size", part.size),
    ]


def _uploads_after(found: Sequence[Upload], key: str, upload_id: str) -> list[Upload]:
    """Those that follow a page's last one, in the order of the listing."""
    ids = [(each.key, each.upload_id) for each in found]
    if (key, upload_id) in ids:
        return list(found[ids.index((key, upload_id)) + 1 :])
    return [each for each in found if each.key > key]
