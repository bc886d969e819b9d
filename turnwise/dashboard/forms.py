"""What a form's fields say: a browser sends an empty field as an empty text."""

from __future__ import annotations

from enum import StrEnum
from typing import TypeVar

from turnwise import errors

E = TypeVar("E", bound=StrEnum)

#: The database counts in 64 bits.
_MOST = 2**63 - 1


def whole(text: str, field: str) -> int | None:
    """A whole number; None where the field was left empty. Raises `InvalidInput`.

    >>> whole(" 12 ", "step"), whole("", "step")
    (12, None)
    """
    if not text.strip():
        return None
    try:
        value = int(text)
    except ValueError:
        value = -_MOST
    if abs(value) >= _MOST:
        raise errors.InvalidInput(field, text[:80], "is not a whole number", remedy="use digits")
    return value


def choice(kind: type[E], text: str, field: str) -> E | None:
    """A member of an enum; None where the field was left empty. Raises `InvalidInput`."""
    if not text:
        return None
    try:
        return kind(text)
    except ValueError:
        allowed = ", ".join(kind)
        raise errors.InvalidInput(
            field, text[:80], "is not a choice", remedy=f"use {allowed}"
        ) from None
