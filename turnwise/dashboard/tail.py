"""The end of a log, followed by many at once: each new line is read and rendered one time.

    event log --one reader per filter--> the newest lines, rendered --> every viewer who follows

A viewer says which line it has seen last; lines that are no longer held are read for it alone.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

from starlette.responses import StreamingResponse

from turnwise import errors
from turnwise.dashboard.live import (
    BEAT_S,
    EVERY_S,
    Leave,
    MayLook,
    News,
    Shared,
    anybody,
    event_stream,
    looking,
    server_sent,
)

#: Rendered lines that are held for those who join.
HELD = 500

#: A rendered line: the event's number and its HTML.
Rendered = tuple[int, str]
#: Reads and renders what is past a number, and how far it has looked.
Read = Callable[[int], Awaitable[tuple[Sequence[Rendered], int]]]


@dataclass(eq=False, slots=True, kw_only=True)
class _Tail(Shared):
    held_from: int  # lines past this number are all in `lines`
    seen: int
    lines: deque[Rendered] = field(default_factory=deque)

    def has_news(self, after: int) -> bool:
        """Whether there is something for a viewer who has seen lines up to that one."""
        return self.seen > after or self.is_over


class Tails:
    """Logs that are being followed, by key: the job and the filter."""

    def __init__(self, *, every_s: float = EVERY_S, beat_s: float = BEAT_S) -> None:
        self._tails: dict[str, _Tail] = {}
        self._every_s = every_s
        self._beat_s = beat_s

    def stream(
        self, key: str, after: int, read: Read, news: News, may_look: MayLook = anybody
    ) -> StreamingResponse:
        """Server-sent events whose data are the lines past `after`, and whose id is the last's.

        `after` is no number that the log has not come to yet.
        """
        return event_stream(self._events(key, after, read, news, may_look))

    async def _events(
        self, key: str, after: int, read: Read, news: News, may_look: MayLook
    ) -> AsyncIterator[bytes]:
        leave = Leave(may_look, self._beat_s)
        make = partial(_Tail, held_from=after, seen=after)
        keep = partial(self._keep, read=read, news=news)
        try:
            with looking(self._tails, key, make, keep) as tail:
                while True:
                    fresh, after = await _fresh(tail, after, read)
                    if fresh:
                        yield _sent(fresh)
                    elif tail.is_over:
                        return
                    elif after >= tail.held_from and not await tail.waits(
                        partial(tail.has_news, after), self._beat_s
                    ):
                        yield b": still here\n\n"
                    await leave.check()
        except errors.TurnwiseError:
            return

    async def _keep(self, tail: _Tail, *, read: Read, news: News) -> None:
        """Read whenever there is news, until the job is gone."""

        async def go_on() -> None:
            lines, tail.seen = await read(tail.seen)
            tail.lines.extend(lines)
            while len(tail.lines) > HELD:
                tail.held_from = tail.lines.popleft()[0]
            await tail.tell()
            await news(tail.seen)
            await asyncio.sleep(self._every_s)

        await tail.keep(go_on)


async def _fresh(tail: _Tail, after: int, read: Read) -> tuple[Sequence[Rendered], int]:
    """Lines that a viewer has not seen, and what it has seen with them.

    One who is behind what is held, at first or because its connection is slow, has them read.
    """
    if after >= tail.held_from:
        return [each for each in tail.lines if each[0] > after], max(after, tail.seen)
    lines, looked_to = await read(after)
    return lines, looked_to if looked_to > after else tail.held_from


def _sent(lines: Sequence[Rendered]) -> bytes:
    return server_sent("\n".join(html for _, html in lines), lines[-1][0])
