"""Numbers about parts of a curve. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean, median

from turnwise.domain.curves import Curve


def mean(curve: Curve) -> float:
    """Of the values.

    >>> mean([(0, 1.0), (1, 2.0)])
    1.5
    """
    return fmean(value for _, value in curve)


def middle(curve: Curve) -> float:
    """The median of the values.

    >>> middle([(0, 1.0), (1, 9.0), (2, 2.0)])
    2.0
    """
    return median(value for _, value in curve)


def ends(curve: Curve, width: int) -> tuple[Curve, Curve] | None:
    """The first and the last `width` points; None while they would overlap.

    >>> ends([(0, 1.0), (1, 2.0), (2, 3.0)], 1)
    ([(0, 1.0)], [(2, 3.0)])
    >>> ends([(0, 1.0)], 1)
    """
    if len(curve) < 2 * width:
        return None
    return list(curve[:width]), list(curve[-width:])


def best(curve: Curve, width: int) -> Curve:
    """The `width` neighbours of the largest mean, the earliest of equals; the curve has as many.

    >>> best([(0, 1.0), (1, 3.0), (2, 3.0), (3, 0.0)], 2)
    [(1, 3.0), (2, 3.0)]
    """
    starts = range(len(curve) - width + 1)
    start = max(starts, key=lambda at: (mean(curve[at : at + width]), -at))
    return list(curve[start : start + width])


def spread(curve: Curve) -> float:
    """Median distance from the median.

    >>> spread([(0, 1.0), (1, 2.0), (2, 9.0)])
    1.0
    """
    at = middle(curve)
    return median(abs(value - at) for _, value in curve)


def standard_error(std: float, count: float) -> float:
    """Of a mean over so many independent values.

    >>> standard_error(0.5, 25), standard_error(0.5, 0)
    (0.1, inf)
    """
    return std / math.sqrt(count) if count > 0 else math.inf


def at_steps(curve: Curve, steps: Sequence[int]) -> Curve:
    """The points at these steps.

    >>> at_steps([(0, 1.0), (1, 2.0), (2, 3.0)], [0, 2, 7])
    [(0, 1.0), (2, 3.0)]
    """
    wanted = set(steps)
    return [(step, value) for step, value in curve if step in wanted]
