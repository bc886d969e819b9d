"""Traces of remote rollouts: how long they are kept."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from tests.builders import ACCOUNT
from tests.unit.gateway.kit import HeldClock
from turnwise import errors
from turnwise.control import traces
from turnwise.control.traces import DAY_S, Traces
from turnwise.domain.access import Principal
from turnwise.domain.traced import TracedLog, TraceQuery
from turnwise.storage.sql import SqlStore

CALLER = Principal(account_id=ACCOUNT)


@pytest.fixture
async def store() -> AsyncIterator[SqlStore]:
    opened = SqlStore.in_memory()
    yield opened
    await opened.close()


async def log(room: Traces, message: str) -> None:
    entry = TracedLog(account_id="", at=0.0, tags=("t:1",), program="p", message=message)
    await room.keep_log(CALLER, entry)


async def left(room: Traces) -> list[str]:
    return [entry.message for entry in await room.logs(CALLER, TraceQuery())]


async def test_what_is_older_than_its_days_is_dropped(
    store: SqlStore, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(traces, "SWEEP_BATCH", 2)
    clock = HeldClock()
    room = Traces(store, clock, retention_days=2)
    for number in range(5):
        await log(room, f"old {number}")
    clock.time += DAY_S
    await log(room, "young")
    await room.sweep()
    assert len(await left(room)) == 6
    clock.time += DAY_S + 1
    await room.sweep()
    assert await left(room) == ["young"]


class SleepingClock(HeldClock):
    """Time that stands; who sleeps wakes when the test says so."""

    def __init__(self) -> None:
        super().__init__()
        self.asleep = asyncio.Event()
        self.wake = asyncio.Event()

    async def sleep(self, seconds: float) -> None:
        assert seconds == traces.SWEEP_EVERY_S
        self.asleep.set()
        await self.wake.wait()
        self.wake.clear()


async def test_dropping_goes_on_after_the_store_has_refused(
    store: SqlStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    async def full(before: float, *, limit: int) -> int:
        raise errors.StorageFull("no room")

    clock = SleepingClock()
    room = Traces(store, clock, retention_days=1)
    await log(room, "old")
    clock.time += 2 * DAY_S
    with monkeypatch.context() as broken:
        broken.setattr(store, "drop_traces", full)
        room.start()
        await clock.asleep.wait()
    assert await left(room) == ["old"]
    assert "traces could not be dropped: no room" in caplog.text
    clock.asleep.clear()
    clock.wake.set()
    await clock.asleep.wait()
    assert await left(room) == []
    await room.close()
