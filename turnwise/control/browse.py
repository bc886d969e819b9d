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
from turnwise.ports import (
    Excerpt,
    Histogram,
    JobQuery,
    JobSummary,
    LogQuery,
    ModelPackage,
    RolloutCursor,
    RolloutQuery,
    RolloutSummary,
    Store,
    Tally,
)

#: Events are read in pages of this many.
PAGE = 1000


@dataclass(frozen=True, slots=True)
class Point:
    """A metric's value at a step; `seq` is the event that carries it."""

    seq: int
    step: int
    value: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutRow:
    """A rollout in a list, with the beginnings of what was asked and replied."""

    summary: RolloutSummary
    excerpt: Excerpt


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutPage:
    """Rows in the order asked for; `next` is where to go on, None at the end."""

    rows: tuple[RolloutRow, ...]
    next: RolloutCursor | None


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
        for event in await self.metrics_since(principal, id_or_name):
            step = int(event.body["step"])
            for name, value in event.body["values"].items():
                is_wanted = not names or name.startswith(tuple(names))
                if is_wanted and value is not None:  # else it was not finite
                    point = Point(seq=event.seq, step=step, value=float(value))
                    curves.setdefault(name, {})[step] = point
        return {
            name: [curve[step] for step in sorted(curve)] for name, curve in sorted(curves.items())
        }

    async def last_event(self, principal: Principal, id_or_name: str) -> int:
        """The newest event's seq."""
        job = await self._job(principal, id_or_name)
        return await self._store.last_event(job.account_id, job.job_id)

    async def wait(self, principal: Principal, id_or_name: str, *, after: int) -> None:
        """Return once the job has an event past `after`. Raises `NotFound` once it is deleted."""
        job = await self._job(principal, id_or_name)
        await self._store.wait_for(job.account_id, job.job_id, after=after)

    async def epochs(self, principal: Principal, id_or_name: str) -> dict[str, int]:
        """The epoch of each of a job's groups, by group id."""
        job = await self._job(principal, id_or_name)
        groups = await self._store.groups(job.account_id, job.job_id)
        return {group.group_id: group.epoch for group in groups}

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

    async def rollout_page(self, principal: Principal, query: RolloutQuery) -> RolloutPage:
        """A page of a job's rollouts, with excerpts."""
        job = await self._job(principal, query.job_id)
        one_more = replace(query, job_id=job.job_id, limit=query.limit + 1)
        found = await self._store.rollouts(job.account_id, one_more)
        shown = found[: query.limit]
        is_last = len(found) <= query.limit or not shown
        return RolloutPage(
            rows=await self._with_excerpts(job.account_id, shown),
            next=None if is_last else shown[-1].cursor(query.sort),
        )

    async def _with_excerpts(
        self, account_id: str, shown: Sequence[RolloutSummary]
    ) -> tuple[RolloutRow, ...]:
        ids = [summary.rollout.rollout_id for summary in shown]
        excerpts = await self._store.rollout_excerpts(account_id, ids)
        return tuple(
            RolloutRow(summary=summary, excerpt=excerpts.get(rollout_id, Excerpt()))
            for rollout_id, summary in zip(ids, shown, strict=True)
        )

    async def histogram(
        self, principal: Principal, query: RolloutQuery, bins: int = 20
    ) -> Histogram:
        """How the rewards of what a query's filters let through are spread."""
        job = await self._job(principal, query.job_id)
        its = replace(query, job_id=job.job_id)
        return await self._store.reward_histogram(job.account_id, its, bins)

    async def tally(self, principal: Principal, id_or_name: str) -> list[Tally]:
        """How many of a job's rollouts there are by step, purpose, status and fault."""
        job = await self._job(principal, id_or_name)
        return await self._store.rollout_tally(job.account_id, job.job_id)

    async def random_rollouts(
        self,
        principal: Principal,
        id_or_name: str,
        step: int,
        purpose: Purpose,
        count: int = 10,
        seed: int = 0,
        *,
        is_trained: bool = False,
    ) -> tuple[RolloutRow, ...]:
        """Some rollouts of a step that have ended, with excerpts; the same ones for a seed."""
        job = await self._job(principal, id_or_name)
        found = await self._store.random_rollouts(
            job.account_id, job.job_id, step, purpose, count, seed, is_trained=is_trained
        )
        return await self._with_excerpts(job.account_id, found)

    async def group(self, principal: Principal, group_id: str) -> list[Trajectory]:
        """A group's attempts, by (slot, attempt). Raises `NotFound` where there are none."""
        found = await self._store.group_trajectories(principal.account_id, group_id)
        if not found:
            raise errors.NotFound("group", group_id)
        principal.require(Action.READ, job_id=found[0].rollout.job_id)
        return found

    async def job_page(self, principal: Principal, query: JobQuery) -> list[JobSummary]:
        """A page of the jobs that a principal may see, newest first."""
        return await self._store.job_page(visible(principal, query))

    async def log_events(self, principal: Principal, query: LogQuery) -> list[Event]:
        """A page of a job's log."""
        job = await self._job(principal, query.job_id)
        return await self._store.log_events(job.account_id, replace(query, job_id=job.job_id))

    async def metrics_since(
        self, principal: Principal, id_or_name: str, after: int = 0
    ) -> list[Event]:
        """The METRICS events past one of a number, all of them."""
        job = await self._job(principal, id_or_name)
        return await self._store.metrics_since(job.account_id, job.job_id, after)

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


def visible(principal: Principal, query: JobQuery) -> JobQuery:
    """The query, of the principal's account and of no other jobs than it may see."""
    principal.require(Action.READ)
    of_account = replace(query, account_id=principal.account_id)
    if principal.job_ids is None:
        return of_account
    wanted = principal.job_ids if query.job_ids is None else principal.job_ids & query.job_ids
    return replace(of_account, job_ids=wanted)
