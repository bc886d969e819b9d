"""Errors -> status, body and headers as Google's APIs write them.

The body is `google.rpc.Status` in JSON, with an ErrorInfo that names the error's class. The SDK
tries 408, 409, 429 and 5xx again unless `x-should-retry` forbids it.

https://google.aip.dev/193
"""

from __future__ import annotations

import math
from enum import Enum
from typing import Any

from turnwise import errors

#: Seconds to wait where a quota does not say after how long there will be room.
RETRY_AFTER_S = 30.0


class Code(Enum):
    """google.rpc.Code: its number, and the HTTP status that it is sent with."""

    INVALID_ARGUMENT = 3, 400
    NOT_FOUND = 5, 404
    ALREADY_EXISTS = 6, 409
    PERMISSION_DENIED = 7, 403
    RESOURCE_EXHAUSTED = 8, 429
    FAILED_PRECONDITION = 9, 400
    UNIMPLEMENTED = 12, 501
    INTERNAL = 13, 500
    UNAVAILABLE = 14, 503
    UNAUTHENTICATED = 16, 401

    @property
    def number(self) -> int:
        """As it stands in the body."""
        return self.value[0]

    @property
    def status(self) -> int:
        """As it stands in the head."""
        return self.value[1]


class Refused(Exception):
    """A request that is refused in the words of the service."""

    def __init__(self, code: Code, message: str) -> None:
        self.code = code
        super().__init__(message)


#: The nearest class in an error's family decides.
_CODES: dict[type[Exception], Code] = {
    errors.InvalidInput: Code.INVALID_ARGUMENT,
    errors.NotFound: Code.NOT_FOUND,
    errors.Conflict: Code.FAILED_PRECONDITION,
    errors.Unauthenticated: Code.UNAUTHENTICATED,
    errors.AccessError: Code.PERMISSION_DENIED,
    errors.LimitExceeded: Code.RESOURCE_EXHAUSTED,
    errors.Unavailable: Code.UNAVAILABLE,
    errors.StorageFull: Code.RESOURCE_EXHAUSTED,
    Exception: Code.INTERNAL,
}


def fault(error: Exception) -> tuple[int, dict[str, Any], dict[str, str]]:
    """Status, body and headers; of an error that is nobody's to know, only that it happened.

    >>> fault(errors.NotFound("dataset", "rows"))[1]["message"]
    "dataset 'rows' does not exist"
    """
    code = _code(error)
    is_known = isinstance(error, errors.TurnwiseError | Refused)
    message = str(error) if is_known else "internal error"
    return code.status, _status(code, message, error), _headers(code, error)


def _code(error: Exception) -> Code:
    if isinstance(error, Refused):
        return error.code
    return next(_CODES[kind] for kind in type(error).__mro__ if kind in _CODES)


def _status(code: Code, message: str, error: Exception) -> dict[str, Any]:
    field = {"field": error.field} if isinstance(error, errors.InvalidInput) else {}
    info = {
        "@type": "type.googleapis.com/google.rpc.ErrorInfo",
        "reason": code.name,
        "domain": "turnwise",
        "metadata": field,
    }
    return {"code": code.number, "message": message, "details": [info]}


def _headers(code: Code, error: Exception) -> dict[str, str]:
    headers = {}
    if code is Code.ALREADY_EXISTS or isinstance(error, errors.StorageFull):
        headers["x-should-retry"] = "false"  # it would not be otherwise a second later
    if code is Code.UNAUTHENTICATED:
        headers["www-authenticate"] = "Bearer"
    wait_s = getattr(error, "retry_after_s", None)
    if code is Code.RESOURCE_EXHAUSTED:
        wait_s = wait_s or RETRY_AFTER_S
    if wait_s is not None:
        headers["retry-after"] = str(math.ceil(wait_s))
    return headers
