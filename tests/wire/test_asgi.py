from __future__ import annotations

from typing import Any

import pytest

from turnwise import errors
from turnwise.wire.asgi import MAX_BODY_BYTES, HttpCall

PIECE = b"x" * 65_536


async def unused(message: Any) -> None:
    raise AssertionError(message)


def uploading(pieces: int) -> HttpCall:
    sent = iter(range(1, pieces + 1))

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": PIECE, "more_body": next(sent) < pieces}

    return HttpCall({"method": "POST", "headers": []}, receive, unused)


async def test_a_large_body_is_put_together():
    body = await uploading(500).body()
    assert body == PIECE * 500


async def test_a_body_over_the_limit_is_refused():
    with pytest.raises(errors.InvalidInput, match="is larger than 67108864 bytes"):
        await uploading(MAX_BODY_BYTES // len(PIECE) + 1).body()
