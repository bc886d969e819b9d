"""Errors -> status and body of the native API."""

from __future__ import annotations

import math
from typing import Any

from turnwise import errors

#: The nearest class in an error's family decides; each family of errors has its own line.
STATUS: dict[type[errors.TurnwiseError], int] = {
    errors.InvalidInput: 400,
    errors.Unauthenticated: 401,
    errors.Denied: 403,
    errors.AccessError: 403,
    errors.NotFound: 404,
    errors.Conflict: 409,
    errors.LimitExceeded: 429,
    errors.Unavailable: 503,
    errors.StorageFull: 507,
    errors.AgentDenied: 500,
    errors.FolderLocked: 500,
    errors.Corrupted: 500,
    errors.NothingScored: 500,
    errors.ParityExceeded: 500,
    errors.TurnwiseError: 500,
}

#: What a client needs to raise the same error again, beside its type and message.
_DETAILS = ("field", "value", "reason", "remedy", "kind", "id", "retry_after_s")


def fault(error: errors.TurnwiseError) -> tuple[int, dict[str, Any], dict[str, str]]:
    """Status, body and headers. The body names the error's class, and the field if there is one.

    >>> fault(errors.NotFound("job", "walk"))[1]["error"]["message"]
    "job 'walk' does not exist"
    """
    status = next(STATUS[cls] for cls in type(error).__mro__ if cls in STATUS)
    body: dict[str, Any] = {"type": type(error).__name__, "message": str(error)}
    body |= {name: vars(error)[name] for name in _DETAILS if name in vars(error)}
    if "value" in body:
        body["value"] = repr(body["value"])[:120]
    headers = {}
    if (retry_after_s := body.get("retry_after_s")) is not None:
        headers["Retry-After"] = str(math.ceil(retry_after_s))
    if status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return status, {"error": body}, headers
