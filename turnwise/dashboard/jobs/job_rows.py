"""The rows of the list of jobs: what the store says of each, and how far it is."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote, urlencode

from turnwise import errors
from turnwise.dashboard.jobs.progress import Done, Progress, done, ends_at, sparkline
from turnwise.dashboard.rooms import DashboardRooms
from turnwise.domain.access import Action, Principal
from turnwise.domain.event import EventKind
from turnwise.domain.job import JobKind, JobStatus
from turnwise.ports import JobQuery, JobSummary

Choice = TypeVar("Choice", bound=StrEnum)
Known = TypeVar("Known")

PAGE = 50
#: Jobs whose progress and door are remembered; others are read from their first event again.
_REMEMBERED = 1000
#: A job says what it plans among its first log lines.
_FIRST_LINES = 50

_RESUMABLE = (JobStatus.STOPPED, JobStatus.FAILED)


class Shown(StrEnum):
    """The states that the list is filtered by; two of them hold one that is short-lived or rare."""

    PENDING = "PENDING"
    RUNNING = "RUNNING"
    CANCELLING = "CANCELLING"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"

    @property
    def label(self) -> str:
        """With the other states that it holds."""
        also = {Shown.RUNNING: " or VALIDATING", Shown.COMPLETED: " or EARLY_STOPPED"}
        return self.value + also.get(self, "")


_STATUS = {
    Shown.PENDING: JobStatus.PENDING,
    Shown.RUNNING: JobStatus.RUNNING,
    Shown.CANCELLING: JobStatus.STOPPING,
    Shown.COMPLETED: JobStatus.COMPLETED,
    Shown.FAILED: JobStatus.FAILED,
    Shown.CANCELLED: JobStatus.STOPPED,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class JobFilter:
    """Which jobs a page of the list shows: the query of its address.

    >>> JobFilter(state=Shown.FAILED, name="walk").address("/dashboard", after=7)
    '/dashboard?state=FAILED&name=walk&after=7'
    """

    state: Shown | None = None
    kind: JobKind | None = None
    name: str = ""
    after: int | None = None  # a job's seq: the page begins with the one before it

    @classmethod
    def read(cls, query: Mapping[str, str]) -> JobFilter:
        """From a query, in which an empty value is none. Raises `InvalidInput`."""
        state, kind, after = (query.get(name, "") for name in ("state", "kind", "after"))
        return cls(
            state=_choice("state", state, Shown) if state else None,
            kind=_choice("kind", kind, JobKind) if kind else None,
            name=query.get("name", "").strip(),
            after=_place(after) if after else None,
        )

    @property
    def is_narrow(self) -> bool:
        """Whether it leaves jobs out, by more than the page."""
        return bool(self.state or self.kind or self.name)

    def address(self, path: str, *, after: int | None = None) -> str:
        """The address of such a page."""
        named = {"state": self.state, "kind": self.kind, "name": self.name, "after": after}
        query = urlencode({name: value for name, value in named.items() if value})
        return f"{path}?{query}" if query else path

    def query(self, account_id: str) -> JobQuery:
        """What the store is asked: one more than is shown, which tells whether there are more."""
        return JobQuery(
            account_id=account_id,
            statuses=(_STATUS[self.state],) if self.state else (),
            kind=self.kind,
            name=self.name,
            after=self.after,
            limit=PAGE + 1,
        )


def _choice(field: str, text: str, kind: type[Choice]) -> Choice:
    try:
        return kind(text)
    except ValueError:
        allowed = ", ".join(kind)
        raise errors.InvalidInput(
            field, text, "is not a choice", remedy=f"allowed: {allowed}"
        ) from None


def _place(text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 18:
        remedy = "take one from the page before, or leave it out for the first page"
        raise errors.InvalidInput("after", text, "is no place in the list", remedy=remedy)
    return int(text)


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRow:
    """A job in the list. Times are seconds since the epoch."""

    job: JobSummary
    address: str
    words: str  # another door's for its state, with that door's name; empty: it came by none
    done: Done
    epoch: int | None  # from 1
    ahead: int | None
    reward: float | None
    spark: str  # the path of an SVG
    ends_at: float | None  # by the estimate
    base: str
    output: str  # a registered model, "group/version"
    may_manage: bool

    @property
    def unit(self) -> str:
        """What is counted."""
        return "step" if self.job.kind is JobKind.TRAIN else "rollout"

    @property
    def may_stop(self) -> bool:
        """Whether there is a button for it."""
        is_going = not self.job.status.is_final and self.job.status is not JobStatus.STOPPING
        return self.may_manage and is_going

    @property
    def may_resume(self) -> bool:
        """Whether there is a button for it."""
        return self.may_manage and self.job.status in _RESUMABLE

    @property
    def may_delete(self) -> bool:
        """Whether there is a button for it."""
        return self.may_manage and self.job.status.is_final


@dataclass(frozen=True, slots=True, kw_only=True)
class JobPage:
    """Rows, newest first; `next` is where to go on, None at the end."""

    rows: tuple[JobRow, ...]
    next: int | None


def job_address(name: str, job_id: str) -> str:
    """A job's page. One that has the name of a page is found by its id."""
    return f"/dashboard/jobs/{quote(job_id if name == 'new' else name)}"


class JobRows:
    """Makes rows, and remembers what events have said so that each is read once."""

    def __init__(self, rooms: DashboardRooms) -> None:
        self._rooms = rooms
        self._progress: OrderedDict[str, Progress] = OrderedDict()
        self._door: OrderedDict[str, str | None] = OrderedDict()

    async def page(self, who: Principal, wanted: JobFilter) -> JobPage:
        """A page of the jobs that a key may see."""
        found = await self.glance(who, wanted)
        shown = found[:PAGE]
        ahead = await self.ahead(who, shown)
        rows = await asyncio.gather(*(self._row(who, job, ahead.get(job.job_id)) for job in shown))
        return JobPage(rows=tuple(rows), next=shown[-1].seq if len(found) > PAGE else None)

    async def glance(self, who: Principal, wanted: JobFilter) -> list[JobSummary]:
        """One query; its answer is another one as soon as any row is."""
        return await self._rooms.browse.job_page(who, wanted.query(who.account_id))

    async def ahead(self, who: Principal, shown: list[JobSummary]) -> Mapping[str, int]:
        """Places in the queue, if any of these waits."""
        if all(job.status is not JobStatus.PENDING for job in shown):
            return {}
        return await self._rooms.jobs.ahead(who)

    async def _row(self, who: Principal, job: JobSummary, ahead: int | None) -> JobRow:
        progress = await self._so_far(who, job)
        its = done(
            progress,
            kind=job.kind,
            status=job.status,
            step=job.step,
            max_steps=job.max_steps,
            ended=await self._ended(who, job),
        )
        is_running = job.status is JobStatus.RUNNING
        now = self._rooms.clock.now()
        return JobRow(
            job=job,
            address=job_address(job.name, job.job_id),
            words=await self._words(job),
            done=its,
            epoch=None if progress.epoch is None else progress.epoch + 1,
            ahead=ahead,
            reward=progress.latest_reward,
            spark=sparkline(progress.rewards),
            ends_at=ends_at(progress, its, kind=job.kind, now=now) if is_running else None,
            base=Path(job.model).name,
            output=job.output,
            may_manage=who.allows(Action.MANAGE, job_id=job.job_id),
        )

    async def _so_far(self, who: Principal, job: JobSummary) -> Progress:
        progress = self._progress.get(job.job_id, Progress())
        if progress.seq >= job.last_event:
            return progress
        browse, last = self._rooms.browse, progress.seq
        # Up to what the row shows: all of that is written, so nothing is passed over.
        if not progress.steps and not progress.rollouts:
            lines = await browse.events(who, job.job_id, kinds=[EventKind.LOG], limit=_FIRST_LINES)
            progress = progress.after(lines)
        told = await browse.metrics_since(who, job.job_id, last)
        moves = await browse.events(who, job.job_id, after=last, kinds=[EventKind.STATUS])
        new = [event for event in (*told, *moves) if event.seq <= job.last_event]
        in_order = sorted(new, key=lambda event: event.seq)
        progress = replace(progress.after(in_order), seq=job.last_event)
        return _remember(self._progress, job.job_id, progress)

    async def _ended(self, who: Principal, job: JobSummary) -> int:
        """Rollouts of an evaluation that have ended; of one that is complete, nobody asks."""
        if job.kind is JobKind.TRAIN or job.status is JobStatus.COMPLETED:
            return 0
        tally = await self._rooms.browse.tally(who, job.job_id)
        return sum(each.count for each in tally if not each.status.is_open)

    async def _words(self, job: JobSummary) -> str:
        """What the door that it came by calls its state."""
        if job.job_id not in self._door:
            _remember(self._door, job.job_id, await self._find_door(job))
        name = self._door[job.job_id]
        for door in self._rooms.other_doors:
            if door.name == name:
                return f"{name}: {door.words(job.kind, job.status, job.secondary)}"
        return ""

    async def _find_door(self, job: JobSummary) -> str | None:
        for door in self._rooms.other_doors:
            try:
                record = await self._rooms.resources.resource(job.account_id, door.kind, job.name)
            except errors.NotFound:
                continue
            if record.body.get("job_id", job.job_id) == job.job_id:
                return door.name
        return None


def _remember(known: OrderedDict[str, Known], key: str, value: Known) -> Known:
    known[key] = value
    known.move_to_end(key)
    while len(known) > _REMEMBERED:
        known.popitem(last=False)
    return value
