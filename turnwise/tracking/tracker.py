"""Which jobs are told to MLflow: a feed for each that asks for it, until it has ended."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass

from turnwise import errors
from turnwise.domain.job import Job, JobKind
from turnwise.ports import Clock, Resources, Store
from turnwise.tracking.details import run_state
from turnwise.tracking.feed import Feed
from turnwise.tracking.mlflow import Mlflow

log = logging.getLogger(__name__)

#: Longest that a reader of MLflow waits for what the event log already holds.
SETTLE_S = 3.0
#: Jobs of an account, ended before the server started, that are told at once.
LATE_AT_ONCE = 4
_ALL = 10_000


@dataclass(slots=True)
class _Following:
    feed: Feed
    task: asyncio.Task[None] | None = None
    is_asked_again: bool = False


class Tracker:
    """Feeds of all accounts. Nothing here is waited for by a job."""

    def __init__(
        self,
        *,
        store: Store,
        resources: Resources,
        address: Callable[[str], Awaitable[str]],
        clock: Clock,
        largest_step: Callable[[Job], Awaitable[int]],
        traces_per_step: int,
        is_on: bool,
    ) -> None:
        """`address` gives the socket of an account's MLflow; `largest_step` how many rollouts a
        job makes in its largest step, validation included (0: unknown).
        """
        self._store = store
        self._resources = resources
        self._address = address
        self._clock = clock
        self._largest_step = largest_step
        self._traces_per_step = traces_per_step
        self._is_on = is_on
        self._following: dict[str, _Following] = {}  # by job id
        self._clients: dict[str, Mlflow] = {}  # by account
        self._late: list[asyncio.Task[None]] = []

    def follow(self, job: Job) -> None:
        """Tell this job's events from now on, if it asks for it."""
        if not self._is_on or not job.spec.tracking.mlflow:
            return
        if known := self._following.get(job.job_id):
            known.is_asked_again = True  # its feed may be about to end
            return
        feed = Feed(
            job,
            store=self._store,
            resources=self._resources,
            mlflow=self._client(job.account_id),
            clock=self._clock,
            share=self._share,
        )
        following = self._following[job.job_id] = _Following(feed)
        following.task = asyncio.create_task(
            self._run(job.job_id, following), name=f"mlflow feed {job.name}"
        )

    async def recover(self) -> None:
        """Go on with what a former server process had not told yet.

        There may be years of jobs that have ended, and none of them hurries: they are looked
        through beside everything else, and told a few at a time.
        """
        if not self._is_on:
            return
        ended: dict[str, list[str]] = {}
        for job in await self._store.jobs(None, limit=_ALL):
            if job.spec.tracking.mlflow and not job.status.is_final:
                self.follow(job)
            elif job.spec.tracking.mlflow:
                ended.setdefault(job.account_id, []).append(job.job_id)
        for account_id, job_ids in ended.items():
            left = iter(job_ids)
            for _ in range(min(LATE_AT_ONCE, len(job_ids))):
                late = self._tell_late(account_id, left)
                self._late.append(asyncio.create_task(late, name="late mlflow feeds"))

    async def settle(self, account_id: str) -> None:
        """Wait until an account's runs have what the event log holds now; SETTLE_S at most."""
        feeds = [each.feed for each in self._following.values()]
        waiting = [feed.told_until_now() for feed in feeds if feed.account_id == account_id]
        if waiting:
            try:
                async with asyncio.timeout(SETTLE_S):
                    await asyncio.gather(*waiting, return_exceptions=True)
            except TimeoutError:
                return

    async def close(self) -> None:
        """Stop; the next server process goes on from the cursors."""
        self._is_on = False
        tasks = [each.task for each in self._following.values() if each.task is not None]
        tasks += self._late
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for client in self._clients.values():
            await client.close()

    async def _run(self, job_id: str, following: _Following) -> None:
        try:
            while True:
                following.is_asked_again = False
                await following.feed.run()
                if not following.is_asked_again:
                    return
        except Exception:  # supervision: a feed that breaks costs its own job's run
            log.exception("the MLflow feed of job %s broke", job_id)
        finally:
            del self._following[job_id]

    async def _tell_late(self, account_id: str, job_ids: Iterator[str]) -> None:
        """Tell one after the other of the ended jobs that are left."""
        for job_id in job_ids:
            try:
                job = await self._store.job(account_id, job_id)
                if not await self._is_behind(job):
                    continue
            except errors.NotFound:  # deleted meanwhile
                continue
            self.follow(job)
            if (following := self._following.get(job_id)) and following.task:
                await asyncio.wait([following.task])

    async def _is_behind(self, job: Job) -> bool:
        """Whether events of an ended job are untold."""
        state = await run_state(self._resources, job.account_id, job.job_id)
        if state is None:
            return True
        after = min(state.told, state.traced)
        return bool(await self._store.events(job.account_id, job.job_id, after=after, limit=1))

    def _client(self, account_id: str) -> Mlflow:
        if account_id not in self._clients:
            self._clients[account_id] = Mlflow(lambda: self._address(account_id))
        return self._clients[account_id]

    async def _share(self, job: Job) -> float:
        """The part of a job's rollouts that are traced, so that no step has too many."""
        largest = await self._largest_step(job)
        if job.spec.kind is JobKind.TRAIN:
            largest = max(largest, job.spec.batch.global_batch_size * job.spec.batch.group_size)
        return min(1.0, self._traces_per_step / largest) if largest else 1.0
