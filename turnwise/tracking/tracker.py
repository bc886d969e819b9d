"""Which jobs are told to which destinations: a feed for each that a job asks for."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from turnwise import errors
from turnwise.domain.job import Job
from turnwise.ports import Store
from turnwise.tracking.feed import Feed

log = logging.getLogger(__name__)

#: Longest that a reader of MLflow waits for what the event log already holds.
SETTLE_S = 3.0
#: Jobs of an account, ended before the server started, that are told at once to a destination.
LATE_AT_ONCE = 4
_ALL = 10_000


class EventFeed(Protocol):
    """Tells one job's events to one destination."""

    async def run(self) -> None:
        """Until the job has ended and everything is told."""
        ...


class Destination(Protocol):
    """A place outside that jobs are told to."""

    @property
    def name(self) -> str:
        """For the log."""
        ...

    def wants(self, job: Job) -> bool:
        """Whether the job asks for it."""
        ...

    def feed(self, job: Job) -> EventFeed:
        """What tells its events."""
        ...

    async def told(self, job: Job) -> int | None:
        """The newest event that is told, with all before it; None before it knows the job."""
        ...

    async def close(self) -> None:
        """Free what it holds."""
        ...


@dataclass(slots=True)
class _Following:
    account_id: str
    feed: EventFeed
    task: asyncio.Task[None] | None = None
    is_asked_again: bool = False


class Tracker:
    """Feeds of all accounts. Nothing here is waited for by a job."""

    def __init__(self, store: Store, destinations: Sequence[Destination]) -> None:
        self._store = store
        self._destinations = tuple(destinations)
        self._following: dict[tuple[str, str], _Following] = {}  # by destination and job id
        self._late: list[asyncio.Task[None]] = []
        self._is_closed = False

    def follow(self, job: Job) -> None:
        """Tell this job's events from now on, where it asks for it."""
        for destination in self._destinations:
            if destination.wants(job):
                self._follow(destination, job)

    async def recover(self) -> None:
        """Go on with what a former server process had not told yet.

        There may be years of jobs that have ended, and none of them hurries: they are looked
        through beside everything else, and told a few at a time.
        """
        jobs = await self._store.jobs(None, limit=_ALL) if self._destinations else []
        for job in jobs:
            if not job.status.is_final:
                self.follow(job)
        for destination in self._destinations:
            ended: dict[str, list[str]] = {}
            for job in jobs:
                if job.status.is_final and destination.wants(job):
                    ended.setdefault(job.account_id, []).append(job.job_id)
            for account_id, job_ids in ended.items():
                left = iter(job_ids)
                for _ in range(min(LATE_AT_ONCE, len(job_ids))):
                    late = self._tell_late(destination, account_id, left)
                    name = f"late {destination.name} feeds"
                    self._late.append(asyncio.create_task(late, name=name))

    async def settle(self, account_id: str) -> None:
        """Wait until an account's MLflow has what the event log holds now; SETTLE_S at most."""
        waiting = [
            each.feed.told_until_now()
            for each in self._following.values()
            if each.account_id == account_id and isinstance(each.feed, Feed)
        ]
        if waiting:
            try:
                async with asyncio.timeout(SETTLE_S):
                    await asyncio.gather(*waiting, return_exceptions=True)
            except TimeoutError:
                return

    async def close(self) -> None:
        """Stop; the next server process goes on from the cursors."""
        self._is_closed = True
        tasks = [each.task for each in self._following.values() if each.task is not None]
        tasks += self._late
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for destination in self._destinations:
            await destination.close()

    def _follow(self, destination: Destination, job: Job) -> None:
        key = (destination.name, job.job_id)
        if self._is_closed:
            return
        if known := self._following.get(key):
            known.is_asked_again = True  # its feed may be about to end
            return
        following = _Following(job.account_id, destination.feed(job))
        self._following[key] = following
        following.task = asyncio.create_task(
            self._run(key, following), name=f"{destination.name} feed {job.name}"
        )

    async def _run(self, key: tuple[str, str], following: _Following) -> None:
        try:
            while True:
                following.is_asked_again = False
                await following.feed.run()
                if not following.is_asked_again:
                    return
        except Exception:  # supervision: a feed that breaks costs its own job's run
            log.exception("the %s feed of job %s broke", *key)
        finally:
            del self._following[key]

    async def _tell_late(
        self, destination: Destination, account_id: str, job_ids: Iterator[str]
    ) -> None:
        """Tell one after the other of the ended jobs that are left."""
        for job_id in job_ids:
            try:
                job = await self._store.job(account_id, job_id)
                if not await self._is_behind(destination, job):
                    continue
            except errors.NotFound:  # deleted meanwhile
                continue
            self._follow(destination, job)
            following = self._following.get((destination.name, job_id))
            if following and following.task:
                await asyncio.wait([following.task])

    async def _is_behind(self, destination: Destination, job: Job) -> bool:
        """Whether events of an ended job are untold."""
        told = await destination.told(job)
        if told is None:
            return True
        return bool(await self._store.events(job.account_id, job.job_id, after=told, limit=1))
