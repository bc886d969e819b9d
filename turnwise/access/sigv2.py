"""S3's older presigned URLs (signature version 2), which boto3 and the AWS CLI make by default.

    ?AWSAccessKeyId=...&Signature=...&Expires=<seconds since the epoch>

They hold for S3 alone. botocore's own signer makes the signature that one is compared with.
"""

from __future__ import annotations

import hmac
import re
from dataclasses import dataclass
from urllib.parse import SplitResult, parse_qsl

from botocore.auth import HmacV1QueryAuth
from botocore.compat import HTTPHeaders
from botocore.credentials import Credentials

from turnwise import errors
from turnwise.access.sigv4 import MAX_EXPIRES_S, SignedRequest

_EXPIRES = re.compile(r"[0-9]{1,12}")

#: What marks such a URL.
MARK = "AWSAccessKeyId"


@dataclass(frozen=True, slots=True, kw_only=True)
class PresignedUrl:
    """What a URL claims: an access key, until when, and the proof. It names no region."""

    access_key_id: str
    expires_at: int  # seconds since the epoch
    digest: str  # base64
    region: str
    service: str = "s3"

    @classmethod
    def of(cls, request: SignedRequest, region: str) -> PresignedUrl | None:
        """The signature of a URL, taken for `region`; None if it has none of this version."""
        query = dict(parse_qsl(request.query, keep_blank_values=True))
        if MARK not in query:
            return None
        expires = query.get("Expires", "")
        if not _EXPIRES.fullmatch(expires) or "Signature" not in query:
            raise errors.BadSignature("the signature of the URL is incomplete")
        return cls(
            access_key_id=query[MARK],
            expires_at=int(expires),
            digest=query["Signature"],
            region=region,
        )


def check_time(signature: PresignedUrl, now: float, *, max_expires_s: int = MAX_EXPIRES_S) -> None:
    """Raise `BadSignature` unless the URL is valid at `now` (seconds since the epoch)."""
    if now > signature.expires_at:
        raise errors.BadSignature("the URL has expired; sign again")
    if signature.expires_at > now + max_expires_s:
        raise errors.BadSignature(f"the URL expires in more than {max_expires_s} s")


def check_signature(request: SignedRequest, signature: PresignedUrl, secret: str) -> None:
    """Raise `BadSignature` unless the URL was signed with this secret for such a request."""
    headers = HTTPHeaders()
    for name, value in request.headers.items():
        headers[name] = value
    signer = _Signer(Credentials(signature.access_key_id, secret), signature.expires_at)
    url = SplitResult("", "", request.path, request.query, "")
    expected = signer.get_signature(request.method, url, headers)
    if not hmac.compare_digest(expected.encode(), signature.digest.encode()):
        raise errors.BadSignature(
            "the signature of the URL does not match; check the secret access key, the method and "
            "the headers"
        )


class _Signer(HmacV1QueryAuth):  # type: ignore[misc]
    """botocore's, for a time that is given."""

    def __init__(self, credentials: Credentials, expires_at: int) -> None:
        super().__init__(credentials)
        self._expires_at = expires_at

    def _get_date(self) -> str:
        return str(self._expires_at)
