"""Moments as text. Elsewhere they are seconds since the epoch."""

from __future__ import annotations

import calendar
import math
import time

_ISO = "%Y-%m-%dT%H:%M:%SZ"


def iso(at: float) -> str:
    """Seconds since the epoch as ISO 8601, to the second that has begun.

    >>> iso(0.9)
    '1970-01-01T00:00:00Z'
    """
    return time.strftime(_ISO, time.gmtime(math.floor(at)))


def from_iso(text: str) -> int:
    """What `iso` has written, in seconds since the epoch.

    >>> from_iso("1970-01-01T00:01:00Z")
    60
    """
    return calendar.timegm(time.strptime(text, _ISO))


def in_words(at: float) -> str:
    """Seconds since the epoch as a message to a person says them.

    >>> in_words(90)
    '1970-01-01 00:01 UTC'
    """
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(at))
