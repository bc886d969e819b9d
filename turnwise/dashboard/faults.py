"""Which status a page has that tells of an error."""

from __future__ import annotations

from turnwise import errors

#: The nearest class in an error's family decides.
_STATUS: dict[type[Exception], int] = {
    errors.InvalidInput: 400,
    errors.AccessError: 403,
    errors.NotFound: 404,
    errors.Conflict: 409,
    errors.LimitExceeded: 429,
    errors.Unavailable: 503,
    Exception: 500,
}


def status_of(error: Exception) -> int:
    """The status of the page that tells of an error."""
    return next(_STATUS[kind] for kind in type(error).__mro__ if kind in _STATUS)
