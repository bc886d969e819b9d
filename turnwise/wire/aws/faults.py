"""Errors as AWS's clients read them: a table for the job runtime, one for all other services."""

from __future__ import annotations

import re

import msgspec

from turnwise import errors
from turnwise.wire.aws.service import AwsError, AwsService

_MAX_MESSAGE = 1024

#: Error class -> (status, exception name). The most specific class wins; botocore retries 429
#: and 5xx by itself.
TABLE: dict[type[Exception], tuple[int, str]] = {
    errors.InvalidInput: (400, "ValidationException"),
    errors.NotFound: (404, "ResourceNotFoundException"),
    errors.NotInValidStatus: (400, "ValidationException"),
    errors.OverBudget: (400, "ValidationException"),
    errors.Conflict: (409, "ConflictException"),
    errors.Unauthenticated: (403, "AccessDeniedException"),
    errors.AccessError: (403, "AccessDeniedException"),
    errors.LimitExceeded: (429, "ThrottlingException"),
    errors.TooSlow: (504, "InternalServiceError"),
    errors.Unavailable: (503, "InternalServiceError"),
    Exception: (500, "InternalServiceError"),
}


def status_and_name(error: Exception) -> tuple[int, str]:
    """The row of the table for an error."""
    return next(TABLE[kind] for kind in type(error).__mro__ if kind in TABLE)


def body_of(error: Exception) -> bytes:
    """`Message` and `__type` as AWS has them, and `message` for clients of the other spelling."""
    _, name = status_and_name(error)
    text = str(error) if isinstance(error, errors.TurnwiseError) else "internal error"
    text = text[:_MAX_MESSAGE]
    return msgspec.json.encode({"Message": text, "message": text, "__type": name})


#: Error class -> (status, code) of the control services. A service has its own words for some.
CODES: dict[type[Exception], tuple[int, str]] = {
    errors.InvalidInput: (400, "ValidationException"),
    errors.NotFound: (400, "ResourceNotFound"),
    errors.Conflict: (400, "ResourceInUse"),
    errors.Unauthenticated: (403, "InvalidSignatureException"),
    errors.UnknownKey: (403, "UnrecognizedClientException"),
    errors.AccessError: (403, "AccessDeniedException"),
    errors.LimitExceeded: (400, "ResourceLimitExceeded"),
    errors.Unavailable: (503, "ServiceUnavailable"),
    Exception: (500, "InternalFailure"),
}


def describe(error: Exception, service: AwsService) -> tuple[int, str, str]:
    """Status, code and message of an error in a service's words."""
    if isinstance(error, AwsError):
        return error.status, error.code, str(error)[:_MAX_MESSAGE]
    status, code = next(CODES[kind] for kind in type(error).__mro__ if kind in CODES)
    own = (service.codes[kind] for kind in type(error).__mro__ if kind in service.codes)
    code = service.codes_of.get(_about(error)) or next(own, code)
    text = str(error) if isinstance(error, errors.TurnwiseError) else "internal error"
    return status, code, text[:_MAX_MESSAGE]


def _about(error: Exception) -> str:
    if isinstance(error, errors.InvalidInput):
        return re.split(r"[.\[]", error.field, maxsplit=1)[0]
    return error.kind if isinstance(error, errors.NotFound) else ""
