"""Curves as figures: what is drawn, and the same numbers as a table. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from turnwise.dashboard.formats import number
from turnwise.domain.curves import Curve

#: Points that a chart draws at most: about one per pixel of its width, for all series together.
MAX_POINTS = 800
#: Rows of a chart's table: the newest.
MAX_ROWS = 50
#: Significant digits of what is drawn: more than a pixel shows, fewer than a float prints.
_DIGITS = 6

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Series:
    """A line of a chart. Its value at each x is None where it has none."""

    label: str
    values: tuple[float | None, ...]


@dataclass(frozen=True, slots=True)
class Row:
    """A row of a chart's table; `href` is where its x leads."""

    x: int
    values: tuple[float | None, ...]
    href: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """A figure: `data` is what `static/charts.js` draws, `rows` the newest numbers, newest first.

    `caption` says the latest values, `note` what the table leaves out.
    """

    id: str
    title: str
    caption: str
    x_label: str
    series: tuple[Series, ...]
    rows: tuple[Row, ...]
    data: Json
    note: str = ""


def chart(
    id: str,
    title: str,
    curves: Mapping[str, Curve],
    *,
    x_label: str = "step",
    href: str = "",
    band: tuple[str, str] | None = None,
) -> Chart:
    """A chart of curves by label; `href` has "{x}" where the clicked step goes.

    `band` names the two curves between which the area is tinted, the upper one first.

    >>> made = chart("r", "Reward", {"training": [(0, 0.5), (1, 0.75)], "validation": [(1, 0.6)]})
    >>> made.caption
    'step 1: training 0.75, validation 0.6'
    >>> made.rows[0]
    Row(x=1, values=(0.75, 0.6), href='')
    """
    xs = sorted({step for curve in curves.values() for step, _ in curve})
    series = tuple(_series(label, curve, xs) for label, curve in curves.items())
    shown = xs[-MAX_ROWS:][::-1]
    places = {x: at for at, x in enumerate(xs)}
    data: Json = {**_drawn(xs, series), "x_label": x_label, "href": href}
    if band is not None:
        labels = list(curves)
        data["band"] = [labels.index(each) for each in band]
    return Chart(
        id=id,
        title=title,
        caption=_caption(x_label, curves),
        x_label=x_label,
        series=series,
        rows=tuple(
            Row(
                x=x,
                values=tuple(each.values[places[x]] for each in series),
                href=href.replace("{x}", str(x)),
            )
            for x in shown
        ),
        data=data,
        note=f"the newest {len(shown)} of {len(xs)} {x_label}s" if len(shown) < len(xs) else "",
    )


def _series(label: str, curve: Curve, xs: Sequence[int]) -> Series:
    by_step = dict(curve)
    return Series(label, tuple(_finite(by_step.get(x)) for x in xs))


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _caption(x_label: str, curves: Mapping[str, Curve]) -> str:
    """The newest values, and when; curves whose newest is older say so."""
    newest = {label: curve[-1] for label, curve in curves.items() if curve}
    if not newest:
        return "nothing yet"
    last = max(step for step, _ in newest.values())
    if len(newest) == 1:
        [(step, value)] = newest.values()
        return f"{number(value)} at {x_label} {step}"
    texts = [
        f"{label} {number(value)}" + (f" (at {step})" if step != last else "")
        for label, (step, value) in newest.items()
    ]
    return f"{x_label} {last}: " + ", ".join(texts)


def _drawn(xs: Sequence[int], series: Sequence[Series]) -> Json:
    kept = thinned([each.values for each in series], MAX_POINTS)
    return {
        "x": [xs[at] for at in kept],
        "series": [
            {"label": each.label, "values": [_short(each.values[at]) for at in kept]}
            for each in series
        ],
    }


def _short(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.{_DIGITS}g}")


def thinned(columns: Sequence[Sequence[float | None]], most: int) -> list[int]:
    """The places to draw, at most about `most`: of every stretch each column's least and greatest.

    So no peak is lost, whatever the scale. The first and the last place are always there.

    >>> thinned([[0, 0, 0, 9, 0, 0, 0, -9, 0, 0]], 6)
    [0, 2, 3, 4, 7, 9]
    """
    count = len(columns[0]) if columns else 0
    if count <= most:
        return list(range(count))
    stretches = max(1, most // (2 * len(columns)))
    kept = {0, count - 1}
    for stretch in range(stretches):
        places = range(stretch * count // stretches, (stretch + 1) * count // stretches)
        for column in columns:
            valued = [(value, at) for at in places if (value := column[at]) is not None]
            if valued:
                kept |= {min(valued)[1], max(valued)[1]}
    return sorted(kept)
