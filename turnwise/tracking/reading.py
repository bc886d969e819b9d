"""How the event log is read for a place outside: page by page, and again after each failure."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable

from turnwise import errors
from turnwise.domain.event import Event
from turnwise.domain.job import Job
from turnwise.ports import Clock, Store

log = logging.getLogger(__name__)

PAGE = 500
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 30.0


class Reader:
    """One job's events for one destination. The cursor is the destination's."""

    def __init__(
        self,
        job: Job,
        *,
        store: Store,
        clock: Clock,
        destination: str,
        longest_pause_s: float = LONGEST_PAUSE_S,
    ) -> None:
        """`destination` is its name for the server's log."""
        self._job = job
        self._store = store
        self._clock = clock
        self._destination = destination
        self._longest_pause_s = longest_pause_s
        self._hurry = asyncio.Event()

    def hurry(self) -> None:
        """Somebody waits: do not linger for more events."""
        self._hurry.set()

    async def events(self, after: int) -> list[Event]:
        """The next page, maybe empty."""
        return await self._store.events(
            self._job.account_id, self._job.job_id, after=after, limit=PAGE
        )

    async def pages(self, after: int, linger_s: float) -> AsyncIterator[list[Event]]:
        """Pages of events from a cursor on; ends once the job has and no more come.

        Raises `NotFound` once the job is deleted.
        """
        while True:
            while page := await self.events(after):
                yield page
                after = page[-1].seq
            job = await self._store.job(self._job.account_id, self._job.job_id)
            if job.status.is_final and not await self.events(after):
                return
            await self._store.wait_for(self._job.account_id, self._job.job_id, after=after)
            await self._gather(linger_s)

    async def lasting(
        self,
        work: Callable[[], Awaitable[None]],
        progress: Callable[[], object],
        failed: Callable[[Exception], Awaitable[None]] | None = None,
    ) -> None:
        """Repeat the work until it ends by itself; wait longer each time that it fails.

        `progress` gives what changes when the work gets on, which makes the next wait short again.
        `failed` is told each error. Raises `NotFound` once the job is deleted.
        """
        pause = FIRST_PAUSE_S
        while True:
            before = progress()
            try:
                await work()
                return
            except errors.NotFound:
                raise
            except Exception as error:  # supervision: training goes on whatever breaks here
                is_expected = isinstance(error, errors.Unavailable)
                if pause == FIRST_PAUSE_S or not is_expected:
                    text = "job %s cannot be told to %s now: %s"
                    info = None if is_expected else error
                    log.warning(text, self._job.name, self._destination, error, exc_info=info)
                if failed is not None:
                    await failed(error)
            if progress() is not before:
                pause = FIRST_PAUSE_S
            await self._clock.sleep(pause)
            pause = min(2 * pause, self._longest_pause_s)

    async def _gather(self, linger_s: float) -> None:
        """Let a few more events come, unless somebody waits for these."""
        self._hurry.clear()
        try:
            async with asyncio.timeout(linger_s):
                await self._hurry.wait()
        except TimeoutError:
            return
