"""Streams of fragments: one reader of the event log per view, however many people look.

A view is rendered when its job has new events, at most every `EVERY_S`, and the same text goes to
everyone who looks at it. A viewer who is slow skips to the newest; one who comes back after a break
gets the newest too, because a view shows what is, not what happened.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field

from starlette.responses import StreamingResponse

from turnwise import errors

#: Least time between two renderings of a view.
EVERY_S = 1.0
#: A comment is sent after so long without news, so that a closed connection is noticed.
BEAT_S = 15.0

#: Renders a view: the text, and the event that it has seen everything up to.
Render = Callable[[], Awaitable[tuple[str, int]]]
#: Returns once there is an event after this one; raises what ends the view.
News = Callable[[int], Awaitable[None]]


@dataclass(eq=False, slots=True)
class _View:
    text: str = ""
    number: int = 0  # of renderings that differed
    is_over: bool = False
    viewers: int = 0
    changed: asyncio.Condition = field(default_factory=asyncio.Condition)
    task: asyncio.Task[None] | None = None


class Hub:
    """Views by key; what two people may see alike has the same key."""

    def __init__(self, *, every_s: float = EVERY_S, beat_s: float = BEAT_S) -> None:
        self._views: dict[str, _View] = {}
        self._every_s = every_s
        self._beat_s = beat_s

    def stream(self, key: str, render: Render, news: News) -> StreamingResponse:
        """A server-sent event with the whole view, now and whenever it changes."""
        return StreamingResponse(
            self._events(key, render, news),
            media_type="text/event-stream",
            headers={"cache-control": "no-store", "x-accel-buffering": "no"},
        )

    async def _events(self, key: str, render: Render, news: News) -> AsyncIterator[bytes]:
        view = self._views.setdefault(key, _View())
        view.viewers += 1
        if view.task is None:
            view.task = asyncio.create_task(self._keep(view, render, news), name=f"view {key}")
        seen = 0
        try:
            while True:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._beat_s), view.changed:
                        await view.changed.wait_for(
                            lambda: view.number > seen or view.is_over  # noqa: B023
                        )
                if view.number > seen:
                    seen = view.number
                    yield server_sent(view.text, seen)
                elif view.is_over:
                    return
                else:
                    yield b": still here\n\n"
        finally:
            view.viewers -= 1
            if not view.viewers:
                self._views.pop(key, None)
                if view.task is not None:
                    view.task.cancel()

    async def _keep(self, view: _View, render: Render, news: News) -> None:
        """Render whenever there is news, until the view ends."""
        with contextlib.suppress(errors.TurnwiseError):
            while True:
                text, seen = await render()
                if text != view.text:
                    view.text = text
                    view.number += 1
                    async with view.changed:
                        view.changed.notify_all()
                await news(seen)
                await asyncio.sleep(self._every_s)
        view.is_over = True
        async with view.changed:
            view.changed.notify_all()


def server_sent(text: str, number: int) -> bytes:
    r"""One unnamed event.

    >>> server_sent("a\nb", 3)
    b'id: 3\ndata: a\ndata: b\n\n'
    """
    lines = "".join(f"data: {line}\n" for line in text.splitlines())
    return f"id: {number}\n{lines}\n".encode()
