"""Metrics over steps, folded from a job's events."""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Iterator, Mapping, Sequence

from turnwise.domain.event import Event, EventKind

#: A metric's values by step, each step once, in order: (step, value).
Curve = Sequence[tuple[int, float]]


class Curves(Mapping[str, Curve]):
    """Every metric's curve, as far as events have been added.

    A step that was recorded twice, as after a resume, has its later value.

    >>> curves = Curves()
    >>> from turnwise.domain.event import Level
    >>> body = {"step": 3, "values": {"training/loss": 0.5}}
    >>> curves.add([Event(seq=9, job_id="j", at=0.0, kind=EventKind.METRICS, level=Level.INFO,
    ...     body=body)])
    >>> dict(curves), curves.seq
    ({'training/loss': [(3, 0.5)]}, 9)
    """

    def __init__(self) -> None:
        self._curves: dict[str, list[tuple[int, float]]] = {}
        self.seq = 0  # of the newest METRICS event added

    def add(self, events: Iterable[Event]) -> None:
        """Take in the METRICS events among these, which come in order."""
        for event in events:
            if event.kind is not EventKind.METRICS:
                continue
            self.seq = event.seq
            step = int(event.body["step"])
            for name, value in event.body["values"].items():
                if value is None:  # it was not finite, which JSON cannot say
                    continue
                _put(self._curves.setdefault(name, []), step, float(value))

    def __getitem__(self, name: str) -> Curve:
        return self._curves[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._curves)

    def __len__(self) -> int:
        return len(self._curves)


def _put(curve: list[tuple[int, float]], step: int, value: float) -> None:
    if not curve or curve[-1][0] < step:
        curve.append((step, value))
        return
    place = bisect.bisect_left(curve, step, key=lambda point: point[0])
    if curve[place][0] == step:
        curve[place] = (step, value)
    else:
        curve.insert(place, (step, value))


def gap(training: Curve, validation: Curve) -> Curve:
    """The generalisation gap: at each validation, the latest training value by then minus it.

    >>> gap([(0, 0.5), (3, 0.8)], [(0, 0.5), (4, 0.6)])
    [(0, 0.0), (4, 0.2)]
    """
    found = []
    for step, value in validation:
        place = bisect.bisect_right(training, step, key=lambda point: point[0])
        if place:
            found.append((step, round(training[place - 1][1] - value, 12)))
    return found
