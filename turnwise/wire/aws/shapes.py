"""Values by botocore's shapes: JSON -> checked parameters, and results -> JSON. Pure.

Parameters that the model allows come out as Python values (timestamps as seconds since the epoch,
blobs as bytes); what it forbids raises `InvalidInput` with the member's path, as AWS's validation
does. Members that the model does not know are dropped, as AWS drops them.
"""

from __future__ import annotations

import base64
import binascii
import calendar
import re
import time
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from botocore.model import ListShape, MapShape, Shape, StructureShape

from turnwise import errors

_ISO = "%Y-%m-%dT%H:%M:%SZ"

_BITS = {"integer": 32, "long": 64}
#: The times that have a date: from the year 1 to before 10000, in seconds since the epoch.
_FIRST_TIME, _LAST_TIME = -62_135_596_800.0, 253_402_300_800.0


def read(shape: Shape, value: Any, path: str = "") -> Any:
    """Check a value against a shape and take out what it may hold. Raises `InvalidInput`."""
    return _READERS[shape.type_name](shape, value, path)


def _structure(shape: StructureShape, value: Any, path: str) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise _wrong(path, value, "must be an object")
    found = {}
    for name, member in shape.members.items():
        given = value.get(member.serialization.get("name", name))
        if given is not None:
            found[name] = read(member, given, _join(path, name))
        elif name in shape.required_members:
            raise _wrong(_join(path, name), None, "is required")
    return found


def _list(shape: ListShape, value: Any, path: str) -> list[Any]:
    if not isinstance(value, list):
        raise _wrong(path, value, "must be a list")
    _check_size(shape, len(value), value, path, "members")
    return [read(shape.member, item, f"{path}[{n}]") for n, item in enumerate(value)]


def _map(shape: MapShape, value: Any, path: str) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise _wrong(path, value, "must be an object")
    _check_size(shape, len(value), value, path, "members")
    return {
        read(shape.key, key, path): read(shape.value, item, _join(path, str(key)))
        for key, item in value.items()
    }


def _string(shape: Shape, value: Any, path: str) -> str:
    if not isinstance(value, str):
        raise _wrong(path, value, "must be text")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise _wrong(path, value, "is not text: half a character is missing") from None
    _check_size(shape, len(value), value, path, "characters")
    pattern = _compiled(shape.metadata.get("pattern", ""))
    if pattern is not None and not pattern.fullmatch(value):
        raise _wrong(path, value, f"must match {shape.metadata['pattern']}")
    if shape.enum and value not in shape.enum:
        raise _wrong(path, value, f"must be one of {', '.join(shape.enum)}")
    return value


def _integer(shape: Shape, value: Any, path: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise _wrong(path, value, "must be a whole number")
    bits = _BITS[shape.type_name]
    if not -(2 ** (bits - 1)) <= value < 2 ** (bits - 1):
        raise _wrong(path, value, f"must be a whole number of {bits} bits")
    _check_range(shape, value, path)
    return value


def _number(shape: Shape, value: Any, path: str) -> float:
    if value in ("NaN", "Infinity", "-Infinity"):
        value = float(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _wrong(path, value, "must be a number")
    _check_range(shape, value, path)
    return _as_float(value, path)


def _as_float(value: float, path: str) -> float:
    try:
        return float(value)
    except OverflowError:  # a whole number of 309 digits or more
        raise _wrong(path, value, "is too large") from None


def _boolean(shape: Shape, value: Any, path: str) -> bool:
    if not isinstance(value, bool):
        raise _wrong(path, value, "must be true or false")
    return value


def _timestamp(shape: Shape, value: Any, path: str) -> float:
    if isinstance(value, str):
        try:
            return float(calendar.timegm(time.strptime(value, _ISO)))
        except ValueError:
            raise _wrong(path, value, "is no time") from None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _wrong(path, value, "must be seconds since 1970")
    seconds = _as_float(value, path)
    if not _FIRST_TIME <= seconds < _LAST_TIME:
        raise _wrong(path, value, "must be seconds since 1970, of the years 1 to 9999")
    return seconds


def _blob(shape: Shape, value: Any, path: str) -> bytes:
    if isinstance(value, bytes):
        return value
    try:
        return base64.b64decode(value, validate=True)
    except (TypeError, ValueError, binascii.Error):
        raise _wrong(path, value, "must be base64") from None


_READERS: dict[str, Any] = {
    "structure": _structure,
    "list": _list,
    "map": _map,
    "string": _string,
    "character": _string,
    "integer": _integer,
    "long": _integer,
    "float": _number,
    "double": _number,
    "boolean": _boolean,
    "timestamp": _timestamp,
    "blob": _blob,
}


def write(shape: Shape, value: Any) -> Any:
    """A result as JSON by its shape; members that are None are left out.

    A member that the shape does not know is a mistake of ours: KeyError.
    """
    if isinstance(shape, StructureShape):
        return {
            shape.members[name].serialization.get("name", name): write(shape.members[name], item)
            for name, item in value.items()
            if item is not None
        }
    if isinstance(shape, ListShape):
        return [write(shape.member, item) for item in value]
    if isinstance(shape, MapShape):
        return {key: write(shape.value, item) for key, item in value.items()}
    if shape.type_name == "blob":
        return base64.b64encode(value).decode()
    if shape.type_name == "timestamp":
        is_iso = shape.serialization.get("timestampFormat") == "iso8601"
        return time.strftime(_ISO, time.gmtime(value)) if is_iso else round(value, 3)
    return value


@lru_cache(maxsize=1024)
def _compiled(pattern: str) -> re.Pattern[str] | None:
    """None for no pattern, and for the five of other dialects that Python cannot read."""
    try:
        return re.compile(_as_python(pattern), re.DOTALL) if pattern else None
    except re.error:
        return None


def _as_python(pattern: str) -> str:
    """A Smithy (ECMAScript, Java) pattern as Python reads it: Unicode classes are widened."""
    return _UNICODE_CLASS.sub(lambda found: _WIDENED.get(found[1], r"\w"), pattern)


_UNICODE_CLASS = re.compile(r"\\p\{([A-Za-z]+)\}")
#: What holds all of a Unicode class, and no letter where the class has none; letters and numbers
#: are `\w`. Control characters mostly stand in a negated set, where more would refuse too much.
_WIDENED = {"Z": r"\s", "P": r"\W_", "S": r"\W", "C": r"\x00-\x1f\x7f-\x9f"}


def _check_size(shape: Shape, size: int, value: Any, path: str, unit: str) -> None:
    low, high = shape.metadata.get("min"), shape.metadata.get("max")
    if low is not None and size < low:
        raise _wrong(path, value, f"must have at least {low} {unit}")
    if high is not None and size > high:
        raise _wrong(path, value, f"must have at most {high} {unit}")


def _check_range(shape: Shape, value: float, path: str) -> None:
    low, high = shape.metadata.get("min"), shape.metadata.get("max")
    if low is not None and value < low:
        raise _wrong(path, value, f"must be at least {low}")
    if high is not None and value > high:
        raise _wrong(path, value, f"must be at most {high}")


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _wrong(path: str, value: Any, reason: str) -> errors.InvalidInput:
    return errors.InvalidInput(path or "the request", value, reason)
