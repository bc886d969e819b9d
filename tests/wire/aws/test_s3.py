"""S3 by botocore's own client against a real HTTP server, and what only odd clients send."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import io
import os
import sys
import zlib
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from botocore.exceptions import ClientError
from botocore.httpchecksum import AwsChunkedWrapper, Crc32Checksum
from hypothesis import given
from hypothesis import strategies as st

from tests.wire.aws.kit import a_call
from tests.wire.aws.s3_served import REGION, SECRET, Served, served
from turnwise import errors
from turnwise.control.objects.buckets import Buckets
from turnwise.control.objects.locations import parse_location
from turnwise.domain.access import OPERATORS
from turnwise.domain.objects import StoredObject
from turnwise.storage.blobs import FolderBlobs
from turnwise.storage.remote_s3 import RemoteS3
from turnwise.storage.sql import SqlStore
from turnwise.system import SYSTEM_CLOCK, new_id
from turnwise.wire.aws.door import Outcome
from turnwise.wire.aws.protocols import Request
from turnwise.wire.aws.s3 import conditions, xml
from turnwise.wire.aws.s3.asked import Asked, split_path
from turnwise.wire.aws.s3.body import read_body, unchunk
from turnwise.wire.aws.s3.crc import crc32c, crc64nvme
from turnwise.wire.aws.s3.service import S3
from turnwise.wire.aws.service import AwsError

MIB = 1 << 20


@pytest.fixture
async def s3(tmp_path: Path) -> AsyncIterator[Served]:
    store = SqlStore.in_memory()
    async with served(tmp_path, store) as running:
        await running.buckets.create("acc_alice", "data")
        yield running
    await store.close()


async def ask(call: Callable[..., Any], **given: Any) -> Any:
    """What a client's blocking call gives."""
    return await asyncio.to_thread(call, **given)


async def content(client: Any, **given: Any) -> bytes:
    """What an object holds. It is read in a thread: the server is in this one."""
    read: bytes = await asyncio.to_thread(lambda: client.get_object(**given)["Body"].read())
    return read


async def refused(call: Callable[..., Any], **given: Any) -> tuple[int, str]:
    """Status and code of a call that is refused."""
    with pytest.raises(ClientError) as error:
        await ask(call, **given)
    response = error.value.response
    return response["ResponseMetadata"]["HTTPStatusCode"], response["Error"]["Code"]


# ── buckets ───────────────────────────────────────────────────────────────────────────────────


async def test_a_bucket_is_made_found_listed_and_removed(s3: Served):
    client = s3.client()
    await ask(
        client.create_bucket,
        Bucket="more",
        CreateBucketConfiguration={"LocationConstraint": REGION},
    )
    assert (await ask(client.head_bucket, Bucket="more"))["BucketRegion"] == REGION
    assert (await ask(client.get_bucket_location, Bucket="more"))["LocationConstraint"] == REGION
    listed = await ask(client.list_buckets)
    assert [each["Name"] for each in listed["Buckets"]] == ["data", "more"]
    assert listed["Owner"]["ID"] == "000000000001"
    await ask(client.delete_bucket, Bucket="more")
    assert await refused(client.head_bucket, Bucket="more") == (404, "404")


async def test_buckets_are_refused_in_s3s_words(s3: Served):
    client = s3.client()
    await ask(client.put_object, Bucket="data", Key="k", Body=b"x")
    elsewhere = {"LocationConstraint": "eu-west-1"}
    assert [
        await refused(client.create_bucket, Bucket="data"),
        await refused(client.create_bucket, Bucket="Data.."),
        await refused(client.create_bucket, Bucket="m0re", CreateBucketConfiguration=elsewhere),
        await refused(client.delete_bucket, Bucket="data"),
        await refused(client.delete_bucket, Bucket="none"),
        await refused(client.list_objects_v2, Bucket="none"),
        await refused(client.put_object, Bucket="none", Key="k", Body=b"x"),
        await refused(client.get_bucket_policy, Bucket="data"),
    ] == [
        (409, "BucketAlreadyOwnedByYou"),
        (400, "InvalidBucketName"),
        (400, "IllegalLocationConstraintException"),
        (409, "BucketNotEmpty"),
        (404, "NoSuchBucket"),
        (404, "NoSuchBucket"),
        (404, "NoSuchBucket"),
        (501, "NotImplemented"),
    ]


async def test_a_bucket_of_another_owner_than_expected_is_refused(s3: Served):
    client = s3.client()
    await ask(client.head_bucket, Bucket="data", ExpectedBucketOwner="000000000001")
    theirs = {"Bucket": "data", "ExpectedBucketOwner": "000000000002"}
    assert await refused(client.head_bucket, **theirs) == (403, "403")
    assert await refused(client.get_object, Key="k", **theirs) == (403, "AccessDenied")


# ── objects ───────────────────────────────────────────────────────────────────────────────────


async def test_an_object_comes_back_with_all_that_was_said_of_it(s3: Served):
    client = s3.client()
    put = await ask(
        client.put_object,
        Bucket="data",
        Key="rows/train.csv",
        Body=b"prompt\ngo\n",
        ContentType="text/csv",
        CacheControl="no-store",
        ContentDisposition='attachment; filename="t.csv"',
        Metadata={"origin": "here"},
    )
    got = await ask(client.get_object, Bucket="data", Key="rows/train.csv")
    head = await ask(client.head_object, Bucket="data", Key="rows/train.csv")

    assert await asyncio.to_thread(got["Body"].read) == b"prompt\ngo\n"
    assert put["ETag"] == '"' + hashlib.md5(b"prompt\ngo\n").hexdigest() + '"'
    for said in (got, head):
        assert (said["ContentLength"], said["ETag"]) == (10, put["ETag"])
        assert (said["ContentType"], said["CacheControl"]) == ("text/csv", "no-store")
        assert said["ContentDisposition"] == 'attachment; filename="t.csv"'
        assert said["Metadata"] == {"origin": "here"}
    assert got["ChecksumCRC32"] == put["ChecksumCRC32"]  # botocore has compared it with the content
    assert await refused(client.get_object, Bucket="data", Key="rows") == (404, "NoSuchKey")
    assert await refused(client.head_object, Bucket="data", Key="rows") == (404, "404")


ODD_KEYS = ["../../etc", "./x", "/lead", "a//b", "ü n i", "a+b", "a%2Fb", "a", "a/b", "a/", "~*'()"]


async def test_odd_keys_arrive_as_they_were_sent(s3: Served):
    client = s3.client()
    for key in [*ODD_KEYS, "tab\tand\x01", "<&>\r\n"]:
        await ask(client.put_object, Bucket="data", Key=key, Body=key.encode())
        assert await content(client, Bucket="data", Key=key) == key.encode()

    listed = await ask(client.list_objects_v2, Bucket="data")
    keys = [each["Key"] for each in listed["Contents"]]
    assert keys == sorted([*ODD_KEYS, "tab\tand\x01", "<&>\r\n"], key=str.encode)
    gone = await ask(
        client.delete_objects, Bucket="data", Delete={"Objects": [{"Key": key} for key in ODD_KEYS]}
    )
    assert [each["Key"] for each in gone["Deleted"]] == ODD_KEYS
    listed = await ask(client.list_objects, Bucket="data")
    assert [each["Key"] for each in listed["Contents"]] == ["<&>\r\n", "tab\tand\x01"]


async def test_listings_come_in_pages_with_folded_prefixes(s3: Served):
    client = s3.client()
    for key in ("a", "b/1", "b/2", "c d/1", "e+"):
        await s3.buckets.put("acc_alice", "data", key, b"x")

    for operation in ("list_objects_v2", "list_objects"):
        paginator = client.get_paginator(operation)

        def pages(paginator: Any = paginator, **given: Any) -> list[Any]:
            return list(paginator.paginate(Bucket="data", **given))

        found = await ask(pages, Delimiter="/", PaginationConfig={"PageSize": 2})
        assert len(found) == 2
        names = [
            [each["Key"] for each in page.get("Contents", [])]
            + [each["Prefix"] for each in page.get("CommonPrefixes", [])]
            for page in found
        ]
        assert names == [["a", "b/"], ["e+", "c d/"]]
        flat = await ask(pages, Prefix="b/", PaginationConfig={"PageSize": 1})
        assert [each["Key"] for page in flat for each in page["Contents"]] == ["b/1", "b/2"]
    started = await ask(client.list_objects_v2, Bucket="data", StartAfter="b/2", FetchOwner=True)
    assert [(each["Key"], each["Owner"]["ID"]) for each in started["Contents"]] == [
        ("c d/1", "000000000001"),
        ("e+", "000000000001"),
    ]
    empty = await ask(client.list_objects_v2, Bucket="data", Prefix="none/", MaxKeys=1)
    assert (empty["KeyCount"], empty["IsTruncated"], "Contents" in empty) == (0, False, False)
    assert await refused(
        client.list_objects_v2, Bucket="data", ContinuationToken="not one of ours"
    ) == (400, "InvalidArgument")


async def test_parts_of_an_object_are_read_by_range(s3: Served):
    client = s3.client()
    data = os.urandom(3 * MIB + 7)
    await ask(client.put_object, Bucket="data", Key="big", Body=data)
    for header, part in (
        ("bytes=0-0", data[:1]),
        ("bytes=5-2000000", data[5:2000001]),
        ("bytes=3145728-", data[3145728:]),
        ("bytes=-9", data[-9:]),
        ("bytes=7-99999999", data[7:]),
    ):
        got = await ask(client.get_object, Bucket="data", Key="big", Range=header)
        assert got["ResponseMetadata"]["HTTPStatusCode"] == 206
        assert await asyncio.to_thread(got["Body"].read) == part
        assert got["ContentRange"].endswith(f"/{len(data)}")
    assert await refused(
        client.get_object, Bucket="data", Key="big", Range=f"bytes={len(data)}-"
    ) == (416, "InvalidRange")


async def test_conditional_reads_and_writes(s3: Served):
    client = s3.client()
    at = {"Bucket": "data", "Key": "k"}
    etag = (await ask(client.put_object, Body=b"1", IfNoneMatch="*", **at))["ETag"]
    modified = (await ask(client.head_object, **at))["LastModified"]

    await ask(client.get_object, IfMatch=etag, **at)
    assert [
        await refused(client.get_object, IfNoneMatch=etag, **at),
        await refused(client.get_object, IfModifiedSince=modified, **at),
        await refused(client.get_object, IfMatch='"other"', **at),
        await refused(client.get_object, IfUnmodifiedSince="2001-01-01T00:00:00Z", **at),
        await refused(client.put_object, Body=b"2", IfNoneMatch="*", **at),
        await refused(client.put_object, Body=b"2", IfMatch='"other"', **at),
    ] == [
        (304, "304"),
        (304, "304"),
        (412, "PreconditionFailed"),
        (412, "PreconditionFailed"),
        (412, "PreconditionFailed"),
        (412, "PreconditionFailed"),
    ]
    await ask(client.put_object, Body=b"3", IfMatch=etag, **at)
    assert await content(client, **at) == b"3"


async def test_objects_are_copied_with_their_metadata_or_with_new(s3: Served):
    client = s3.client()
    await ask(
        client.put_object,
        Bucket="data",
        Key="from + é",
        Body=b"x",
        Metadata={"a": "1"},
        ContentType="text/x",
    )
    source = {"Bucket": "data", "Key": "from + é"}
    await ask(client.copy_object, Bucket="data", Key="same", CopySource=source)
    await ask(
        client.copy_object,
        Bucket="data",
        Key="new",
        CopySource=source,
        MetadataDirective="REPLACE",
        Metadata={"b": "2"},
    )
    same = await ask(client.head_object, Bucket="data", Key="same")
    new = await ask(client.head_object, Bucket="data", Key="new")
    assert (same["Metadata"], same["ContentType"]) == ({"a": "1"}, "text/x")
    assert new["Metadata"] == {"b": "2"}
    assert [
        await refused(client.copy_object, CopySource=source, **source),
        await refused(client.copy_object, Bucket="data", Key="n", CopySource="data/none"),
        await refused(client.copy_object, Bucket="data", Key="n", CopySource="none/x"),
        await refused(
            client.copy_object, Bucket="data", Key="n", CopySource=source, CopySourceIfMatch="no"
        ),
    ] == [
        (400, "InvalidRequest"),
        (404, "NoSuchKey"),
        (404, "NoSuchBucket"),
        (412, "PreconditionFailed"),
    ]


# ── multipart uploads ─────────────────────────────────────────────────────────────────────────


async def test_an_object_in_parts_is_joined(s3: Served):
    client = s3.client()
    at = {"Bucket": "data", "Key": "big"}
    await s3.buckets.put("acc_alice", "data", "source", b"-" * 10 + b"s" * 20)
    upload = await ask(
        client.create_multipart_upload, ContentType="text/x", Metadata={"a": "1"}, **at
    )
    its = at | {"UploadId": upload["UploadId"]}
    first, second = os.urandom(5 * MIB), os.urandom(3)
    one = await ask(client.upload_part, PartNumber=1, Body=first, **its)
    copied = await ask(
        client.upload_part_copy,
        PartNumber=3,
        CopySource="data/source",
        CopySourceRange="bytes=10-29",
        **its,
    )
    await ask(client.upload_part, PartNumber=2, Body=second, **its)

    parts = await ask(client.list_parts, MaxParts=2, **its)
    assert [(p["PartNumber"], p["Size"]) for p in parts["Parts"]] == [(1, 5 * MIB), (2, 3)]
    assert (parts["IsTruncated"], parts["NextPartNumberMarker"]) == (True, 2)
    uploads = await ask(client.list_multipart_uploads, Bucket="data")
    assert [each["UploadId"] for each in uploads["Uploads"]] == [upload["UploadId"]]

    wanted = [
        {"PartNumber": 1, "ETag": one["ETag"]},
        {"PartNumber": 3, "ETag": copied["CopyPartResult"]["ETag"]},
    ]
    done = await ask(client.complete_multipart_upload, MultipartUpload={"Parts": wanted}, **its)
    got = await ask(client.get_object, **at)

    data = first + b"s" * 20
    digests = hashlib.md5(first).digest() + hashlib.md5(b"s" * 20).digest()
    assert done["ETag"] == f'"{hashlib.md5(digests).hexdigest()}-2"'
    assert (await asyncio.to_thread(got["Body"].read), got["ContentType"], got["Metadata"]) == (
        data,
        "text/x",
        {"a": "1"},
    )
    assert await refused(client.list_parts, **its) == (404, "NoSuchUpload")


async def test_parts_that_cannot_be_joined_are_refused(s3: Served):
    client = s3.client()
    at = {"Bucket": "data", "Key": "big"}
    upload = await ask(client.create_multipart_upload, **at)
    its = at | {"UploadId": upload["UploadId"]}
    tags = [
        (await ask(client.upload_part, PartNumber=n, Body=b"small", **its))["ETag"] for n in (1, 2)
    ]

    async def completed(*parts: tuple[int, str]) -> tuple[int, str]:
        wanted = [{"PartNumber": n, "ETag": tag} for n, tag in parts]
        return await refused(
            client.complete_multipart_upload, MultipartUpload={"Parts": wanted}, **its
        )

    assert [
        await completed((1, tags[0]), (2, tags[1])),
        await completed((2, tags[1]), (1, tags[0])),
        await completed((1, '"wrong"')),
        await completed((3, tags[0])),
        await refused(client.upload_part, PartNumber=10_001, Body=b"x", **its),
        await refused(client.abort_multipart_upload, **(its | {"Key": "other"})),
    ] == [
        (400, "EntityTooSmall"),
        (400, "InvalidPartOrder"),
        (400, "InvalidPart"),
        (400, "InvalidPart"),
        (400, "InvalidArgument"),
        (404, "NoSuchUpload"),
    ]
    await ask(client.abort_multipart_upload, **its)
    assert "Uploads" not in await ask(client.list_multipart_uploads, Bucket="data")
    assert [f for f in s3.blobs.path("objects").rglob("*") if f.is_file()] == []


async def test_a_body_that_is_too_large_is_refused_before_it_is_sent(s3: Served):
    client = s3.client()
    with pytest.raises(ClientError) as error:
        await ask(client.put_object, Bucket="data", Key="k", Body=bytes(65 * MIB))
    assert error.value.response["Error"]["Code"] == "EntityTooLarge"
    assert "send it in parts (a multipart upload), as `aws s3 cp`" in str(error.value)
    await ask(client.put_object, Bucket="data", Key="k", Body=b"x")  # the client goes on


# ── who may ───────────────────────────────────────────────────────────────────────────────────


async def test_accounts_and_rights_are_kept(s3: Served):
    await ask(s3.client().put_object, Bucket="data", Key="k", Body=b"x")
    bob, reader, agent = s3.client("BOB"), s3.client("READER"), s3.client("AGENT")
    narrow, thief = s3.client("NARROW"), s3.client("ALICE", "wrong")

    assert await refused(bob.get_object, Bucket="data", Key="k") == (404, "NoSuchBucket")
    assert (await ask(bob.list_buckets))["Buckets"] == []
    assert await content(reader, Bucket="data", Key="k") == b"x"
    source = {"Bucket": "data", "Key": "k"}
    for refusal in (
        refused(reader.put_object, Bucket="data", Key="k", Body=b"y"),
        refused(reader.delete_object, Bucket="data", Key="k"),
        refused(reader.copy_object, Bucket="data", Key="l", CopySource=source),
        refused(reader.create_multipart_upload, Bucket="data", Key="k"),
        refused(reader.delete_objects, Bucket="data", Delete={"Objects": [{"Key": "k"}]}),
        refused(agent.get_object, Bucket="data", Key="k"),
        refused(agent.list_buckets),
        refused(narrow.get_object, Bucket="data", Key="k"),
    ):
        assert await refusal == (403, "AccessDenied")
    assert await refused(thief.list_buckets) == (403, "SignatureDoesNotMatch")
    assert await refused(s3.client("NOBODY").list_buckets) == (403, "InvalidAccessKeyId")
    assert await content(s3.client(), Bucket="data", Key="k") == b"x"


async def test_the_audit_trail_is_told_where_and_never_what(s3: Served):
    client = s3.client()
    await ask(client.put_object, Bucket="data", Key="k", Body=b"secret")
    await refused(client.get_object, Bucket="data", Key="none")
    first, second = s3.outcomes
    assert (first.service, first.operation, first.error) == ("s3", "PutObject", "")
    assert first.parameters == {"bucketName": "data", "key": "k"}
    assert (second.operation, second.error) == ("GetObject", "NoSuchKey")
    assert "secret" not in repr(first)


@pytest.mark.parametrize("version", ["s3v4", None])
async def test_presigned_urls_are_for_whoever_has_them_and_for_what_they_say(
    s3: Served, version: str | None
):
    client = s3.client(signature_version=version)
    at = {"Bucket": "data", "Key": "ü n+i.txt"}

    def url(operation: str, **more: Any) -> str:
        made: str = client.generate_presigned_url(operation, Params=at | more, ExpiresIn=60)
        return made

    async with httpx.AsyncClient(verify=False, timeout=10) as browser:
        put = await browser.put(
            url("put_object", ContentType="text/x"),
            content=b"hello",
            headers={"content-type": "text/x"},
        )
        got = await browser.get(url("get_object", ResponseContentDisposition="attachment"))
        other = await browser.put(url("get_object"), content=b"other")
        forged = await browser.get(url("get_object").replace("data/", "other/"))
        split = await browser.get(url("get_object", ResponseContentType="a\r\nx: y"))
        unsigned = await browser.get(url("get_object").partition("Signature=")[0])
    assert (put.status_code, got.status_code, got.content) == (200, 200, b"hello")
    assert (got.headers["content-type"], got.headers["content-disposition"]) == (
        *("text/x", "attachment"),
    )
    assert got.headers["content-security-policy"] == "sandbox"
    assert [each.status_code for each in (other, forged, unsigned)] == [403, 403, 403]
    assert (split.status_code, "<Code>InvalidArgument</Code>" in split.text) == (400, True)


# ── bodies in chunks, and checksums ───────────────────────────────────────────────────────────


async def put_raw(s3: Served, body: bytes, headers: dict[str, str]) -> httpx.Response:
    """A signed PUT with these headers, as clients over TLS send it."""
    request = AWSRequest("PUT", f"{s3.url}/data/raw", headers=headers)
    S3SigV4Auth(Credentials("ALICE", SECRET), "s3", REGION).add_auth(request)
    async with httpx.AsyncClient(verify=False, timeout=10) as browser:
        return await browser.put(
            f"{s3.url}/data/raw", content=body, headers=dict(request.headers.items())
        )


class UnsignedTrailer(S3SigV4Auth):
    def payload(self, request: AWSRequest) -> str:
        return "STREAMING-UNSIGNED-PAYLOAD-TRAILER"


async def put_chunked(s3: Served, body: bytes, headers: dict[str, str]) -> httpx.Response:
    url = f"{s3.url}/data/raw"
    request = AWSRequest("PUT", url, headers=headers)
    request.headers["X-Amz-Content-SHA256"] = "STREAMING-UNSIGNED-PAYLOAD-TRAILER"
    UnsignedTrailer(Credentials("ALICE", SECRET), "s3", REGION).add_auth(request)
    async with httpx.AsyncClient(verify=False, timeout=10) as browser:
        return await browser.put(url, content=body, headers=dict(request.headers.items()))


def chunked(data: bytes, size: int = 1000) -> bytes:
    """As botocore sends it over TLS."""
    wrapper = AwsChunkedWrapper(
        io.BytesIO(data),
        checksum_cls=Crc32Checksum,
        checksum_name="x-amz-checksum-crc32",
        chunk_size=size,
    )
    body: bytes = wrapper.read()
    return body


async def test_a_body_in_chunks_is_kept_without_them(s3: Served):
    data = os.urandom(2500)
    headers = {
        "content-encoding": "gzip,aws-chunked",
        "x-amz-trailer": "x-amz-checksum-crc32",
        "x-amz-decoded-content-length": "2500",
    }
    reply = await put_chunked(s3, chunked(data), headers)
    stored, path = await s3.buckets.get("acc_alice", "data", "raw")

    assert reply.status_code == 200, reply.text
    assert path.read_bytes() == data
    assert stored.headers["content-encoding"] == "gzip"
    checksum = base64.b64encode(zlib.crc32(data).to_bytes(4, "big")).decode()
    assert stored.headers["x-amz-checksum-crc32"] == checksum


async def test_a_body_that_is_not_what_its_trailer_says_is_refused(s3: Served):
    good = chunked(b"hello")
    lengths = {"x-amz-decoded-content-length": "5"}
    replies = [
        await put_chunked(s3, good.replace(b"hello", b"hullo"), lengths),
        await put_chunked(s3, good, {"x-amz-decoded-content-length": "6"}),
        await put_chunked(s3, good[:-20], lengths),
        await put_chunked(s3, b"zz\r\n" + good, lengths),
        await put_chunked(s3, b"fffffff\r\n" + good, lengths),
    ]
    assert [reply.text.split("<Code>")[1].split("<")[0] for reply in replies] == [
        *("BadDigest", "IncompleteBody", "IncompleteBody", "IncompleteBody", "IncompleteBody"),
    ]
    assert [reply.status_code for reply in replies] == [400] * 5
    assert (await s3.buckets.list("acc_alice", "data")).objects == []


@pytest.mark.parametrize("algorithm", ["CRC32", "CRC32C", "CRC64NVME", "SHA1", "SHA256"])
async def test_every_checksum_is_verified(s3: Served, algorithm: str):
    data = os.urandom(5000)
    digest = {
        "CRC32": zlib.crc32(data).to_bytes(4, "big"),
        "CRC32C": crc32c(data).to_bytes(4, "big"),
        "CRC64NVME": crc64nvme(data).to_bytes(8, "big"),
        "SHA1": hashlib.sha1(data).digest(),
        "SHA256": hashlib.sha256(data).digest(),
    }[algorithm]
    client, name = s3.client(), "Checksum" + algorithm
    at = {"Bucket": "data", "Key": "k", "Body": data}
    right = base64.b64encode(digest).decode()
    wrong = base64.b64encode(digest[::-1]).decode()

    put = await ask(client.put_object, **at, **{name: right})
    assert put[name] == right
    assert await refused(client.put_object, **at, **{name: wrong}) == (400, "BadDigest")
    assert await refused(client.put_object, **at, **{name: "AAA="}) == (400, "InvalidRequest")


async def test_a_body_whose_md5_or_hash_differs_is_refused(s3: Served):
    md5 = base64.b64encode(hashlib.md5(b"other").digest()).decode()
    differs = await put_raw(s3, b"hello", {"content-md5": md5, "x-amz-content-sha256": ""})
    signed = AWSRequest("PUT", f"{s3.url}/data/raw", data=b"signed")
    S3SigV4Auth(Credentials("ALICE", SECRET), "s3", REGION).add_auth(signed)
    async with httpx.AsyncClient(verify=False, timeout=10) as browser:
        swapped = await browser.put(
            f"{s3.url}/data/raw", content=b"swapped", headers=dict(signed.headers.items())
        )
    assert differs.status_code in (400, 403)
    assert (swapped.status_code, "the body is not the one that was signed" in swapped.text) == (
        *(403, True),
    )


def test_a_body_that_is_signed_chunk_by_chunk_is_refused_with_the_way_out():
    request = Request(
        method="PUT",
        path="/data/k",
        query="",
        headers={"x-amz-content-sha256": "STREAMING-AWS4-HMAC-SHA256-PAYLOAD"},
        body=b"",
    )
    with pytest.raises(AwsError, match="sign the whole body") as refusal:
        read_body(request)
    assert (refusal.value.code, refusal.value.status) == ("NotImplemented", 501)


@given(st.binary(max_size=3000), st.integers(1, 700))
def test_chunks_of_any_size_give_the_data(data: bytes, size: int):
    body, trailer = unchunk(chunked(data, size))
    assert body == data
    wanted = base64.b64encode(zlib.crc32(data).to_bytes(4, "big")).decode()
    assert trailer == {"x-amz-checksum-crc32": wanted}


@given(st.binary(max_size=200))
def test_any_bytes_are_chunks_or_refused(body: bytes):
    with contextlib.suppress(AwsError):
        data, _ = unchunk(body)
        assert len(data) < len(body)


def slow_crc(data: bytes, polynomial: int, bits: int) -> int:
    """By the definition, a bit at a time."""
    state = ones = (1 << bits) - 1
    for byte in data:
        state ^= byte
        for _ in range(8):
            state = (state >> 1) ^ (polynomial if state & 1 else 0)
    return state ^ ones


@given(st.binary(max_size=100), st.integers(0, 40))
def test_the_checksums_are_those_of_the_definition(data: bytes, times: int):
    data = data * times
    assert crc32c(data) == slow_crc(data, 0x82F63B78, 32)
    assert crc64nvme(data) == slow_crc(data, 0x9A6C9329AC4BC9B5, 64)


# ── small parts ───────────────────────────────────────────────────────────────────────────────


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=50))
def test_any_key_survives_its_path(key: str):
    assert split_path(f"/data/{quote(key, safe='/~')}") == ("data", key)


def test_a_path_that_is_not_utf8_is_refused():
    with pytest.raises(AwsError) as refusal:
        split_path("/data/%ff")
    assert refusal.value.code == "InvalidURI"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<Delete",
        b"<Other/>",
        b"<!DOCTYPE a []><Delete/>",
        "<!DOCTYPE a []><Delete/>".encode("utf-16"),
        b'<?xml version="1.0" encoding="cp037"?>' + "<!DOCTYPE a []><Delete/>".encode("cp037"),
        b"\xff",
        b"<Delete>" + b" " * xml.MAX_BYTES + b"</Delete>",
    ],
)
def test_a_body_that_is_not_s3s_xml_is_refused(body: bytes):
    with pytest.raises(AwsError) as refusal:
        xml.Element.parse(body, "Delete")
    assert refusal.value.code == "MalformedXML"


async def test_the_audit_trail_is_told_no_signature_of_a_presigned_url(tmp_path: Path):
    store = SqlStore.in_memory()
    service = S3(Buckets(store, FolderBlobs(tmp_path), SYSTEM_CLOCK, new_id))
    outcome = Outcome(service="s3")
    query = "AWSAccessKeyId=ALICE&Signature=abc%3D&Expires=9&response-expires=x&X-Amz-Signature=f"
    request = Request(method="GET", path="/data/key", query=query, headers={}, body=b"")
    await service.answer(a_call(), request, outcome)
    await store.close()
    assert outcome.parameters == {"bucketName": "data", "key": "key", "response-expires": "x"}


@pytest.mark.parametrize("number", ["9" * 5000, "-1", "\u0669"])
def test_a_number_that_is_none_is_refused(number: str):
    request = Request(method="GET", path="/data", query="", headers={}, body=b"")
    asked = Asked(call=a_call(), request=request, bucket="d", key="", query={"max-keys": number})
    with pytest.raises(AwsError, match="must be 0 to"):
        asked.number("max-keys", 1)


def test_ranges_that_are_not_plain_are_ignored():
    ignored = ("bytes=1-2,4-5", "bytes=-", "lines=1-2", "bytes=5-2", "")
    assert [conditions.byte_range(text, 10) for text in ignored] == [None] * len(ignored)
    with pytest.raises(AwsError):
        conditions.byte_range("bytes=0-0", 0)


def test_a_time_that_cannot_be_read_is_no_condition():
    stored = StoredObject("b", "k", 1, "e", 100.5)
    assert not conditions.is_unchanged(stored, {"if-modified-since": "yesterday"})
    at = conditions.http_date(100.5)
    assert conditions.is_unchanged(stored, {"if-modified-since": at})
    assert not conditions.is_unchanged(stored, {"if-unmodified-since": at})


async def test_a_replaced_object_is_read_to_its_end(s3: Served):
    old, new = os.urandom(8 * MIB), b"new"
    await s3.buckets.put("acc_alice", "data", "k", old)
    got = await ask(s3.client().get_object, Bucket="data", Key="k")
    pieces: Iterator[bytes] = got["Body"].iter_chunks(MIB)
    first = await asyncio.to_thread(next, pieces)
    await s3.buckets.put("acc_alice", "data", "k", new)
    rest = await asyncio.to_thread(lambda: b"".join(pieces))
    assert first + rest == old


# ── a real S3 of somebody else's, as our server reads it ──────────────────────────────────────


async def test_a_server_reads_and_writes_the_buckets_of_another_s3(
    s3: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for name, value in {
        "AWS_ACCESS_KEY_ID": "ALICE",
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_DEFAULT_REGION": REGION,
    }.items():
        monkeypatch.setenv(name, value)
    for key in ("rows/b.csv", "rows/a.csv", "rows-2.csv"):
        await s3.buckets.put("acc_alice", "data", key, key.encode())
    store = SqlStore.in_memory()
    here = Buckets(
        store,
        FolderBlobs(tmp_path / "here"),
        SYSTEM_CLOCK,
        new_id,
        remote=RemoteS3(s3.url),
    )

    folder = await here.download(OPERATORS, "s3://data/rows")
    assert {each.name: each.read_text() for each in folder.iterdir()} == {
        "a.csv": "rows/a.csv",
        "b.csv": "rows/b.csv",
    }
    await here.upload(OPERATORS, folder, "s3://data/copied")
    copied = await s3.buckets.list("acc_alice", "data", "copied/")
    assert [each.key for each in copied.objects] == ["copied/a.csv", "copied/b.csv"]
    await here.transfer.check_writable(OPERATORS, parse_location("s3://data/out"), "output_path")
    for call in (
        here.download(OPERATORS, "s3://nowhere/rows"),
        here.transfer.check_writable(OPERATORS, parse_location("s3://nowhere/out"), "output_path"),
    ):
        with pytest.raises(errors.InvalidInput, match=r"s3://nowhere' is refused by S3: .*names"):
            await call
    await store.close()


async def test_a_real_s3_without_boto3_names_the_extra(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "boto3", None)
    with pytest.raises(errors.InvalidInput, match=r"pip install 'turnwise\[s3\]'"):
        RemoteS3("https://s3.us-west-2.amazonaws.com")
