"""Streams of fragments: one reader of the event log per view, however many people look.

A view is rendered when its job has new events, at most every `EVERY_S`, and the same text goes to
everyone who looks at it. A viewer who is slow skips to the newest; one who comes back after a break
gets the newest too, because a view shows what is, not what happened. A view may be of parts: then
only those that have changed since a viewer's last look are sent.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

from starlette.responses import StreamingResponse

from turnwise import errors

log = logging.getLogger(__name__)

#: Streams that may be open with one key: a tab has one or two.
MAX_STREAMS = 100
#: Least time between two renderings of a view.
EVERY_S = 1.0
#: A comment is sent after so long without news, so that a closed connection is noticed.
BEAT_S = 15.0

#: Renders a view: the text, or the texts of its parts, always as many; and the event that it has
#: seen everything up to.
Render = Callable[[], Awaitable[tuple[str | Sequence[str], int]]]
#: Returns once there is an event after this one; raises what ends the view.
News = Callable[[int], Awaitable[None]]
#: Raises what ends one viewer's stream, as that their key was revoked; asked with every beat.
MayLook = Callable[[], Awaitable[object]]


async def anybody() -> None:
    """See `MayLook`: nobody is turned away."""


@dataclass(eq=False, slots=True, kw_only=True)
class Shared:
    """What one task keeps up to date for all who look at it, while anybody does."""

    is_over: bool = False
    viewers: int = 0
    changed: asyncio.Condition = field(default_factory=asyncio.Condition)
    task: asyncio.Task[None] | None = None

    async def tell(self) -> None:
        """Wake those who wait for news."""
        async with self.changed:
            self.changed.notify_all()

    async def waits(self, is_news: Callable[[], bool], longest_s: float) -> bool:
        """Wait for news, but no longer than that; whether there is any."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(longest_s), self.changed:
                await self.changed.wait_for(is_news)
                return True
        return False

    async def keep(self, go_on: Callable[[], Awaitable[None]]) -> None:
        """Go on until what is looked at is gone, or breaks; then it is over."""
        try:
            while True:
                await go_on()
        except errors.TurnwiseError as error:
            log.debug("what was looked at has ended: %s", error)
        except Exception:  # its viewers come again, and have it tried again
            log.exception("what is looked at broke")
        self.is_over = True
        await self.tell()


S = TypeVar("S", bound=Shared)


@contextlib.contextmanager
def looking(
    held: dict[str, S],
    key: str,
    make: Callable[[], S],
    keep: Callable[[S], Coroutine[Any, Any, None]],
) -> Iterator[S]:
    """One viewer more of what has that key; the first starts its task, the last one ends it."""
    shared = held.get(key)
    if shared is None or shared.is_over:
        shared = held[key] = make()
    shared.viewers += 1
    if shared.task is None:
        shared.task = asyncio.create_task(keep(shared), name=f"view {key}")
    try:
        yield shared
    finally:
        shared.viewers -= 1
        if not shared.viewers:
            if held.get(key) is shared:
                del held[key]
            shared.task.cancel()


class Leave:
    """One viewer's leave to look, asked for again with every beat."""

    def __init__(self, may_look: MayLook, beat_s: float) -> None:
        self._may_look = may_look
        self._beat_s = beat_s
        self._asked_at = time.monotonic()

    async def check(self) -> None:
        """Raises what `may_look` raises, if it is time to ask again."""
        if time.monotonic() - self._asked_at >= self._beat_s:
            await self._may_look()
            self._asked_at = time.monotonic()


def event_stream(pieces: AsyncIterator[bytes]) -> StreamingResponse:
    """Server-sent events, which nothing on the way may keep."""
    return StreamingResponse(
        pieces,
        media_type="text/event-stream",
        headers={"cache-control": "no-store", "x-accel-buffering": "no"},
    )


@dataclass(eq=False, slots=True)
class _Part:
    text: str
    number: int  # of the rendering that changed it last
    sent: bytes  # the lines of an event that say it


def _part(text: str, number: int) -> _Part:
    return _Part(text, number, _lines(text))


def _lines(text: str) -> bytes:
    return "".join(f"data: {line}\n" for line in text.splitlines()).encode()


@dataclass(eq=False, slots=True, kw_only=True)
class _View(Shared):
    parts: list[_Part] = field(default_factory=list)
    number: int = 0  # of renderings that differed

    def take(self, rendered: str | Sequence[str]) -> bool:
        """Keep a rendering; whether anything in it is new."""
        texts = (rendered,) if isinstance(rendered, str) else tuple(rendered)
        if [part.text for part in self.parts] == list(texts):
            return False
        self.number += 1
        before = self.parts or [_part("", 0) for _ in texts]
        self.parts = [
            part if part.text == text else _part(text, self.number)
            for part, text in zip(before, texts, strict=True)
        ]
        return True

    def has_news(self, seen: int) -> bool:
        """Whether there is something for a viewer who has seen renderings up to that one."""
        return self.number > seen or self.is_over

    def since(self, seen: int) -> bytes:
        """The event for a viewer who has seen renderings up to that one."""
        changed = b"".join(part.sent for part in self.parts if part.number > seen)
        return _event(changed, self.number)


class Hub:
    """Views by key; what two people may see alike has the same key."""

    def __init__(self, *, every_s: float = EVERY_S, beat_s: float = BEAT_S) -> None:
        self._views: dict[str, _View] = {}
        self._every_s = every_s
        self._beat_s = beat_s

    def stream(
        self, key: str, render: Render, news: News, may_look: MayLook = anybody
    ) -> StreamingResponse:
        """A server-sent event with the whole view now, and with what changed whenever it does."""
        return event_stream(self._events(key, render, news, may_look))

    async def _events(
        self, key: str, render: Render, news: News, may_look: MayLook
    ) -> AsyncIterator[bytes]:
        seen, leave = 0, Leave(may_look, self._beat_s)
        keep = partial(self._keep, render=render, news=news)
        try:
            with looking(self._views, key, _View, keep) as view:
                while True:
                    await view.waits(partial(view.has_news, seen), self._beat_s)
                    await leave.check()
                    if view.number > seen:
                        event, seen = view.since(seen), view.number
                        yield event
                    elif view.is_over:
                        return
                    else:
                        yield b": still here\n\n"
        except errors.TurnwiseError:
            return

    async def _keep(self, view: _View, *, render: Render, news: News) -> None:
        """Render whenever there is news, until the view ends."""

        async def go_on() -> None:
            rendered, seen = await render()
            if view.take(rendered):
                await view.tell()
            await news(seen)
            await asyncio.sleep(self._every_s)

        await view.keep(go_on)


class Streams:
    """How many streams are open, by key: each costs the server a reader of the log."""

    def __init__(self, most: int = MAX_STREAMS) -> None:
        self._most = most
        self._open: Counter[str] = Counter()

    def held(self, access_key_id: str, response: StreamingResponse) -> StreamingResponse:
        """The response, counted while it lasts. Raises `LimitExceeded` for one too many."""
        if self._open[access_key_id] >= self._most:
            raise errors.LimitExceeded(
                f"{self._most} streams are open with this key; close a page", retry_after_s=BEAT_S
            )
        response.body_iterator = self._counted(access_key_id, response.body_iterator)
        return response

    async def _counted(self, access_key_id: str, pieces: Any) -> AsyncIterator[bytes]:
        self._open[access_key_id] += 1
        try:
            async with contextlib.aclosing(pieces):
                async for piece in pieces:
                    yield piece
        finally:
            self._open[access_key_id] -= 1
            if not self._open[access_key_id]:
                del self._open[access_key_id]


def server_sent(text: str, number: int) -> bytes:
    r"""One unnamed event.

    >>> server_sent("a\nb", 3)
    b'id: 3\ndata: a\ndata: b\n\n'
    """
    return _event(_lines(text), number)


def _event(lines: bytes, number: int) -> bytes:
    return b"id: %d\n%b\n" % (number, lines)
