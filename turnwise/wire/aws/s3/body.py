"""What a client sends as content: plain, or in aws-chunks with a trailer; and its checksums. Pure.

A chunk is its length in hex on a line, the data, and a line end; after one of length 0 come the
lines of the trailer, `name:value`, and an empty one.

https://docs.aws.amazon.com/AmazonS3/latest/API/sigv4-streaming-trailers.html
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from turnwise.wire.aws.protocols import Request
from turnwise.wire.aws.s3.crc import crc32c, crc64nvme
from turnwise.wire.aws.service import AwsError

CHECKSUM = "x-amz-checksum-"
_TRAILER = "STREAMING-UNSIGNED-PAYLOAD-TRAILER"

#: Checksum algorithm -> its digest, as sent in base64.
_DIGESTS: Mapping[str, Callable[[bytes], bytes]] = {
    "crc32": lambda data: zlib.crc32(data).to_bytes(4, "big"),
    "crc32c": lambda data: crc32c(data).to_bytes(4, "big"),
    "crc64nvme": lambda data: crc64nvme(data).to_bytes(8, "big"),
    "sha1": lambda data: hashlib.sha1(data, usedforsecurity=False).digest(),
    "sha256": lambda data: hashlib.sha256(data).digest(),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """Verified content and the checksum header that it was verified with, if any."""

    data: bytes
    checksums: Mapping[str, str] = field(default_factory=dict)


def read_body(request: Request) -> Sent:
    """The content of a request. Raises `AwsError` where it is not what was announced."""
    data = request.body
    trailer: dict[str, str] = {}
    claimed = request.headers.get("x-amz-content-sha256", "")
    if claimed == _TRAILER:
        data, trailer = unchunk(request.body)
    elif claimed.startswith("STREAMING-"):
        raise AwsError(
            "NotImplemented",
            f"bodies that are signed chunk by chunk ({claimed}) are not read here; sign the whole "
            "body, or send it with an unsigned trailer",
            status=501,
        )
    decoded = request.headers.get("x-amz-decoded-content-length", "")
    if decoded and decoded != str(len(data)):
        raise AwsError("IncompleteBody", f"{len(data)} bytes came, {decoded} were announced")
    _check_md5(data, request.headers.get("content-md5", ""))
    given = {name: value for name, value in request.headers.items() if _is_checksum(name)}
    given |= {name: value for name, value in trailer.items() if _is_checksum(name)}
    for name, value in given.items():
        _check(data, name.removeprefix(CHECKSUM), value)
    return Sent(data=data, checksums=given)


def unchunk(body: bytes) -> tuple[bytes, dict[str, str]]:
    """The data of a body in aws-chunks, and the trailer by lower-case names.

    >>> unchunk(b"3\\r\\nabc\\r\\n0\\r\\nx-amz-checksum-crc32:NSRBwg==\\r\\n\\r\\n")
    (b'abc', {'x-amz-checksum-crc32': 'NSRBwg=='})
    """
    data, at = bytearray(), 0
    while True:
        line, at = _line(body, at)
        size = _size(line)
        if size == 0:
            return bytes(data), _trailer(body, at)
        if body[at + size : at + size + 2] != b"\r\n":
            raise _incomplete("a chunk does not end where it should")
        data += body[at : at + size]
        at += size + 2


def _line(body: bytes, at: int) -> tuple[bytes, int]:
    end = body.find(b"\r\n", at)
    if end < 0:
        raise _incomplete("the last chunk is missing")
    return body[at:end], end + 2


def _size(line: bytes) -> int:
    digits = line.partition(b";")[0].strip()
    try:
        size = int(digits, 16)
    except ValueError:
        size = -1
    if size < 0 or not digits.isalnum():
        raise _incomplete(f"{line[:40]!r} is no length of a chunk")
    return size


def _trailer(body: bytes, at: int) -> dict[str, str]:
    found = {}
    while at < len(body):
        line, at = _line(body, at)
        if not line:
            break
        name, _, value = line.decode("latin-1").partition(":")
        found[name.strip().lower()] = value.strip()
    return found


def _incomplete(reason: str) -> AwsError:
    return AwsError("IncompleteBody", f"the body in chunks is broken: {reason}")


def _is_checksum(name: str) -> bool:
    return name.startswith(CHECKSUM) and name not in (CHECKSUM + "type", CHECKSUM + "algorithm")


def _check_md5(data: bytes, given: str) -> None:
    if given:
        digest = hashlib.md5(data, usedforsecurity=False).digest()
        _compare(digest, given, "Content-MD5", "InvalidDigest")


def _check(data: bytes, algorithm: str, given: str) -> None:
    digest = _DIGESTS.get(algorithm)
    if digest is None:
        raise AwsError(
            "InvalidRequest",
            f"{CHECKSUM}{algorithm} is no known checksum; known: {', '.join(_DIGESTS)}",
        )
    _compare(digest(data), given, CHECKSUM + algorithm, "InvalidRequest")


def _compare(digest: bytes, given: str, name: str, malformed: str) -> None:
    try:
        wanted = base64.b64decode(given, validate=True)
    except (binascii.Error, ValueError):
        wanted = b""
    if len(wanted) != len(digest):
        raise AwsError(malformed, f"{name} {given!r} is not a digest in base64")
    if not hmac.compare_digest(wanted, digest):
        raise AwsError(
            "BadDigest",
            f"{name} is {given}, but what came has {base64.b64encode(digest).decode()}",
        )
