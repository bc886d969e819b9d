"""What a signature is verified against."""

from __future__ import annotations

import asyncio
import hashlib

from turnwise.access.sigv4 import SignedRequest
from turnwise.wire.asgi import HttpCall

# Hashing more than this would hold up every other request for a millisecond or so.
_SMALL = 1024 * 1024


async def signed_request(http: HttpCall) -> SignedRequest:
    """The request as it arrived; reads the body. Raises `InvalidInput`, `ClientGone`."""
    body = await http.body()
    small = len(body) <= _SMALL
    sha256 = hashlib.sha256(body) if small else await asyncio.to_thread(hashlib.sha256, body)
    return SignedRequest(
        method=http.method,
        path=http.raw_path,
        query=http.query,
        headers=http.headers,
        body_sha256=sha256.hexdigest(),
    )
