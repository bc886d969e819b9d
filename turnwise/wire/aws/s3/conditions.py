"""Conditional headers and ranges of reads and writes (RFC 9110). Pure."""

from __future__ import annotations

import email.utils
import math
import re
from collections.abc import Mapping

from turnwise.domain.objects import StoredObject
from turnwise.wire.aws.service import AwsError

#: No object's size has more digits.
_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})", re.ASCII)


def is_unchanged(stored: StoredObject, headers: Mapping[str, str], prefix: str = "") -> bool:
    """Whether the client has this object already (304). Raises `AwsError` 412 PreconditionFailed.

    `prefix` is that of a copy's source: "x-amz-copy-source-".
    """
    match, none_match = headers.get(prefix + "if-match"), headers.get(prefix + "if-none-match")
    if match is not None and not _names(match, stored.etag):
        raise failed("If-Match")
    since = _time(headers.get(prefix + "if-unmodified-since"))
    if match is None and since is not None and math.floor(stored.modified) > since:
        raise failed("If-Unmodified-Since")
    if none_match is not None:
        return _names(none_match, stored.etag)
    since = _time(headers.get(prefix + "if-modified-since"))
    return since is not None and math.floor(stored.modified) <= since


def replaced(headers: Mapping[str, str]) -> str | None:
    """The ETag of what a write may replace; "" for nothing, None for whatever is there."""
    if none_match := headers.get("if-none-match"):
        if none_match.strip() != "*":
            raise AwsError("NotImplemented", "a write knows only If-None-Match: *", status=501)
        return ""
    match = headers.get("if-match")
    return None if match is None else match.strip().strip('"')


def failed(name: str) -> AwsError:
    """412."""
    return AwsError(
        "PreconditionFailed", f"the object is not as the header {name} wants it", status=412
    )


def byte_range(text: str, size: int) -> tuple[int, int] | None:
    """First byte and the one after the last, of a Range header; None for the whole.

    A header that is not one plain range is ignored, as HTTP allows. Raises `AwsError` 416.

    >>> byte_range("bytes=-3", 10), byte_range("bytes=8-99", 10), byte_range("", 10)
    ((7, 10), (8, 10), None)
    """
    found = _RANGE.fullmatch(text.strip())
    if found is None or found.groups() == ("", ""):
        return None
    first, last = found.groups()
    if not first:
        start, end = max(0, size - int(last)), size
    else:
        start, end = int(first), min(size, int(last) + 1) if last else size
        if last and int(last) < int(first):
            return None
    if start >= end:
        raise AwsError("InvalidRange", f"{text!r} lies outside the {size} bytes", status=416)
    return start, end


def http_date(seconds: float) -> str:
    """A time as in the Last-Modified header."""
    return email.utils.formatdate(math.floor(seconds), usegmt=True)


def _names(header: str, etag: str) -> bool:
    return any(each.strip().strip('"') in ("*", etag) for each in header.split(","))


def _time(text: str | None) -> float | None:
    """A header's time; one that cannot be read is ignored, as HTTP says."""
    if text is None:
        return None
    try:
        return email.utils.parsedate_to_datetime(text).timestamp()
    except (ValueError, OverflowError):
        return None
