"""Values by botocore's shapes, mostly right, and what is done to them so that they are wrong."""

from __future__ import annotations

import base64
import copy
import json
from collections.abc import Mapping, Sequence
from typing import Any

from botocore.model import ListShape, MapShape, Shape, StructureShape
from hypothesis import strategies as st

from turnwise.wire.aws.shapes import _compiled

Known = Mapping[str, Sequence[Any]]

#: Where one of these stands, the JSON gets text that `json.dumps` does not write.
_RAW = {
    "@deep-list@": "[" * 3000 + "]" * 3000,
    "@deep-object@": '{"a":' * 3000 + "1" + "}" * 3000,
    "@broken@": '"\\uZZZZ"',
    "@huge@": "9" * 5000,
    "@exponent@": "1e999999",
}

NASTY_TEXTS: tuple[str, ...] = (
    "",
    " ",
    "a",
    "\ud800",
    "x\udfff",
    "\x00",
    "a\x00b",
    "\x1b[31m\x07",
    "\r\nX-Injected: 1",
    "\u202e\u2028\ufffe\uffff",
    "𝒳" * 100,
    "é" * 64,
    "a" * 65,
    "a" * 257,
    "a" * 70_000,
    "a-" * 40 + "!",
    "-" * 63,
    "..",
    "../../../etc/passwd",
    "%2e%2e%2f%2e%2e%2fetc%2fpasswd",
    "/etc/passwd",
    "file:///etc/passwd",
    "file://\x00",
    "s3://",
    "s3://stuff",
    "s3://nowhere/x",
    "s3://stuff/../../x",
    "s3://stuff/%00",
    "http://127.0.0.1:1/",
    "http://[::1",
    "arn:",
    "arn:aws:sagemaker:us-west-2:000000000002:job/AgentRFT/walk",
    "arn:aws:sagemaker:us-west-2:000000000001:job/",
    "arn:aws:sagemaker:us-west-2:000000000001:model-package/walk/999999999",
    "arn:aws:lambda:us-west-2:000000000002:function:fn",
    "'; DROP TABLE jobs; --",
    "{0.__class__}",
    "%s%n",
    "<!DOCTYPE a [<!ENTITY b 'c'>]><a>&b;</a>",
    "NaN",
    "-Infinity",
    "9" * 400,
    "9" * 5000,
    "٣",
    "1e400",
    "0001-01-01T00:00:00Z",
    "9999-12-31T23:59:59Z",
    "eyJuZXh0IjogSW5maW5pdHksICJsYXN0IjogMSwgInF1ZXJ5IjogMX0=",
    "bnVsbA==",
    "MQ==",
    "f/999999999999999999",
    "b/0",
    "999999999999999999/999999999999999999/x",
    "{ $.a = 1 }",
    "{ ($.a = 1) && ",
    '"' * 101,
    "[" * 500,
    "?a -b %c",
    "%(a+)+$%",
    "null",
    "[]",
    '{"a": NaN}',
    '{"a": "\\ud800"}',
    '{"\\ud800": 1}',
    "[" * 3000 + "]" * 3000,
    '{"a":' * 3000 + "1" + "}" * 3000,
)
#: What most patterns allow one of.
PLAIN_TEXTS = (
    "walk",
    "a-1",
    "1",
    "1.0.0",
    "s3://stuff/a/b.txt",
    "https://server/x",
    "arn:aws:iam::000000000001:role/trainer",
    "arn:aws:sagemaker:us-west-2:000000000001:model-package-group/walk",
    "Mon:03:30",
    "t" * 36,
)
NASTY_NUMBERS: tuple[Any, ...] = (
    *(0, -1, 1, 2**31 - 1, 2**31, -(2**31) - 1, 2**53 + 1, 2**63 - 1, 2**63, -(2**63) - 1, 2**64),
    *(10**30, 10**400, -(10**400), 1e9, 1e12, 1e18, -1e18, 1e308, 0.5, -0.0),
    *(float("nan"), float("inf"), float("-inf"), 31_556_889_864_403_199, 253_402_300_800),
)
NASTY_OTHERS: tuple[Any, ...] = (
    *(None, True, False, [], {}, [None], [[]], {"": None}, {"a": 1}, ["\ud800"], {"\ud800": "x"}),
    *_RAW,
)
#: Names of members that are not there.
odd_names = st.sampled_from(
    ("", "\ud800", "x\x00", "é" * 99, "__class__", "a" * 5000, "Name", "a.b")
)
nasty = st.one_of(
    st.sampled_from(NASTY_TEXTS),
    st.sampled_from(NASTY_NUMBERS),
    st.sampled_from(NASTY_OTHERS).map(copy.deepcopy),
)


def valid(
    shape: Shape | None, known: Known, name: str = "", depth: int = 0
) -> st.SearchStrategy[Any]:
    """Values that a shape mostly allows; `known` are good ones by members' lower-case names."""
    if shape is None:
        return st.just({})
    if isinstance(shape, StructureShape):
        members = {
            member: valid(inner, known, member, depth + 1)
            for member, inner in shape.members.items()
            if depth < 5 or member in shape.required_members
        }
        required = {k: v for k, v in members.items() if k in shape.required_members}
        optional = {k: v for k, v in members.items() if k not in shape.required_members}
        return _structures(required, optional)
    if isinstance(shape, ListShape):
        low = shape.metadata.get("min", 0)
        return st.lists(valid(shape.member, known, name, depth + 1), min_size=low, max_size=low + 2)
    if isinstance(shape, MapShape):
        keys = valid(shape.key, known, "", depth + 1)
        return st.dictionaries(keys, valid(shape.value, known, name, depth + 1), max_size=2)
    return _scalar(shape, known.get(name.lower(), ()))


@st.composite
def _structures(
    draw: st.DrawFn,
    required: Mapping[str, st.SearchStrategy[Any]],
    optional: Mapping[str, st.SearchStrategy[Any]],
) -> dict[str, Any]:
    found = {name: draw(value) for name, value in required.items()}
    if optional:
        for name in draw(st.lists(st.sampled_from(sorted(optional)), max_size=3, unique=True)):
            found[name] = draw(optional[name])
    return found


def _scalar(shape: Shape, known: Sequence[Any]) -> st.SearchStrategy[Any]:
    low, high = shape.metadata.get("min", 0), shape.metadata.get("max", 100)
    match shape.type_name:
        case "boolean":
            return st.booleans()
        case "integer" | "long":
            return st.sampled_from([low, min(low + 1, high), high])
        case "float" | "double":
            return st.sampled_from([float(low), 0.5, float(high)])
        case "timestamp":
            return st.sampled_from([0, 1000, 1001.5, 1.7e9, 4e9])
        case "blob":
            return st.sampled_from([b"", b"{}", b'{"a": 1}', b"\xff\x00"])
    if shape.enum:
        good = [each for each in known if each in shape.enum]
        return st.sampled_from([*good * 8, *shape.enum])
    pattern = _compiled(shape.metadata.get("pattern", ""))
    allowed = [
        text
        for text in (*[*known] * 4, *PLAIN_TEXTS, "a" * max(low, 1))
        if low <= len(text) <= shape.metadata.get("max", 10**6)
        and (pattern is None or pattern.fullmatch(text))
    ]
    return st.sampled_from(allowed or ["a" * max(low, 1)])


def _paths(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [at] if at else []
    if isinstance(value, dict):
        for key, item in value.items():
            found += _paths(item, (*at, key))
    if isinstance(value, list):
        for number, item in enumerate(value):
            found += _paths(item, (*at, number))
    return found


def _at(value: Any, path: Sequence[Any]) -> Any:
    for key in path:
        value = value[key]
    return value


@st.composite
def spoilt(draw: st.DrawFn, values: st.SearchStrategy[Any]) -> Any:
    """A value with up to two of its parts taken out or replaced by what does not belong."""
    value = draw(values)
    for _ in range(draw(st.sampled_from((0, 0, 1, 1, 1, 2)))):
        paths = _paths(value)
        if not paths:
            return value
        path = draw(st.sampled_from(paths))
        if draw(st.integers(0, 7)) == 5:
            _at(value, path[:-1] if isinstance(path[-1], str) else ())[draw(odd_names)] = 1
            continue
        holder = _at(value, path[:-1])
        if draw(st.booleans()) and draw(st.booleans()):
            del holder[path[-1]]
        else:
            holder[path[-1]] = draw(nasty)
    return value


def as_json(value: Any) -> bytes:
    """JSON as a careless client writes it: NaN, half characters, numbers of any length."""
    text = json.dumps(value, default=_blob)
    for mark, raw in _RAW.items():
        text = text.replace(json.dumps(mark), raw)
    return text.encode()


def _blob(value: Any) -> str:
    return base64.b64encode(value).decode()


@st.composite
def json_bodies(draw: st.DrawFn, values: st.SearchStrategy[Any]) -> bytes:
    """Bodies with spoilt values; some are no JSON at all."""
    body = as_json(draw(spoilt(values)))
    # Small numbers and the bounds are drawn more often than others.
    match draw(st.integers(0, 39)):
        case 11:
            return body[: len(body) // 2]
        case 12:
            return b"\xff" + body
        case 13:
            return body.replace(b'"', b'"\xc3', 1)
        case 14:
            return b""
        case 15:
            return body.decode().encode("utf-16")
        case 16:
            return draw(
                st.sampled_from([b"[]", b"1", b'"x"', b"null", b"NaN", b"{" * 5000, b"\x00"])
            )
        case 17 if body.startswith(b"{") and len(body) > 2:
            return body[:-1] + b"," + body[1:]  # every member twice
    return body
