"""Errors -> status and body of the native API."""

from __future__ import annotations

from typing import Any

from turnwise import errors

#: The nearest class in an error's family decides.
STATUS: dict[type[errors.TurnwiseError], int] = {
    errors.InvalidInput: 400,
    errors.NotFound: 404,
    errors.Conflict: 409,
    errors.Unauthenticated: 401,
    errors.Denied: 403,
    errors.AccessError: 403,
    errors.LimitExceeded: 429,
    errors.Unavailable: 503,
    errors.StorageFull: 507,
    errors.TurnwiseError: 500,
}


def fault(error: errors.TurnwiseError) -> tuple[int, dict[str, Any], dict[str, str]]:
    """Status, body and headers. The body names the error's class, and the field if there is one."""
    status = next(STATUS[cls] for cls in type(error).__mro__ if cls in STATUS)
    body: dict[str, Any] = {"error": {"type": type(error).__name__, "message": str(error)}}
    if isinstance(error, errors.InvalidInput):
        body["error"] |= {"field": error.field, "reason": error.reason, "remedy": error.remedy}
    retry_after = getattr(error, "retry_after_s", None)
    headers = {"Retry-After": f"{retry_after:.0f}"} if retry_after is not None else {}
    if status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return status, body, headers
