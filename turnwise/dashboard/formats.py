"""Numbers, times and texts as a person reads them. Pure; every function is a template filter."""

from __future__ import annotations

import math
from datetime import UTC, datetime

from turnwise.dashboard.rollouts.messages import readable

#: Stands where there is no value.
NONE = "–"


def number(value: float | None, digits: int = 4) -> str:
    """A number with so many significant digits, in thousands groups where it is whole.

    >>> number(0.123456), number(12345), number(1e-7), number(None), number(float("nan"))
    ('0.1235', '12,345', '1e-07', '–', '–')
    """
    if value is None or not math.isfinite(value):
        return NONE
    if value == int(value) and abs(value) < 1e15:
        return f"{int(value):,}"
    return f"{value:.{digits}g}"


def reward(value: float | None) -> str:
    """A reward, three decimals, so that a column lines up.

    >>> reward(0.5), reward(None)
    ('0.500', '–')
    """
    return NONE if value is None or not math.isfinite(value) else f"{value:.3f}"


def percent(share: float | None) -> str:
    """A share as a percentage.

    >>> percent(0.123), percent(1), percent(None)
    ('12.3 %', '100 %', '–')
    """
    if share is None or not math.isfinite(share):
        return NONE
    return f"{100 * share:.3g} %"


def compact(count: float | None) -> str:
    """A count in thousands or millions.

    >>> compact(950), compact(12_345), compact(3_400_000), compact(2.5e9)
    ('950', '12.3 k', '3.4 M', '2.5 G')
    """
    if count is None:
        return NONE
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(count) >= size:
            return f"{count / size:.3g} {unit}"
    return number(count)


def duration(seconds: float | None) -> str:
    """A span of time, its two largest units.

    >>> duration(0.0421), duration(12.34), duration(75), duration(7265), duration(200000)
    ('42 ms', '12.3 s', '1 min 15 s', '2 h 1 min', '2 d 7 h')
    """
    if seconds is None or not math.isfinite(seconds):
        return NONE
    if seconds < 1:
        return f"{1000 * max(seconds, 0):.0f} ms"
    if seconds < 60:
        return f"{seconds:.3g} s"
    whole = round(seconds)
    for size, unit, small, of in (
        (86_400, "d", 3600, "h"),
        (3600, "h", 60, "min"),
        (60, "min", 1, "s"),
    ):
        if whole >= size:
            rest = whole % size // small
            return f"{whole // size} {unit}" + (f" {rest} {of}" if rest else "")
    return f"{whole} s"


def iso(at: float | None) -> str:
    """A time for machines: what `<time datetime>` holds.

    >>> iso(0)
    '1970-01-01T00:00:00.000Z'
    """
    if at is None:
        return ""
    text = datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds")
    return text.replace("+00:00", "Z")


def clock(at: float | None) -> str:
    """A time for people, in UTC; the page's script shows it in the reader's zone.

    >>> clock(0)
    '1970-01-01 00:00:00'
    """
    return NONE if at is None else f"{datetime.fromtimestamp(at, UTC):%Y-%m-%d %H:%M:%S}"


def short(text: str, length: int = 80) -> str:
    """A text on one line, cut to a length.

    >>> short("one  two", 20), short("abcdefgh", 5)
    ('one two', 'abcd…')
    """
    line = " ".join(text.split())
    return line if len(line) <= length else line[: length - 1] + "…"


FILTERS = {
    "number": number,
    "reward": reward,
    "percent": percent,
    "compact": compact,
    "duration": duration,
    "iso": iso,
    "clock": clock,
    "short": short,
    "readable": readable,
}
