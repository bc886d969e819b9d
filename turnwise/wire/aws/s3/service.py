"""S3 as a service of the AWS door: which operation a method, a path and a query mean.

Addresses are path-style, `/bucket/key`. Reading needs the right to read, anything else to manage.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace

from turnwise import errors
from turnwise.control.objects.buckets import Buckets
from turnwise.domain.access import Action
from turnwise.wire.aws.door import Outcome
from turnwise.wire.aws.protocols import Reply, Request
from turnwise.wire.aws.s3 import xml
from turnwise.wire.aws.s3.asked import XML, Asked, Handler, describe
from turnwise.wire.aws.s3.buckets import bucket_operations
from turnwise.wire.aws.s3.multipart import multipart_operations
from turnwise.wire.aws.s3.objects import check_owner, object_operations
from turnwise.wire.aws.service import AwsError, Call

log = logging.getLogger(__name__)

#: Parts of a query that choose an operation, in the order in which they are looked for.
_MARKS = ("uploadId", "uploads", "delete", "location", "list-type")
#: Parts of a query that belong to operations which are not here.
_ELSEWHERE = frozenset(
    {
        "accelerate",
        "acl",
        "analytics",
        "attributes",
        "cors",
        "encryption",
        "intelligent-tiering",
        "inventory",
        "legal-hold",
        "lifecycle",
        "logging",
        "metrics",
        "notification",
        "object-lock",
        "ownershipControls",
        "policy",
        "policyStatus",
        "publicAccessBlock",
        "replication",
        "requestPayment",
        "restore",
        "retention",
        "select",
        "session",
        "tagging",
        "torrent",
        "versioning",
        "versions",
        "website",
    }
)

_BUCKET: Mapping[tuple[str, str], str] = {
    ("GET", "location"): "GetBucketLocation",
    ("GET", "uploads"): "ListMultipartUploads",
    ("GET", "list-type"): "ListObjectsV2",
    ("GET", ""): "ListObjects",
    ("HEAD", ""): "HeadBucket",
    ("PUT", ""): "CreateBucket",
    ("DELETE", ""): "DeleteBucket",
    ("POST", "delete"): "DeleteObjects",
}
_OBJECT: Mapping[tuple[str, str], str] = {
    ("GET", "uploadId"): "ListParts",
    ("GET", ""): "GetObject",
    ("HEAD", ""): "HeadObject",
    ("PUT", "uploadId"): "UploadPart",
    ("PUT", ""): "PutObject",
    ("POST", "uploads"): "CreateMultipartUpload",
    ("POST", "uploadId"): "CompleteMultipartUpload",
    ("DELETE", "uploadId"): "AbortMultipartUpload",
    ("DELETE", ""): "DeleteObject",
}
#: Of an older presigned URL; whoever reads the audit trail must not be able to use it again.
_SIGNATURE = frozenset({"AWSAccessKeyId", "Signature", "Expires"})
_COPIES = {"PutObject": "CopyObject", "UploadPart": "UploadPartCopy"}


class S3:
    """`door.Answering` over an account's buckets."""

    name = "s3"

    def __init__(self, buckets: Buckets) -> None:
        self._handlers: Mapping[str, Handler] = {
            **bucket_operations(buckets),
            **object_operations(buckets),
            **multipart_operations(buckets),
        }

    @property
    def operations(self) -> Mapping[str, Handler]:
        """What answers each operation."""
        return self._handlers

    def open(self) -> None:
        """Nothing: its operations are known without a model."""

    async def answer(self, call: Call, request: Request, outcome: Outcome) -> Reply:
        """Answer a verified call and say in `outcome` what it was. Raises nothing."""
        try:
            asked = Asked.of(call, request)
            outcome.operation = operation_of(asked)
            outcome.parameters = _parameters(asked)
            _check_rights(call, outcome.operation)
            check_owner(asked, "x-amz-expected-bucket-owner")
            reply = await self._handlers[outcome.operation](asked)
        except Exception as error:
            if not isinstance(error, errors.TurnwiseError | AwsError):
                log.exception("s3 %s failed", outcome.operation)
            _, outcome.error, outcome.message = describe(error)
            return _fault(error, request.path, call.request_id)
        return _signed(reply, call.request_id)

    def fault(self, error: Exception, request_id: str) -> Reply:
        """An error in S3's own shape."""
        return _fault(error, "", request_id)


def operation_of(asked: Asked) -> str:
    """The operation that is called. Raises `AwsError` for one that is not here."""
    query = asked.query
    if elsewhere := sorted(_ELSEWHERE & set(query)):
        raise _unknown(asked, elsewhere[0])
    if query.get("versionId", "null") != "null":
        raise _unknown(asked, "versionId")
    mark = next((each for each in _MARKS if each in query), "")
    if not asked.bucket:
        if asked.request.method != "GET":
            raise _unknown(asked, "")
        return "ListBuckets"
    table = _OBJECT if asked.key else _BUCKET
    operation = table.get((asked.request.method, mark))
    if operation is None:
        raise _unknown(asked, mark)
    if asked.header("x-amz-copy-source"):
        return _COPIES.get(operation, operation)
    return operation


def _unknown(asked: Asked, mark: str) -> AwsError:
    what = f"{asked.request.method} {asked.request.path}" + (f"?{mark}" if mark else "")
    return AwsError("NotImplemented", f"{what} is not served here", status=501)


def _parameters(asked: Asked) -> dict[str, str]:
    """What the audit trail keeps of a call: where it went, and none of the content."""
    given = {"bucketName": asked.bucket, "key": asked.key} | {
        name: value
        for name, value in asked.query.items()
        if not name.startswith("X-Amz-") and name not in _SIGNATURE
    }
    source = asked.header("x-amz-copy-source")
    given |= {"x-amz-copy-source": source} if source else {}
    return {name: value for name, value in given.items() if value}


def _check_rights(call: Call, operation: str) -> None:
    is_read = operation.startswith(("Get", "Head", "List"))
    call.principal.require_all(Action.READ if is_read else Action.MANAGE, "buckets")


def _fault(error: Exception, resource: str, request_id: str) -> Reply:
    status, code, message = describe(error)
    body = xml.fault(code, message, resource, request_id)
    return _signed(Reply(status=status, body=body, media_type=XML), request_id)


def _signed(reply: Reply, request_id: str) -> Reply:
    """The answer with the number that it is found by in the audit trail."""
    return replace(reply, headers=(*reply.headers, ("x-amz-request-id", request_id)))
