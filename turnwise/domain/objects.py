"""Buckets of objects: what one is, what it may be called, and how a listing is folded at a mark."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from turnwise import errors

MAX_KEY_BYTES = 1024
#: Entries of one page of a listing, at most.
MAX_PAGE = 1000

_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_IP_ADDRESS = re.compile(r"\d+\.\d+\.\d+\.\d+")


@dataclass(frozen=True, slots=True)
class StoredObject:
    """One object of a bucket. `etag` has no quotes; `modified` is seconds since the epoch.

    `metadata` is the user's, by lower-case name. `headers` are others to be given back with the
    content (Cache-Control ...) and the checksums that it was verified with.
    """

    bucket: str
    key: str
    size: int
    etag: str
    modified: float
    content_type: str = "application/octet-stream"
    metadata: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Upload:
    """A multipart upload under way: the object that it will be, without size and etag."""

    upload_id: str
    bucket: str
    key: str
    started_at: float
    content_type: str = "application/octet-stream"
    metadata: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One received part of an upload; `blob` names its content."""

    number: int
    size: int
    etag: str
    modified: float
    blob: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """A page of a listing, in the order of keys as bytes. `next` is "" on the last page.

    `prefixes` stand for all keys that are alike up to and including the delimiter.
    """

    objects: Sequence[StoredObject] = ()
    prefixes: Sequence[str] = ()
    next: str = ""  # give it as `after` for the next page


def check_bucket_name(name: str) -> None:
    """Raise `InvalidInput` unless S3 would allow the name.

    >>> check_bucket_name("sagemaker-us-west-2-000000000001")
    """
    is_name = _BUCKET.fullmatch(name) and ".." not in name and not _IP_ADDRESS.fullmatch(name)
    if not is_name:
        raise errors.InvalidInput(
            "bucket",
            name,
            "is not a bucket name",
            remedy="use 3 to 63 lower-case letters, digits, hyphens and single dots, with a letter "
            "or digit at both ends",
        )


def check_key(key: str) -> bytes:
    """The key as it is stored. Raises `InvalidInput` for one that is empty or too long."""
    try:
        stored = key.encode()
    except UnicodeEncodeError:
        raise errors.InvalidInput("key", key, "is not Unicode text") from None
    if not 1 <= len(stored) <= MAX_KEY_BYTES:
        raise errors.InvalidInput(
            "key", key, f"has {len(stored)} bytes", remedy=f"use 1 to {MAX_KEY_BYTES} bytes"
        )
    return stored


#: (low, high, count) -> the first `count` objects with low <= key < high, in the order of their
#: keys as bytes; high b"" is no limit.
Fetch = Callable[[bytes, bytes, int], Sequence[StoredObject]]


def list_page(fetch: Fetch, *, prefix: str, delimiter: str, after: str, limit: int) -> Listing:
    """A page of at most `limit` objects and folded prefixes, of keys that follow `after`.

    Keys below a folded prefix are not read, but for the rest of the page that shows it first.
    """
    start, mark = prefix.encode(), delimiter.encode()
    low, end = _first(start, mark, after.encode()), key_after(start)
    objects: list[StoredObject] = []
    prefixes: list[str] = []
    last, count = after, min(limit + 1, MAX_PAGE)
    while limit > 0:
        page = fetch(low, end, count)
        for found in page:
            key = found.key.encode()
            if key < low:
                continue  # below the prefix that was folded last
            if len(objects) + len(prefixes) == limit:
                return Listing(objects=objects, prefixes=prefixes, next=last)
            cut = key.find(mark, len(start)) if mark else -1
            if cut < 0:
                last, low = found.key, key + b"\0"
                objects.append(found)
            else:
                folded = key[: cut + len(mark)]
                last, low = folded.decode(), key_after(folded)
                prefixes.append(last)
        if len(page) < count or (end and low >= end):
            break
        # A page that ends inside a folder would be read in vain, so the next one starts small.
        count = 16 if page[-1].key.encode() < low and mark else min(4 * count, MAX_PAGE)
    return Listing(objects=objects, prefixes=prefixes)


def _first(start: bytes, mark: bytes, after: bytes) -> bytes:
    """The lowest key that a page may begin with."""
    if not after:
        return start
    cut = after.find(mark, len(start)) if mark and after.startswith(start) else -1
    is_folded = cut >= 0 and cut + len(mark) == len(after)
    return max(start, key_after(after) if is_folded else after + b"\0")


def key_after(prefix: bytes) -> bytes:
    """The lowest key after all that begin with the prefix; b"" if there is none.

    No byte of UTF-8 is 0xff, so the last one has a successor.

    >>> key_after(b"a/")
    b'a0'
    """
    return prefix[:-1] + bytes([prefix[-1] + 1]) if prefix else b""
