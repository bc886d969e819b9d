"""S3's operations on buckets, and listings of what is in them."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable
from urllib.parse import quote

from turnwise import errors
from turnwise.control.objects.buckets import Buckets, Listing, StoredObject
from turnwise.domain.objects import MAX_PAGE
from turnwise.wire.aws.protocols import Reply
from turnwise.wire.aws.s3 import xml
from turnwise.wire.aws.s3.asked import Asked, Handler, answer, describe, empty
from turnwise.wire.aws.s3.body import read_body
from turnwise.wire.aws.service import AwsError


def bucket_operations(buckets: Buckets) -> dict[str, Handler]:
    """The handlers by operation."""
    operations = BucketOperations(buckets)
    return {
        "ListBuckets": operations.list_buckets,
        "CreateBucket": operations.create,
        "HeadBucket": operations.head,
        "DeleteBucket": operations.delete,
        "GetBucketLocation": operations.location,
        "ListObjects": operations.list_objects,
        "ListObjectsV2": operations.list_objects_v2,
        "DeleteObjects": operations.delete_objects,
    }


class BucketOperations:
    """Each takes a call and gives its answer."""

    def __init__(self, buckets: Buckets) -> None:
        self._buckets = buckets

    async def list_buckets(self, asked: Asked) -> Reply:
        """All of the account."""
        found = await self._buckets.names(asked.account_id)
        listed = [
            ("Bucket", [("Name", name), ("CreationDate", xml.timestamp(created))])
            for name, created in found.items()
        ]
        return answer("ListAllMyBucketsResult", [("Owner", owner(asked)), ("Buckets", listed)])

    async def create(self, asked: Asked) -> Reply:
        """409 if it is there."""
        if body := read_body(asked.request).data.strip():
            wanted = xml.Element.parse(body, "CreateBucketConfiguration")
            place = wanted.text("LocationConstraint", "")
            if place not in ("", asked.call.region):
                raise AwsError(
                    "IllegalLocationConstraintException",
                    f"LocationConstraint {place!r}: this server is {asked.call.region}",
                )
        try:
            await self._buckets.create(asked.account_id, asked.bucket)
        except errors.Conflict as error:
            raise AwsError("BucketAlreadyOwnedByYou", str(error), status=409) from None
        return empty(headers=(("location", f"/{asked.bucket}"),))

    async def head(self, asked: Asked) -> Reply:
        """Whether it is there."""
        await self._check(asked)
        return empty(headers=(("x-amz-bucket-region", asked.call.region),))

    async def location(self, asked: Asked) -> Reply:
        """The server's region; us-east-1 is called "" here."""
        await self._check(asked)
        region = asked.call.region
        return answer("LocationConstraint", "" if region == "us-east-1" else region)

    async def delete(self, asked: Asked) -> Reply:
        """409 while it is not empty."""
        try:
            await self._buckets.delete_bucket(asked.account_id, asked.bucket)
        except errors.Conflict as error:
            raise AwsError("BucketNotEmpty", str(error), status=409) from None
        return empty(204)

    async def list_objects(self, asked: Asked) -> Reply:
        """Version 1: pages go on after a marker."""
        marker = asked.query.get("marker", "")
        page, limit, encoded = await self._page(asked, marker)
        content: list[tuple[str, xml.Content]] = [
            ("Name", asked.bucket),
            ("Prefix", encoded(asked.query.get("prefix", ""))),
            ("Marker", encoded(marker)),
            ("MaxKeys", limit),
            *_given(asked, encoded, "Delimiter", "EncodingType"),
            ("IsTruncated", bool(page.next)),
            *([("NextMarker", encoded(page.next))] if page.next else []),
            *_entries(asked, page, encoded, with_owner=True),
        ]
        return answer("ListBucketResult", content)

    async def list_objects_v2(self, asked: Asked) -> Reply:
        """Version 2: pages go on with a token."""
        token = asked.query.get("continuation-token", "")
        after = _untoken(token) if token else asked.query.get("start-after", "")
        page, limit, encoded = await self._page(asked, after)
        content: list[tuple[str, xml.Content]] = [
            ("Name", asked.bucket),
            ("Prefix", encoded(asked.query.get("prefix", ""))),
            *([("ContinuationToken", token)] if token else []),
            *_given(asked, encoded, "StartAfter", "Delimiter", "EncodingType"),
            ("KeyCount", len(page.objects) + len(page.prefixes)),
            ("MaxKeys", limit),
            ("IsTruncated", bool(page.next)),
            *([("NextContinuationToken", _token(page.next))] if page.next else []),
            *_entries(asked, page, encoded, with_owner=asked.query.get("fetch-owner") == "true"),
        ]
        return answer("ListBucketResult", content)

    async def delete_objects(self, asked: Asked) -> Reply:
        """Each by itself; one that is not there counts as deleted."""
        wanted = xml.Element.parse(read_body(asked.request).data, "Delete")
        keys = [each.text("Key") for each in wanted.all("Object")]
        if not 1 <= len(keys) <= MAX_PAGE:
            raise xml.malformed(f"names {len(keys)} objects; 1 to {MAX_PAGE} are allowed")
        await self._check(asked)
        results: list[tuple[str, xml.Content]] = []
        good: list[str] = []
        for key in keys:
            try:
                self._buckets.check_delete(asked.bucket, key)
            except errors.TurnwiseError as error:
                _, code, message = describe(error)
                results.append(("Error", [("Key", key), ("Code", code), ("Message", message)]))
            else:
                good.append(key)
        await self._buckets.delete(asked.account_id, asked.bucket, *good)
        if wanted.text("Quiet", "false").strip() != "true":
            results += [("Deleted", [("Key", key)]) for key in good]
        return answer("DeleteResult", results)

    async def _check(self, asked: Asked) -> None:
        if not await self._buckets.exists(asked.account_id, asked.bucket):
            raise errors.NotFound("bucket", asked.bucket)

    async def _page(self, asked: Asked, after: str) -> tuple[Listing, int, Callable[[str], str]]:
        """A page of what was asked for, how long it might have been, and how to write keys."""
        encoding = asked.query.get("encoding-type", "")
        if encoding not in ("", "url"):
            raise AwsError("InvalidArgument", f"encoding-type: {encoding!r} must be url")
        limit = min(asked.number("max-keys", MAX_PAGE), MAX_PAGE)
        page = await self._buckets.list(
            asked.account_id,
            asked.bucket,
            asked.query.get("prefix", ""),
            asked.query.get("delimiter", ""),
            after,
            limit,
        )
        return page, limit, _url_encoded if encoding else str


def owner(asked: Asked) -> xml.Content:
    """The account as an owner."""
    return [("ID", asked.call.account.number), ("DisplayName", asked.call.account.slug)]


_QUERY = {"StartAfter": "start-after", "Delimiter": "delimiter", "EncodingType": "encoding-type"}


def _given(
    asked: Asked, encoded: Callable[[str], str], *names: str
) -> list[tuple[str, xml.Content]]:
    """What is repeated from the query, where it was given."""
    return [(name, encoded(text)) for name in names if (text := asked.query.get(_QUERY[name]))]


def _entries(
    asked: Asked, page: Listing, encoded: Callable[[str], str], *, with_owner: bool
) -> list[tuple[str, xml.Content]]:
    more: list[tuple[str, xml.Content]] = [("Owner", owner(asked))] if with_owner else []
    found: list[tuple[str, xml.Content]] = [
        ("Contents", [*_entry(each, encoded), *more]) for each in page.objects
    ]
    return found + [("CommonPrefixes", [("Prefix", encoded(each))]) for each in page.prefixes]


def _entry(stored: StoredObject, encoded: Callable[[str], str]) -> list[tuple[str, xml.Content]]:
    return [
        ("Key", encoded(stored.key)),
        ("LastModified", xml.timestamp(stored.modified)),
        ("ETag", f'"{stored.etag}"'),
        ("Size", stored.size),
        ("StorageClass", "STANDARD"),
    ]


def _url_encoded(text: str) -> str:
    return quote(text, safe="-_.~/*")


def _token(key: str) -> str:
    return base64.urlsafe_b64encode(key.encode()).decode()


def _untoken(token: str) -> str:
    try:
        return base64.b64decode(token, altchars=b"-_", validate=True).decode()
    except (binascii.Error, UnicodeError, ValueError):
        raise AwsError("InvalidArgument", "the continuation token is not one of ours") from None
