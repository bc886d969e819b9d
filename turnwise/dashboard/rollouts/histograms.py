"""A histogram as bars in SVG, each a link to what it counts. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from turnwise.dashboard.rollouts.rollout_filters import Filters
from turnwise.ports import Histogram

WIDTH, HEIGHT = 600, 72


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """One bin: rewards from `low` to below `high`.

    `x`, `y`, `width` and `height` are in the picture's units; `href` is the list of these alone.
    """

    low: float
    high: float
    count: int
    x: float
    y: float
    width: float
    height: float
    href: str
    is_chosen: bool


def bars(histogram: Histogram, filters: Filters) -> list[Bar]:
    """From left to right; the fullest is as high as the picture, one rollout is to be seen."""
    if not histogram.counts:
        return []
    fullest, width = max(histogram.counts), WIDTH / len(histogram.counts)
    edges = list(pairwise(histogram.edges))
    found = []
    for at, ((low, high), count) in enumerate(zip(edges, histogram.counts, strict=True)):
        height = max(HEIGHT * count / max(fullest, 1), 3.0 if count else 0.0)
        is_chosen = (filters.min, filters.below) == (low, high)
        href = filters.to(min=None, below=None) if is_chosen else filters.to(min=low, below=high)
        found.append(
            Bar(
                low=low,
                high=high,
                count=count,
                x=round(at * width + 1, 2),
                y=round(HEIGHT - height, 2),
                width=round(width - 2, 2),
                height=round(height, 2),
                href=href,
                is_chosen=is_chosen,
            )
        )
    return found
