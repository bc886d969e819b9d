"""JSON documents that come as text inside a request, read so that they can be stored. Pure."""

from __future__ import annotations

import json
from typing import Any

from turnwise import errors

#: What the database's JSON can hold; seeds are unsigned.
_LEAST, _MOST = -(2**63), 2**64 - 1


def read_json(field: str, text: str) -> Any:
    """The value that a document spells.

    Raises `InvalidInput` for `field` if it is not JSON, and for what Python would read but nothing
    can keep: NaN, numbers past 64 bits, half a surrogate pair, thousands of brackets.

    >>> read_json("Document", '{"a": 1}')
    {'a': 1}
    """
    try:
        value = json.loads(text, parse_constant=_no_number, parse_int=_integer)
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except UnicodeEncodeError:
        reason = "holds half a character"
    except (ValueError, RecursionError) as error:
        reason = f"is not JSON: {error}"
    else:
        return value
    raise errors.InvalidInput(field, text, reason)


def _no_number(text: str) -> None:
    raise ValueError(f"{text} is no number")


def _integer(text: str) -> int:
    number = int(text)
    if not _LEAST <= number <= _MOST:
        raise ValueError(f"{text[:40]} has more than 64 bits")
    return number
