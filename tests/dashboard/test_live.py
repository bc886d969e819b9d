"""What the hub sends: one rendering for all, of parts only those that changed."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence

import pytest

from turnwise import errors
from turnwise.dashboard.live import Hub, Streams


class Told:
    """A view whose parts a test changes."""

    def __init__(self, *parts: str) -> None:
        self.parts: Sequence[str] = parts
        self.renderings = 0
        self._seen = 0
        self._changed = asyncio.Condition()

    async def change(self, *parts: str) -> None:
        self.parts = parts
        async with self._changed:
            self._seen += 1
            self._changed.notify_all()

    async def render(self) -> tuple[Sequence[str], int]:
        self.renderings += 1
        return self.parts, self._seen

    async def news(self, seen: int) -> None:
        async with self._changed:
            await self._changed.wait_for(lambda: self._seen > seen)


async def looking(hub: Hub, told: Told, may_look: object = None) -> AsyncIterator[bytes]:
    given = {} if may_look is None else {"may_look": may_look}
    response = hub.stream("view", told.render, told.news, **given)  # type: ignore[arg-type]
    async for event in response.body_iterator:
        if not bytes(event).startswith(b":"):  # type: ignore[arg-type]
            yield bytes(event)  # type: ignore[arg-type]


async def test_a_viewer_gets_all_parts_and_then_those_that_change():
    hub, told = Hub(every_s=0), Told("head", "long")
    events = looking(hub, told)
    assert await anext(events) == b"id: 1\ndata: head\ndata: long\n\n"
    await told.change("head 2", "long")
    assert await anext(events) == b"id: 2\ndata: head 2\n\n"
    late = looking(hub, told)
    assert await anext(late) == b"id: 2\ndata: head 2\ndata: long\n\n"
    await events.aclose()
    await late.aclose()


async def test_a_slow_viewer_misses_no_part():
    hub, told = Hub(every_s=0), Told("a", "b")
    slow, quick = looking(hub, told), looking(hub, told)
    await anext(slow)
    await anext(quick)
    await told.change("a2", "b")
    await anext(quick)
    await told.change("a2", "b2")
    await anext(quick)
    assert await anext(slow) == b"id: 3\ndata: a2\ndata: b2\n\n"
    await slow.aclose()
    await quick.aclose()


async def test_many_viewers_cost_one_rendering_per_change():
    hub, told = Hub(every_s=0), Told("a")
    viewers = [looking(hub, told) for _ in range(20)]
    for viewer in viewers:
        await anext(viewer)
    await told.change("b")
    for viewer in viewers:
        await anext(viewer)
    assert told.renderings == 2
    for viewer in viewers:
        await viewer.aclose()


async def test_a_viewer_who_may_no_longer_look_is_let_go_and_others_are_not():
    hub, told = Hub(every_s=0, beat_s=0.01), Told("a")

    async def revoked() -> None:
        raise errors.Unauthenticated("the key was revoked")

    other = looking(hub, told)
    await anext(other)
    refused = looking(hub, told, revoked)
    with contextlib.suppress(StopAsyncIteration):
        await anext(refused)
    with pytest.raises(StopAsyncIteration):
        await anext(refused)
    await told.change("b")
    assert await anext(other) == b"id: 2\ndata: b\n\n"
    await other.aclose()


async def test_a_view_that_breaks_ends_for_its_viewers_and_is_made_anew_for_the_next():
    hub, told = Hub(every_s=0), Told("a")

    async def broken() -> tuple[str, int]:
        raise RuntimeError("a disk error")

    response = hub.stream("view", broken, told.news)
    async with asyncio.timeout(30):
        assert [event async for event in response.body_iterator] == []
        viewer = looking(hub, told)
        assert await anext(viewer) == b"id: 1\ndata: a\n\n"
        await viewer.aclose()


async def test_a_key_has_so_many_streams_open_and_others_are_not_kept_out():
    hub, told, streams = Hub(every_s=0), Told("a"), Streams(most=2)

    def opened(key: str) -> AsyncIterator[bytes]:
        response = streams.held(key, hub.stream("view", told.render, told.news))
        return response.body_iterator  # type: ignore[return-value]

    mine = [opened("mine"), opened("mine")]
    for stream in mine:
        await anext(stream)
    with pytest.raises(errors.LimitExceeded, match="2 streams are open with this key"):
        opened("mine")
    theirs = opened("theirs")
    await anext(theirs)
    await mine[0].aclose()  # type: ignore[attr-defined]
    another = opened("mine")
    await anext(another)
    for stream in (mine[1], theirs, another):
        await stream.aclose()  # type: ignore[attr-defined]
    assert hub._views == {}
