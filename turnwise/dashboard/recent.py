"""Counts over many rollouts, remembered for a moment: who pages on does not count again."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, TypeVar

from turnwise.ports import Clock

T = TypeVar("T")

#: How old a count may be; of 100,000 rollouts it takes about 50 ms.
KEPT_S = 5.0
#: How many are remembered; each is some KB.
KEPT = 256


class Recent(Generic[T]):
    """Values by key, made again once they are older than `KEPT_S`."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._kept: OrderedDict[Hashable, tuple[float, T]] = OrderedDict()

    async def get(self, key: Hashable, make: Callable[[], Awaitable[T]]) -> T:
        """The value that was made lately, or a new one. What `make` raises is not kept."""
        kept = self._kept.get(key)
        if kept is not None and self._clock.now() - kept[0] < KEPT_S:
            return kept[1]
        value = await make()
        self._kept[key] = (self._clock.now(), value)
        self._kept.move_to_end(key)
        while len(self._kept) > KEPT:
            self._kept.popitem(last=False)
        return value
