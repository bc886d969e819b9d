"""The engines of a server: who uses one, and how long it lives. Imports no torch."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from turnwise.ports import Sampler
from turnwise.sampling.shared import ClaimedSampler, SharedSampler

#: Starts an engine of a base model's folder, deterministic or not.
Start = Callable[[str, bool], Awaitable[Sampler]]


@dataclass(slots=True)
class _Running:
    """An engine process, and the time at which it ends for want of users."""

    shared: SharedSampler
    timer: asyncio.TimerHandle | None = None


class Engines:
    """One engine process per base model and mode: started when needed, ended when nobody has
    needed it for a while, forgotten when dead.
    """

    def __init__(self, start: Start, *, idle_s: float) -> None:
        """An engine that nobody has used for `idle_s` seconds ends."""
        self._start_engine = start
        self._idle_s = idle_s
        self._running: dict[tuple[str, bool], _Running] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._moving = asyncio.Lock()

    async def claim(self, model: str, *, deterministic: bool) -> ClaimedSampler:
        """A user's own view of its engine, which may still be loading its model."""
        async with self._moving:
            return await self._claim((model, deterministic))

    async def claim_any(self, model: str) -> ClaimedSampler:
        """As `claim`, in whichever mode an engine of that model runs."""
        async with self._moving:
            return await self._claim((model, (model, True) in self._running))

    async def _claim(self, key: tuple[str, bool]) -> ClaimedSampler:
        running = self._running.get(key)
        if running is None:
            running = self._running[key] = await self._start(key)
        if running.timer is not None:
            running.timer.cancel()
        return running.shared.claim()

    async def _start(self, key: tuple[str, bool]) -> _Running:
        engine = await self._start_engine(*key)
        running = _Running(SharedSampler(engine, lambda: self._end_later(key, running)))
        self._spawn(self._forget(key, running))
        return running

    def _end_later(self, key: tuple[str, bool], running: _Running) -> None:
        loop = asyncio.get_running_loop()
        running.timer = loop.call_later(self._idle_s, lambda: self._spawn(self._end(key, running)))

    async def _end(self, key: tuple[str, bool], running: _Running) -> None:
        async with self._moving:
            if running.shared.users or self._running.get(key) is not running:
                return
            del self._running[key]
        await running.shared.sampler.close()

    async def _forget(self, key: tuple[str, bool], running: _Running) -> None:
        await running.shared.sampler.lost()
        if self._running.get(key) is running:
            del self._running[key]

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
