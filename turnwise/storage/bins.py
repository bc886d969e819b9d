"""Where a histogram's bars begin and end. Pure."""

from __future__ import annotations

from decimal import ROUND_FLOOR, Decimal
from itertools import pairwise

#: Widths of bars, times a power of ten.
_STEPS = (1, 2, 5, 10)


def edges_for(lowest: float, highest: float, bins: int) -> tuple[float, ...]:
    """Ascending edges of at most `bins` bars [edge, next edge) that hold `lowest` to `highest`.

    Each is a multiple of 1, 2 or 5 times a power of ten; so is 0, which is why there may always
    be two bars. Equal values get one of their own.

    >>> edges_for(0.0, 1.0, 6)
    (0.0, 0.2, 0.4, 0.6, 0.8, 1.0, 1.2)
    >>> edges_for(0.7312, 0.7312, 20)
    (0.73, 0.74)
    """
    low, high = Decimal(repr(lowest)), Decimal(repr(highest))
    width = _width(low, high, bins) if high > low else _own_width(high)
    while True:
        edges = tuple(float(n * width) for n in range(_floor(low, width), _floor(high, width) + 2))
        if highest < edges[-1] and all(a < b for a, b in pairwise(edges)):
            return edges
        width *= 10  # finer than floating point numbers are


def _width(low: Decimal, high: Decimal, bins: int) -> Decimal:
    """The least round width with which so many bars reach from `low` to beyond `high`."""
    power = Decimal(10) ** ((high - low) / max(bins, 2)).adjusted()
    while True:
        for step in _STEPS:
            width = step * power
            if _floor(high, width) - _floor(low, width) < max(bins, 2):
                return width
        power *= 10


def _own_width(value: Decimal) -> Decimal:
    return Decimal(10) ** (value.adjusted() - 1) if value else Decimal("0.1")


def _floor(value: Decimal, width: Decimal) -> int:
    return int((value / width).to_integral_value(ROUND_FLOOR))
