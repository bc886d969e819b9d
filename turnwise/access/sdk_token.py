"""The sagemaker SDK's bearer token: a presigned request in base64. Pure.

    "sagemaker-api-key-" + base64("sagemaker.amazonaws.com/?<query with X-Amz-Signature>&Version=1")

It stands for an access key on the data plane for at most 12 hours, and names neither a job nor a
rollout.
"""

from __future__ import annotations

import base64
import binascii
from urllib.parse import parse_qs

from turnwise import errors
from turnwise.access.sigv4 import SignedRequest

PREFIX = "sagemaker-api-key-"
#: Longest life of a token, seconds.
MAX_EXPIRES_S = 12 * 3600

_HOST = "sagemaker.amazonaws.com"
_VERSION = "&Version=1"
_ACTION = "CallWithBearerToken"


def presigned(token: str) -> SignedRequest:
    """The request that a token is the signature of. Raises `BadSignature`."""
    try:
        url = base64.b64decode(token.removeprefix(PREFIX), validate=True).decode("ascii")
    except (binascii.Error, ValueError):
        raise errors.BadSignature("the token is not whole") from None
    host, _, query = url.removesuffix(_VERSION).partition("/?")
    if host != _HOST or not url.endswith(_VERSION) or parse_qs(query).get("Action") != [_ACTION]:
        raise errors.BadSignature("the token is not one that generate_token() makes")
    return SignedRequest(method="POST", path="/", query=query, headers={"host": _HOST})
