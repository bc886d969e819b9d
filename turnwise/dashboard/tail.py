"""The end of a log, followed by many at once: each new line is read and rendered one time.

    event log --one reader per filter--> the newest lines, rendered --> every viewer who follows

A viewer says which line it has seen last; lines that are no longer held are read for it alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from starlette.responses import StreamingResponse

from turnwise import errors
from turnwise.dashboard.live import BEAT_S, EVERY_S, MayLook, anybody, server_sent

log = logging.getLogger(__name__)

#: Rendered lines that are held for those who join.
HELD = 500

#: A rendered line: the event's number and its HTML.
Rendered = tuple[int, str]
#: Reads and renders what is past a number, and how far it has looked.
Read = Callable[[int], Awaitable[tuple[Sequence[Rendered], int]]]
#: Returns once there are events past a number.
News = Callable[[int], Awaitable[None]]


@dataclass(eq=False, slots=True)
class _Tail:
    held_from: int  # lines past this number are all in `lines`
    seen: int
    lines: deque[Rendered] = field(default_factory=deque)
    is_over: bool = False
    viewers: int = 0
    changed: asyncio.Condition = field(default_factory=asyncio.Condition)
    task: asyncio.Task[None] | None = None


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
        return StreamingResponse(
            self._events(key, after, read, news, may_look),
            media_type="text/event-stream",
            headers={"cache-control": "no-store", "x-accel-buffering": "no"},
        )

    async def _events(
        self, key: str, after: int, read: Read, news: News, may_look: MayLook
    ) -> AsyncIterator[bytes]:
        tail = self._tails.get(key)
        if tail is None or tail.is_over:
            tail = self._tails[key] = _Tail(held_from=after, seen=after)
        tail.viewers += 1
        if tail.task is None:
            tail.task = asyncio.create_task(self._keep(tail, read, news), name=f"tail {key}")
        asked_at = time.monotonic()
        try:
            while True:
                fresh, after = await _fresh(tail, after, read)
                if fresh:
                    yield _sent(fresh)
                elif tail.is_over:
                    return
                elif after >= tail.held_from and not await self._changed(tail, after):
                    yield b": still here\n\n"
                if time.monotonic() - asked_at >= self._beat_s:
                    await may_look()
                    asked_at = time.monotonic()
        except errors.TurnwiseError:
            return
        finally:
            tail.viewers -= 1
            if not tail.viewers:
                if self._tails.get(key) is tail:
                    del self._tails[key]
                if tail.task is not None:
                    tail.task.cancel()

    async def _changed(self, tail: _Tail, after: int) -> bool:
        """Wait for news, but no longer than a beat."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._beat_s), tail.changed:
                await tail.changed.wait_for(lambda: tail.seen > after or tail.is_over)
                return True
        return False

    async def _keep(self, tail: _Tail, read: Read, news: News) -> None:
        """Read whenever there is news, until the job is gone."""
        try:
            while True:
                lines, tail.seen = await read(tail.seen)
                tail.lines.extend(lines)
                while len(tail.lines) > HELD:
                    tail.held_from = tail.lines.popleft()[0]
                async with tail.changed:
                    tail.changed.notify_all()
                await news(tail.seen)
                await asyncio.sleep(self._every_s)
        except errors.TurnwiseError as error:
            log.debug("a log has ended: %s", error)
        except Exception:  # its viewers come again, and have it tried again
            log.exception("a log cannot be followed")
        tail.is_over = True
        async with tail.changed:
            tail.changed.notify_all()


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
