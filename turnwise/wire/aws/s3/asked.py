"""One S3 call as its operation sees it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from urllib.parse import parse_qsl, unquote, unquote_to_bytes

from turnwise import errors
from turnwise.wire.aws.protocols import Reply, Request
from turnwise.wire.aws.s3 import xml
from turnwise.wire.aws.service import AwsError, Call

XML = "application/xml"

#: More than any number here has; Python refuses to read those of thousands.
_MAX_DIGITS = 18


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A verified call, taken apart: `bucket` and `key` decoded, "" where the path has none."""

    call: Call
    request: Request
    bucket: str
    key: str
    query: Mapping[str, str]

    @classmethod
    def of(cls, call: Call, request: Request) -> Asked:
        """Take a request apart. Raises `AwsError` for a path that is not UTF-8."""
        bucket, key = split_path(request.path)
        query = dict(parse_qsl(request.query, keep_blank_values=True))
        return cls(call=call, request=request, bucket=bucket, key=key, query=query)

    @property
    def account_id(self) -> str:
        """Whose buckets."""
        return self.call.principal.account_id

    def header(self, name: str) -> str:
        """A request header by its lower-case name; "" if absent."""
        return self.request.headers.get(name, "")

    def number(self, name: str, default: int, *, low: int = 0, high: int = 2**31 - 1) -> int:
        """A whole number of the query. Raises `AwsError`."""
        text = self.query.get(name, "")
        if not text:
            return default
        is_number = text.isascii() and text.isdecimal() and len(text) <= _MAX_DIGITS
        if not (is_number and low <= int(text) <= high):
            raise AwsError("InvalidArgument", f"{name}: {text[:60]!r} must be {low} to {high}")
        return int(text)

    @property
    def metadata(self) -> dict[str, str]:
        """The user's metadata."""
        start = "x-amz-meta-"
        headers = self.request.headers.items()
        found = {name[len(start) :]: value for name, value in headers if name.startswith(start)}
        if sum(len(name) + len(value) for name, value in found.items()) > 8192:
            raise AwsError("MetadataTooLarge", "the x-amz-meta-* headers are larger than 8 KB")
        return found


Handler = Callable[[Asked], Awaitable[Reply]]


def split_path(path: str) -> tuple[str, str]:
    """Bucket and key of a path as it was sent; a key keeps its slashes, dots and blanks.

    >>> split_path("/data/a//b%2Fc+d/")
    ('data', 'a//b/c+d/')
    """
    bucket, _, key = path.lstrip("/").partition("/") if path[:1] == "/" else ("", "", "")
    try:
        return unquote(bucket, errors="strict"), unquote_to_bytes(key).decode()
    except UnicodeDecodeError:
        raise AwsError("InvalidURI", "the path is not UTF-8, percent-encoded") from None


def answer(
    name: str, content: xml.Content, headers: tuple[tuple[str, str], ...] = (), status: int = 200
) -> Reply:
    """An answer in XML."""
    return Reply(status=status, body=xml.document(name, content), media_type=XML, headers=headers)


def empty(status: int = 200, headers: tuple[tuple[str, str], ...] = ()) -> Reply:
    """An answer without a body."""
    return Reply(status=status, body=b"", media_type=XML, headers=headers)


_NOT_FOUND = {"bucket": "NoSuchBucket", "object": "NoSuchKey", "upload": "NoSuchUpload"}
_INVALID = {"bucket": "InvalidBucketName", "key": "KeyTooLongError", "body": "EntityTooLarge"}
_CODES: Mapping[type[Exception], tuple[int, str]] = {
    errors.InvalidInput: (400, "InvalidArgument"),
    errors.NotFound: (404, "NoSuchKey"),
    errors.Conflict: (409, "OperationAborted"),
    errors.BadSignature: (403, "SignatureDoesNotMatch"),
    errors.UnknownKey: (403, "InvalidAccessKeyId"),
    errors.AccessError: (403, "AccessDenied"),
    errors.LimitExceeded: (503, "SlowDown"),
    errors.StorageFull: (507, "InsufficientStorage"),  # clients do not try again
    errors.Unavailable: (503, "ServiceUnavailable"),
    Exception: (500, "InternalError"),
}


def describe(error: Exception) -> tuple[int, str, str]:
    """Status, code and message of an error in S3's words."""
    if isinstance(error, AwsError):
        code = "AccessDenied" if error.code == "MissingAuthenticationToken" else error.code
        return error.status, code, str(error)
    status, code = next(_CODES[kind] for kind in type(error).__mro__ if kind in _CODES)
    text = str(error) if isinstance(error, errors.TurnwiseError) else "internal error"
    if isinstance(error, errors.NotFound):
        code = _NOT_FOUND.get(error.kind, code)
    if isinstance(error, errors.InvalidInput):
        code = _INVALID.get(error.field, code)
        if error.field == "body":
            text += "; send it in parts (a multipart upload), as `aws s3 cp` and upload_file do"
    return status, code, text
