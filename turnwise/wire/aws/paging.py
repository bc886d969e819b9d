"""Pages of a list, as AWS's list operations give them. Pure."""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from turnwise import errors

Item = TypeVar("Item")


def page(
    items: Sequence[Item],
    given: Mapping[str, Any],
    key: str = "NextToken",
    *,
    default: int = 10,
    maximum: int = 100,
    size: str = "MaxResults",
) -> tuple[list[Item], str | None]:
    """The page that the parameters `given` ask for, and the token of the next; None at the end.

    `items` are all that match, in order; `size` names the parameter of how many a page holds. A
    token is for one query: `InvalidInput` for one that is not ours, or came with other filters.
    It remembers the last item shown and the one after it, so that what is added or removed
    meanwhile is neither shown twice nor hides another.

    >>> page("abcde", {"MaxResults": 2})[0]
    ['a', 'b']
    >>> token = page("abcde", {"MaxResults": 2})[1]
    >>> page("xabcde", {"MaxResults": 2, "NextToken": token})[0]
    ['c', 'd']
    >>> page("cde", {"MaxResults": 2, "NextToken": token})[0]
    ['c', 'd']
    >>> page("abcde", {"MaxResults": 5})
    (['a', 'b', 'c', 'd', 'e'], None)
    """
    start = _start(items, given, key, size)
    end = start + max(1, min(given.get(size, default), maximum))
    shown = list(items[start:end])
    if end >= len(items) or not shown:
        return shown, None
    around = {"last": _digest(repr(shown[-1])), "then": _digest(repr(items[end]))}
    state = {"next": end, **around, "query": _query(given, key, size)}
    return shown, base64.urlsafe_b64encode(json.dumps(state).encode()).decode()


def _start(items: Sequence[Any], given: Mapping[str, Any], key: str, size: str) -> int:
    """Where the page begins: after the item that the last one ended with, wherever it is now.

    Whoever deletes what a page shows before asking for the next has it begin with what came then.
    """
    token = given.get(key)
    if not token:
        return 0
    try:
        state = json.loads(base64.urlsafe_b64decode(token))
        place, query = int(state["next"]), str(state["query"])
        last, then = str(state["last"]), str(state["then"])
    except (binascii.Error, ValueError, KeyError, TypeError, OverflowError, RecursionError):
        raise errors.InvalidInput(key, token, "is no token of this operation") from None
    if query != _query(given, key, size):
        raise errors.InvalidInput(
            key, token, "belongs to another query", remedy="repeat the filters it came with"
        )
    for digest, step in ((last, 1), (then, 0)):
        if (found := _found(items, digest, near=place - step)) is not None:
            return found + step
    return max(0, place)


def _found(items: Sequence[Any], digest: str, *, near: int) -> int | None:
    """Where an item is now; looked for first where it was."""
    places = (near, *range(len(items)))
    found = (n for n in places if 0 <= n < len(items) and _digest(repr(items[n])) == digest)
    return next(found, None)


def _query(given: Mapping[str, Any], key: str, size: str) -> str:
    return _digest(repr(sorted((k, v) for k, v in given.items() if k not in (key, size))))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]
