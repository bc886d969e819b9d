"""Errors as OpenAI's clients read them: one table."""

from __future__ import annotations

import math
from dataclasses import dataclass

import msgspec

from turnwise import errors


@dataclass(frozen=True, slots=True)
class Fault:
    """How an error looks on this wire."""

    status: int
    type: str
    code: str


#: The most specific class wins. openai-python retries 408, 409, 429 and 5xx by itself.
TABLE: dict[type[Exception], Fault] = {
    errors.PromptTooLong: Fault(400, "invalid_request_error", "context_length_exceeded"),
    errors.InvalidInput: Fault(400, "invalid_request_error", "invalid_value"),
    errors.NotFound: Fault(404, "invalid_request_error", "not_found"),
    errors.NotInValidStatus: Fault(400, "invalid_request_error", "trajectory_not_in_valid_status"),
    errors.OverBudget: Fault(400, "invalid_request_error", "rollout_token_budget_exceeded"),
    errors.Conflict: Fault(409, "invalid_request_error", "conflict"),
    errors.Unauthenticated: Fault(401, "authentication_error", "invalid_api_key"),
    # As SageMaker's job runtime answers a bad token.
    errors.BadSignature: Fault(403, "permission_error", "invalid_api_key"),
    errors.UnknownKey: Fault(403, "permission_error", "invalid_api_key"),
    errors.Denied: Fault(403, "permission_error", "permission_denied"),
    errors.AccessError: Fault(403, "permission_error", "permission_denied"),
    errors.LimitExceeded: Fault(429, "rate_limit_error", "rate_limit_exceeded"),
    errors.TooSlow: Fault(504, "server_error", "timeout"),
    errors.Corrupted: Fault(500, "server_error", "model_corrupted"),
    errors.Unavailable: Fault(503, "server_error", "unavailable"),
    Exception: Fault(500, "server_error", "internal_error"),
}


def fault_of(error: Exception) -> Fault:
    """The row of the table for an error."""
    return next(TABLE[kind] for kind in type(error).__mro__ if kind in TABLE)


def body_of(error: Exception) -> bytes:
    """The body: `error` for OpenAI's clients, `message` on top for those that look there."""
    fault = fault_of(error)
    message = str(error) if isinstance(error, errors.TurnwiseError) else "internal error"
    code = fault.code
    if isinstance(error, errors.NotFound) and error.kind == "model":
        code = "model_not_found"
    param = error.field if isinstance(error, errors.InvalidInput) else None
    inner = {"message": message, "type": fault.type, "code": code, "param": param}
    return msgspec.json.encode({"message": message, "error": inner})


def headers_of(error: Exception) -> tuple[tuple[str, str], ...]:
    """`Retry-After` in whole seconds, where waiting helps; a word to openai-python where not."""
    if isinstance(error, errors.Corrupted):
        return (("x-should-retry", "false"),)
    wait = getattr(error, "retry_after_s", None)
    return () if wait is None else (("retry-after", str(max(1, math.ceil(wait)))),)
