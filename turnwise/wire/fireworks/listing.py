"""Lists as Google's APIs give them: filter, order, pages, and only the fields asked for. Pure.

Of AIP-160's filters, comparisons of a field with a value that are all to hold (`AND`).

https://google.aip.dev/160, https://google.aip.dev/132, https://google.aip.dev/158
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from turnwise import errors

Json = dict[str, Any]

DEFAULT_PAGE, MAX_PAGE = 50, 200

_COMPARISON = re.compile(
    r"\s*(?P<field>[A-Za-z_][\w.]*)\s*(?P<operator>!=|<=|>=|=|<|>|:)\s*"
    r"(?P<value>\"(?:[^\"\\]|\\.)*\"|'(?:[^'\\]|\\.)*'|[^\s\"'()]+)\s*"
)
_ORDER = re.compile(r"\s*([A-Za-z_][\w.]*)(?:\s+(asc|desc))?\s*", re.IGNORECASE)

_COMPARE: Mapping[str, Callable[[Any, Any], bool]] = {
    "=": lambda its, value: bool(its == value),
    "!=": lambda its, value: bool(its != value),
    "<": lambda its, value: bool(its < value),
    "<=": lambda its, value: bool(its <= value),
    ">": lambda its, value: bool(its > value),
    ">=": lambda its, value: bool(its >= value),
    ":": lambda its, value: str(value) in str(its),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What of a list is asked for, as it stands in the query."""

    filter: str = ""
    order_by: str = ""
    page_size: int = 0
    page_token: str = ""
    read_mask: str = ""


def page(collection: str, items: Iterable[Json], asked: Asked) -> Json:
    """A page of bodies. Raises `InvalidInput` for what cannot be read.

    >>> page("jobs", [{"name": "b"}, {"name": "a"}], Asked(page_size=1))["jobs"]
    [{'name': 'a'}]
    """
    kept = matching(items, asked.filter)
    ordered = _in_order(kept, asked.order_by)
    first = _first(ordered, asked)
    size = _size(asked.page_size)
    shown = ordered[first : first + size]
    is_last = first + size >= len(ordered)
    return {
        collection: [masked(each, asked.read_mask) for each in shown],
        "nextPageToken": "" if is_last else _token(asked, shown[-1]["name"], first + size),
        "totalSize": len(ordered),
    }


def masked(body: Json, read_mask: str) -> Json:
    """Only the fields asked for; all of them without a mask. Unknown ones are not missed.

    >>> masked({"name": "a", "createTime": 1, "state": "READY"}, "name,create_time")
    {'name': 'a', 'createTime': 1}
    """
    fields = [_camel(field.strip()) for field in read_mask.split(",") if field.strip()]
    if not fields or "*" in fields:
        return body
    heads = {field.partition(".")[0] for field in fields}
    shown = {key: value for key, value in body.items() if key in heads}
    for head in heads & shown.keys():
        rest = [field.partition(".")[2] for field in fields if field.partition(".")[0] == head]
        if all(rest) and isinstance(shown[head], dict):
            shown[head] = masked(shown[head], ",".join(rest))
    return shown


# ── filter and order ──────────────────────────────────────────────────────────────────────────


def matching(items: Iterable[Json], filter: str) -> list[Json]:
    """Those for which every comparison holds; a field that is not there matches nothing."""
    comparisons = _comparisons(filter)
    return [item for item in items if all(_holds(item, *each) for each in comparisons)]


def _comparisons(filter: str) -> list[tuple[str, str, str]]:
    found, rest = [], filter.strip()
    while rest:
        match = _COMPARISON.match(rest)
        if match is None:
            raise _bad_filter(filter)
        found.append((match["field"], match["operator"], _unquoted(match["value"])))
        rest = rest[match.end() :]
        if rest:
            if not re.match(r"AND\s", rest):
                raise _bad_filter(filter)
            rest = rest[3:].strip()
            if not rest:
                raise _bad_filter(filter)
    return found


def _bad_filter(filter: str) -> errors.InvalidInput:
    return errors.InvalidInput(
        "filter",
        filter,
        "is not a filter that is served here",
        remedy='use comparisons joined by AND, as in state="JOB_STATE_RUNNING"',
    )


def _unquoted(text: str) -> str:
    return re.sub(r"\\(.)", r"\1", text[1:-1]) if text[0] in "\"'" else text


def _holds(item: Json, field: str, operator: str, value: str) -> bool:
    its = _value(item, field)
    if its is None:
        return False
    if isinstance(its, bool):
        return _COMPARE[operator](str(its).lower(), value.lower())
    if isinstance(its, int | float):
        try:
            return _COMPARE[operator](float(its), float(value))
        except ValueError:
            return False
    return _COMPARE[operator](str(its), value)


def _value(item: Json, field: str) -> Any:
    value: Any = item
    for part in field.split("."):
        value = value.get(_camel(part)) if isinstance(value, dict) else None
    return value


def _in_order(items: Sequence[Json], order_by: str) -> list[Json]:
    """By the fields asked for, and then by name; what has no such field comes first."""
    found = sorted(items, key=lambda item: str(item["name"]))
    parts = [part for part in order_by.split(",") if part.strip()]
    for part in reversed(parts):
        match = _ORDER.fullmatch(part)
        if match is None:
            raise errors.InvalidInput(
                "orderBy", order_by, "is no order", remedy='use fields, as in "create_time desc"'
            )
        is_descending = (match[2] or "").lower() == "desc"
        found.sort(key=_sort_key(match[1]), reverse=is_descending)
    return found


def _sort_key(field: str) -> Callable[[Json], tuple[int, float, str]]:
    def key(item: Json) -> tuple[int, float, str]:
        value = _value(item, field)
        if value is None:
            return 0, 0.0, ""
        if isinstance(value, int | float):
            return 1, float(value), ""
        return 2, 0.0, str(value)

    return key


def _camel(field: str) -> str:
    """A field as the JSON has it; the SDK sends them in snake_case."""
    return re.sub(r"_([a-z0-9])", lambda match: match[1].upper(), field)


# ── pages ─────────────────────────────────────────────────────────────────────────────────────


def _size(page_size: int) -> int:
    if page_size < 0:
        raise errors.InvalidInput("pageSize", page_size, "is negative")
    return min(page_size or DEFAULT_PAGE, MAX_PAGE)


def _token(asked: Asked, last: str, place: int) -> str:
    said = json.dumps([asked.filter, asked.order_by, last, place])
    return base64.urlsafe_b64encode(said.encode()).decode().rstrip("=")


def _first(ordered: Sequence[Json], asked: Asked) -> int:
    """Where the page begins: after the last one shown, or where that was if it is gone."""
    if not asked.page_token:
        return 0
    try:
        padding = "=" * (-len(asked.page_token) % 4)
        said = json.loads(base64.urlsafe_b64decode(asked.page_token + padding))
        filter, order_by, last, place = said
        is_ours = (filter, order_by) == (asked.filter, asked.order_by)
    except (ValueError, TypeError, binascii.Error, RecursionError):
        is_ours, last, place = False, "", 0
    if not is_ours or type(place) is not int or place < 0:
        raise errors.InvalidInput(
            "pageToken",
            asked.page_token,
            "is no token of this list",
            remedy="send nextPageToken of the page before, with the same filter and orderBy",
        )
    names = [each["name"] for each in ordered]
    return names.index(last) + 1 if last in names else place
