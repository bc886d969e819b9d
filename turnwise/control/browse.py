"""Reading what was recorded: events, metrics, rollouts, models. Each call requires a principal."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace

from turnwise import errors
from turnwise.domain.access import Action, Principal
from turnwise.domain.event import Event, EventKind
from turnwise.domain.job import Job
from turnwise.domain.ledger import TokenUsage
from turnwise.domain.rollout import Purpose, Trajectory
from turnwise.ports import ModelPackage, RolloutQuery, RolloutSummary, Store

#: Events are read in pages of this many.
PAGE = 1000


@dataclass(frozen=True, slots=True)
class Point:
    """A metric's value at a step; `seq` is the event that carries it."""

    seq: int
    step: int
    value: float


class Browse:
    """Queries over one store."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def events(
        self,
        principal: Principal,
        id_or_name: str,
        *,
        after: int = 0,
        kinds: Sequence[EventKind] = (),
        limit: int = PAGE,
        wait_s: float = 0.0,
    ) -> list[Event]:
        """Events past `after`; with `wait_s`, wait that long for the first one."""
        job = await self._job(principal, id_or_name)
        found = await self._store.events(
            job.account_id, job.job_id, after=after, kinds=kinds, limit=limit
        )
        if found or wait_s <= 0:
            return found
        try:
            async with asyncio.timeout(wait_s):
                return await self._next_events(job, after, kinds, limit)
        except TimeoutError:
            return []

    async def _next_events(
        self, job: Job, after: int, kinds: Sequence[EventKind], limit: int
    ) -> list[Event]:
        """The first events of these kinds past `after`; events of other kinds are passed over."""
        while True:
            await self._store.wait_for(job.account_id, job.job_id, after=after)
            page = await self._store.events(job.account_id, job.job_id, after=after, limit=PAGE)
            if found := [event for event in page if not kinds or event.kind in kinds]:
                return found[:limit]
            after = page[-1].seq

    async def metrics(
        self, principal: Principal, id_or_name: str, *, names: Sequence[str] = ()
    ) -> dict[str, list[Point]]:
        """Every metric's curve, or those whose name starts with one of `names`.

        After a resume a step may have been recorded twice; the later record stands.
        """
        curves: dict[str, dict[int, Point]] = {}
        after = 0
        while page := await self.events(
            principal, id_or_name, after=after, kinds=[EventKind.METRICS]
        ):
            after = page[-1].seq
            for event in page:
                step = int(event.body["step"])
                for name, value in event.body["values"].items():
                    if not names or name.startswith(tuple(names)):
                        point = Point(seq=event.seq, step=step, value=float(value))
                        curves.setdefault(name, {})[step] = point
        return {
            name: [curve[step] for step in sorted(curve)] for name, curve in sorted(curves.items())
        }

    async def ledger(self, principal: Principal, id_or_name: str) -> dict[int, dict[str, int]]:
        """Sampled tokens per bin, for each finished step; all of them once the job has ended."""
        job = await self._job(principal, id_or_name)
        return await self._store.ledger(job.account_id, job.job_id)

    async def usage(self, principal: Principal, id_or_name: str) -> TokenUsage:
        """What a job cost so far, in tokens."""
        job = await self._job(principal, id_or_name)
        return await self._store.usage(job.account_id, job.job_id)

    async def rollouts(self, principal: Principal, query: RolloutQuery) -> list[RolloutSummary]:
        """A page of a job's rollouts."""
        job = await self._job(principal, query.job_id)
        return await self._store.rollouts(job.account_id, replace(query, job_id=job.job_id))

    async def trajectory(self, principal: Principal, rollout_id: str) -> Trajectory:
        """One rollout with its graph and turns."""
        found = await self._store.trajectory(principal.account_id, rollout_id)
        principal.require(Action.READ, job_id=found.rollout.job_id)
        return found

    async def packages(
        self, principal: Principal, *, group: str | None = None
    ) -> list[ModelPackage]:
        """Registered models, oldest first."""
        principal.require(Action.READ)
        found = await self._store.packages(principal.account_id, group=group)
        return [each for each in found if principal.allows(Action.READ, job_id=each.job_id)]

    async def package(self, principal: Principal, id_or_name: str) -> ModelPackage:
        """A package by id, "group/version", or "group" for its newest version."""
        try:
            found = await self._store.package(principal.account_id, id_or_name)
        except errors.NotFound:
            remedy = "`turnwise models list` shows what is registered"
            raise errors.NotFound("model", id_or_name, remedy=remedy) from None
        principal.require(Action.READ, job_id=found.job_id)
        return found

    async def newest_packages(self, principal: Principal, job: Job) -> list[ModelPackage]:
        """The newest adapter and the newest checkpoint that a job registered, if it did."""
        principal.require(Action.READ, job_id=job.job_id)
        return await self._store.newest_packages(job.account_id, job.job_id)

    async def validation(self, package: ModelPackage) -> dict[str, float]:
        """What its job's validation measured of a package, which is after it was registered.

        Empty where there was none, or the job has been deleted.
        """
        kinds = [EventKind.EVALUATION]
        try:
            found = await self._store.events(package.account_id, package.job_id, kinds=kinds)
        except errors.NotFound:
            return {}
        its = [event.body for event in found if event.body["step"] == package.step + 1]
        values = [dict(body["values"]) for body in its if body["purpose"] == Purpose.VALIDATION]
        return values[-1] if values else {}

    async def _job(self, principal: Principal, id_or_name: str) -> Job:
        job = await self._store.job(principal.account_id, id_or_name)
        principal.require(Action.READ, job_id=job.job_id)
        return job
