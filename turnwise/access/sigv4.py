"""AWS Signature Version 4: who signed a request, and whether the signature is right. Pure.

https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_sigv-create-signed-request.html

A signature comes in the Authorization header or, of a presigned URL, in the query. botocore's own
signer makes the one that it is compared with.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from urllib.parse import parse_qsl

from botocore.auth import S3SigV4Auth, SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from turnwise import errors

ALGORITHM = "AWS4-HMAC-SHA256"
UNSIGNED = "UNSIGNED-PAYLOAD"

#: How far a client's clock may be off, seconds; AWS allows as much.
MAX_SKEW_S = 15 * 60
#: Longest life of a presigned URL, seconds; AWS allows as much.
MAX_EXPIRES_S = 7 * 24 * 3600

_SIGNED_AT = re.compile(r"[0-9]{8}T[0-9]{6}Z")
_EXPIRES = re.compile(r"[0-9]{1,9}")
_PART = re.compile(r"(Credential|SignedHeaders|Signature)=([^,\s]+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class SignedRequest:
    """A request as it arrived: `path` and `query` still percent-encoded, header names lower case.

    `body_sha256` is the hash of the body in hex, of what was received.
    """

    method: str
    path: str
    query: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    body_sha256: str = hashlib.sha256(b"").hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Signature:
    """What a client claims: its access key, the scope, when, which headers, and the proof."""

    access_key_id: str
    date: str  # YYYYMMDD
    region: str
    service: str
    signed_at: str  # YYYYMMDD'T'HHMMSS'Z'
    headers: tuple[str, ...]
    digest: str  # hex
    expires_s: int | None = None  # of a presigned URL

    @classmethod
    def of(cls, request: SignedRequest) -> Signature | None:
        """The signature of a request; None if it has none. Raises `BadSignature`."""
        header = request.headers.get("authorization", "")
        if header.startswith(ALGORITHM):
            given = dict(_PART.findall(header))
            signed_at = request.headers.get("x-amz-date", "")
            return cls._read(given, signed_at, None)
        query = dict(parse_qsl(request.query, keep_blank_values=True))
        if query.get("X-Amz-Algorithm") != ALGORITHM:
            return None
        given = {name: query.get("X-Amz-" + name, "") for name in ("Credential", "SignedHeaders")}
        given["Signature"] = query.get("X-Amz-Signature", "")
        return cls._read(given, query.get("X-Amz-Date", ""), query.get("X-Amz-Expires", ""))

    @classmethod
    def _read(cls, given: Mapping[str, str], signed_at: str, expires: str | None) -> Signature:
        scope = given.get("Credential", "").split("/")
        if len(scope) != 5 or scope[4] != "aws4_request" or not given.get("Signature"):
            raise errors.BadSignature("the signature is incomplete")
        if expires is not None and not _EXPIRES.fullmatch(expires):
            raise errors.BadSignature("X-Amz-Expires must be a number of seconds")
        return cls(
            access_key_id=scope[0],
            date=scope[1],
            region=scope[2],
            service=scope[3],
            signed_at=signed_at,
            headers=tuple(given.get("SignedHeaders", "").lower().split(";")),
            digest=given["Signature"],
            expires_s=None if expires is None else int(expires),
        )


def check_time(signature: Signature, now: float, *, max_expires_s: int = MAX_EXPIRES_S) -> None:
    """Raise `BadSignature` unless the signature is valid at `now` (seconds since the epoch)."""
    if signature.signed_at[:8] != signature.date:
        raise errors.BadSignature("the credential's date is not that of X-Amz-Date")
    if signature.expires_s is not None and signature.expires_s > max_expires_s:
        raise errors.BadSignature(f"X-Amz-Expires is over {max_expires_s} s")
    if _signed_at(signature) > now + MAX_SKEW_S:
        raise errors.BadSignature("the signature is not yet valid; set the client's clock")
    if now > expires_at(signature):
        raise errors.BadSignature("the signature has expired; sign again")


def expires_at(signature: Signature) -> float:
    """When the signature ends to be valid, seconds since the epoch. Raises `BadSignature`."""
    life = MAX_SKEW_S if signature.expires_s is None else signature.expires_s
    return _signed_at(signature) + life


def _signed_at(signature: Signature) -> float:
    try:
        if _SIGNED_AT.fullmatch(signature.signed_at):
            return datetime.fromisoformat(signature.signed_at).timestamp()
    except ValueError:
        pass
    raise errors.BadSignature("the request says no time in X-Amz-Date")


def check_signature(request: SignedRequest, signature: Signature, secret: str) -> None:
    """Raise `BadSignature` unless the request was signed with this secret, as it arrived.

    The host and every x-amz-* header must be signed, for they say what is asked; and so must the
    body, but for S3, where a client may say that it is not.
    """
    if "host" not in signature.headers:
        raise errors.BadSignature("the Host header must be signed")
    for name in request.headers:
        if name.startswith("x-amz-") and name not in signature.headers:
            raise errors.BadSignature(f"the header {name} must be signed")
    body = _body_digest(request, signature)
    signer = (S3SigV4Auth if signature.service == "s3" else SigV4Auth)(
        Credentials(signature.access_key_id, secret), signature.service, signature.region
    )
    canonical = "\n".join(
        (
            request.method,
            signer._normalize_url_path(request.path),
            _canonical_query(request.query),
            *(f"{name}:{_header(request, name)}" for name in signature.headers),
            "",
            ";".join(signature.headers),
            body,
        )
    )
    signed = AWSRequest()
    signed.context["timestamp"] = signature.signed_at
    expected = signer.signature(signer.string_to_sign(signed, canonical), signed)
    if not hmac.compare_digest(expected.encode(), signature.digest.encode()):
        raise errors.BadSignature(
            "the request signature does not match; check the secret access key and the signing"
        )


def _body_digest(request: SignedRequest, signature: Signature) -> str:
    claimed = request.headers.get("x-amz-content-sha256", "")
    if not claimed:
        is_url = signature.expires_s is not None
        return UNSIGNED if is_url and signature.service == "s3" else request.body_sha256
    # Of a body that is streamed in chunks or left unsigned, the client says so in a word.
    if re.fullmatch(r"[0-9a-f]{64}", claimed) and claimed != request.body_sha256:
        raise errors.BadSignature("the body is not the one that was signed")
    if signature.service != "s3" and claimed != request.body_sha256:
        raise errors.BadSignature("the body must be signed")
    return claimed


def _canonical_query(query: str) -> str:
    """The query's pairs in order, percent-encoded as they came, without the signature itself."""
    pairs = (part.partition("=") for part in query.split("&") if part)
    kept = sorted((name, value) for name, _, value in pairs if name != "X-Amz-Signature")
    return "&".join(f"{name}={value}" for name, value in kept)


def _header(request: SignedRequest, name: str) -> str:
    return " ".join(request.headers.get(name, "").split())
