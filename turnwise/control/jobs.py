"""Jobs: create, watch, stop, resume, delete; and the queue that decides which run.

    create -> PENDING --place free--> RUNNING --loop--> COMPLETED | STOPPED | FAILED
                 ^                                                   |         |
                 +----------------------- resume --------------------+---------+

A server that ends leaves its jobs as they are; `recover` continues them when it starts again.
The queue is one for all accounts; `control.queue` says who is next.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Sequence
from pathlib import Path
from typing import Protocol

from turnwise import errors
from turnwise.control.agents import Agents
from turnwise.control.datasets import prompt_column_of
from turnwise.control.evaluated import with_models
from turnwise.control.job_data import JobData, load_job_rows
from turnwise.control.lineage import Beginning, Lineage
from turnwise.control.models.groups import check_groups
from turnwise.control.notes import NOTES
from turnwise.control.queue import Limits, check_quota, in_order, startable
from turnwise.control.reach import IsBase, adapter_folders, check_base, check_reach
from turnwise.domain.access import Action, Principal
from turnwise.domain.event import EventDraft, EventKind, Level
from turnwise.domain.job import AgentKind, Job, JobKind, JobSpec, JobStatus, Secondary
from turnwise.domain.resource import Resource
from turnwise.ports import Clock, JobQuery, NewId, Store

log = logging.getLogger(__name__)


class Running(Protocol):
    """A job's loop, as control sees it."""

    async def run(self) -> None:
        """Until the job is final. Records its own status events."""
        ...

    def request_stop(self) -> None:
        """End soon, as STOPPED."""
        ...


#: Wait between two tries to record a job's failure while the disk is full.
RECORD_AGAIN_S = 1.0

#: More jobs than a server ever has waiting or running.
MAX_JOBS = 10_000

#: Builds engine, learner and loop for a job. Given by `turnwise.app`.
Start = Callable[[Job], Awaitable[Running]]

#: Raises `InvalidInput` for an evaluator, by account and id, that no job can be made of.
CheckEvaluator = Callable[[str, str], Awaitable[None]]

#: The records, by kind and name, that a door keeps of a job.
RecordsOf = Callable[[Job], Awaitable[Collection[tuple[str, str]]]]


def status_event(
    status: JobStatus, secondary: Secondary, message: str = "", *, level: Level = Level.INFO
) -> EventDraft:
    """The event that moves a job."""
    body = {"status": status.value, "secondary": secondary.value, "message": message}
    return EventDraft(kind=EventKind.STATUS, body=body, level=level)


@dataclasses.dataclass(slots=True)
class _Place:
    """A place of the server that a job holds; `loop` is None while it starts."""

    account_id: str
    loop: Running | None = None
    is_stopping: bool = False

    def stop(self) -> None:
        self.is_stopping = True
        if self.loop is not None:
            self.loop.request_stop()


class Jobs:
    """The control plane's jobs. Every call requires a principal with the right."""

    def __init__(
        self,
        *,
        store: Store,
        agents: Agents,
        clock: Clock,
        new_id: NewId,
        start: Start,
        limits: Limits,
        data: JobData | None = None,
        is_base: IsBase | None = None,
        check_evaluator: CheckEvaluator | None = None,
    ) -> None:
        """`is_base` says which folders are base models that any account may name; None: all.

        Without `check_evaluator` an evaluator is first looked for when the job starts.
        """
        self._store = store
        self._agents = agents
        self._clock = clock
        self._new_id = new_id
        self._start = start
        self._limits = limits
        self._data = data or JobData()
        self._is_base = is_base
        self._check_evaluator = check_evaluator
        self._lineage = Lineage(store, self._data)
        self._places: dict[str, _Place] = {}  # by job id
        self._tasks: set[asyncio.Task[None]] = set()
        self._moving = asyncio.Lock()  # held from a look at a job's status to the move it allows
        self._is_closed = False
        self._records_of: list[RecordsOf] = []  # of each door

    def plug(self, records_of: RecordsOf) -> None:
        """Say which records a door keeps of a job; whoever deletes the job deletes them too."""
        self._records_of.append(records_of)

    async def create(
        self,
        principal: Principal,
        spec: JobSpec,
        *,
        within_quota: bool = False,
        reads_rows: bool = True,
        records: Callable[[Job], Sequence[Resource]] = lambda job: (),
        warning: str = "",
    ) -> Job:
        """Check a spec, store the job and run it when there is a place.

        `records` of the job are stored with it: after a crash there are both or neither.

        `warning` is what the job's log begins with: what was asked for and will not happen.

        `within_quota` refuses, as `check_quota` does, a job that the account has no room for; of
        calls at the same moment, no more pass than there is room.

        Without `reads_rows` the rows are first read when the job starts, which then fails by itself
        where they are not what it needs; its `prompt_column` must be set.

        Raises `InvalidInput` for a dataset, model, evaluator, adapter or checkpoint that cannot be
        used,
        `Denied` for what only the operator's account may name (`control.reach`),
        `NotFound` for an agent's name that is not registered,
        `Conflict` if the name is taken or what to start from was pruned.
        """
        principal.require(Action.MANAGE)
        if principal.job_ids is not None:
            raise errors.Denied("this key is for certain jobs; it may not create one")
        begin = await self._checked(principal, spec, reads_rows=reads_rows)
        job = Job(
            job_id=self._new_id("job"),
            account_id=principal.account_id,
            name=spec.name,
            spec=begin.spec,
            step=begin.step,
            created_at=self._clock.now(),
            inputs=begin.inputs,
            parent=begin.parent,
        )
        async with self._moving:
            # A name that is taken is refused as that: whoever repeats a call must learn it.
            if within_quota and not await self._exists(principal, spec.name):
                await self._require_room(principal, spec.kind)
            await self._store.create_job(job, records(job))
            await self._move(job, JobStatus.PENDING, Secondary.PENDING)
            if warning:
                await self._warn(job, warning)
        await self._fill_places()
        return await self.describe(principal, job.job_id)

    async def check_quota(self, principal: Principal, kind: JobKind) -> None:
        """Raise `LimitExceeded` where the account's quota has no room for one more job of `kind`.

        For a look ahead; `create(within_quota=True)` looks and creates in one step.
        """
        principal.require(Action.MANAGE)
        async with self._moving:
            await self._require_room(principal, kind)

    async def describe(self, principal: Principal, id_or_name: str) -> Job:
        """One job; a waiting one says how many are ahead of it."""
        job = await self._find(principal, Action.READ, id_or_name)
        return (await self._with_places([job]))[0]

    async def list(
        self, principal: Principal, *, status: JobStatus | None = None, limit: int = 100
    ) -> Sequence[Job]:
        """Newest first."""
        principal.require(Action.READ)
        found = await self._store.jobs(principal.account_id, status=status, limit=limit)
        return await self._with_places(
            [job for job in found if principal.allows(Action.READ, job_id=job.job_id)]
        )

    async def ahead(self, principal: Principal) -> dict[str, int]:
        """How many get a place before each of the account's waiting jobs, by job id."""
        principal.require(Action.READ)
        waiting = in_order(await self._all(JobStatus.PENDING), self._held())
        return {
            job.job_id: number
            for number, job in enumerate(waiting)
            if job.account_id == principal.account_id
            and principal.allows(Action.READ, job_id=job.job_id)
        }

    async def stop(self, principal: Principal, id_or_name: str) -> Job:
        """Ask a job to end. The step under way is dropped; the one before is the job's output.

        Its checkpoint stays; `resume` continues from it.
        """
        async with self._moving:
            job = await self._find(principal, Action.MANAGE, id_or_name)
            if job.status is JobStatus.PENDING:
                await self._move(job, JobStatus.STOPPED, Secondary.STOPPED)
            elif job.status is not JobStatus.STOPPING:
                # The loop first: once the job is STOPPING, it may not record another phase.
                if place := self._places.get(job.job_id):
                    place.stop()
                await self._move(job, JobStatus.STOPPING, Secondary.STOPPING)
        return await self.describe(principal, job.job_id)

    async def resume(self, principal: Principal, id_or_name: str) -> Job:
        """Continue a STOPPED or FAILED job from its last checkpoint.

        Raises `Conflict` when it has not ended, or its base model or data have changed since.
        """
        job = await self._find(principal, Action.MANAGE, id_or_name)
        if job.status.is_final and job.inputs is not None:
            await self._lineage.with_inputs(job)
        async with self._moving:
            job = await self._find(principal, Action.MANAGE, id_or_name)
            if not job.status.is_final:
                raise errors.Conflict(f"job {job.name!r} is {job.status.value}; stop it first")
            await self._move(job, JobStatus.PENDING, Secondary.PENDING)
        await self._fill_places()
        return await self.describe(principal, job.job_id)

    async def delete(self, principal: Principal, id_or_name: str) -> Job:
        """Remove a job that has ended, with its events and rollouts. The job as it was.

        Every step has registered its adapter and checkpoint as models. These stay, and so do
        their files, which other jobs may start from.
        """
        async with self._moving:
            job = await self._find(principal, Action.MANAGE, id_or_name)
            if not job.status.is_final:
                raise errors.Conflict(
                    f"job {job.name!r} is {job.status.value} and cannot be deleted; stop it first"
                )
            records = [each for records_of in self._records_of for each in await records_of(job)]
            about = [*records, (NOTES, job.job_id)]
            await self._store.delete_job(principal.account_id, job.job_id, about)
        return job

    async def recover(self) -> None:
        """Continue what a former server process left running, then fill free places."""
        for job in await self._all(JobStatus.STOPPING):
            await self._move(job, JobStatus.STOPPED, Secondary.STOPPED)
        for job in await self._all(JobStatus.RUNNING):
            log.info("continuing job %s after a restart", job.name)
            await self._move(job, JobStatus.RUNNING, Secondary.RESTARTING)
            self._launch(job)
        await self._fill_places()

    async def close(self) -> None:
        """End the loops without ending the jobs: the next server process continues them."""
        self._is_closed = True
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _find(self, principal: Principal, action: Action, id_or_name: str) -> Job:
        job = await self._store.job(principal.account_id, id_or_name)
        principal.require(action, job_id=job.job_id)
        return job

    async def _exists(self, principal: Principal, name: str) -> bool:
        try:
            await self._store.job(principal.account_id, name)
        except errors.NotFound:
            return False
        return True

    async def _require_room(self, principal: Principal, kind: JobKind) -> None:
        unfinished = JobQuery(
            account_id=principal.account_id,
            statuses=tuple(status for status in JobStatus if not status.is_final),
            kind=kind,
            limit=MAX_JOBS,
        )
        check_quota(await self._store.job_page(unfinished), kind, self._limits)

    async def _all(self, status: JobStatus) -> Sequence[Job]:
        """All accounts' jobs of that status, oldest first."""
        return (await self._store.jobs(None, status=status, limit=MAX_JOBS))[::-1]

    async def _fill_places(self) -> None:
        async with self._moving:
            waiting = [
                job
                for job in await self._all(JobStatus.PENDING)
                if job.job_id not in self._places  # resumed before its last run was cleaned up
            ]
            for job in startable(waiting, self._held(), self._limits):
                if self._is_closed:
                    return
                await self._move(job, JobStatus.RUNNING, Secondary.STARTING)
                self._launch(job)

    def _held(self) -> Counter[str]:
        """Places in use, by account."""
        return Counter(place.account_id for place in self._places.values())

    def _launch(self, job: Job) -> None:
        place = self._places[job.job_id] = _Place(job.account_id)
        task = asyncio.create_task(self._run(job, place), name=f"job {job.name}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _run(self, job: Job, place: _Place) -> None:
        """One incarnation, and then the next job's turn."""
        try:
            place.loop = await self._start(await self._lineage.with_inputs(job))
            if place.is_stopping:
                place.loop.request_stop()
            await place.loop.run()
        except Exception as error:  # supervision: whatever broke, the job says so
            await self._fail(job, error)
        finally:
            del self._places[job.job_id]
        await self._fill_places()

    async def _fail(self, job: Job, error: Exception) -> None:
        """Record why a job failed; on a full disk, as soon as there is room again."""
        is_expected = isinstance(error, errors.TurnwiseError)
        log.error("job %s broke: %s", job.name, error, exc_info=None if is_expected else error)
        message = str(error) if is_expected else f"{type(error).__name__}: {error}"
        while True:
            try:
                await self._record_failure(job, message)
                return
            except errors.StorageFull:
                await self._clock.sleep(RECORD_AGAIN_S)

    async def _record_failure(self, job: Job, message: str) -> None:
        job = await self._store.job(job.account_id, job.job_id)
        if not job.status.is_final:
            await self._move(job, JobStatus.FAILED, Secondary.FAILED, message, level=Level.ERROR)

    async def _move(
        self,
        job: Job,
        status: JobStatus,
        secondary: Secondary,
        message: str = "",
        *,
        level: Level = Level.INFO,
    ) -> None:
        event = status_event(status, secondary, message, level=level)
        await self._store.append(job.account_id, job.job_id, [event])

    async def _warn(self, job: Job, message: str) -> None:
        event = EventDraft(kind=EventKind.LOG, body={"message": message}, level=Level.WARNING)
        await self._store.append(job.account_id, job.job_id, [event])

    async def _with_places(self, jobs: Sequence[Job]) -> Sequence[Job]:
        """The jobs, waiting ones with a message that says what they wait for."""
        if all(job.status is not JobStatus.PENDING for job in jobs):
            return jobs
        query = JobQuery(account_id=None, statuses=(JobStatus.PENDING,), limit=MAX_JOBS)
        oldest_first = (await self._store.job_page(query))[::-1]
        waiting = in_order(oldest_first, self._held())
        ahead = {job.job_id: number for number, job in enumerate(waiting)}
        return [
            self._waiting(job, ahead[job.job_id]) if job.job_id in ahead else job for job in jobs
        ]

    def _waiting(self, job: Job, ahead: int) -> Job:
        message = f"waiting for a place: {ahead} ahead of it, {len(self._places)} running"
        return dataclasses.replace(job, ahead=ahead, message=message)

    async def _checked(self, principal: Principal, spec: JobSpec, *, reads_rows: bool) -> Beginning:
        """The spec with its model, its rows and what it starts from found."""
        check_reach(principal.account_id, spec)
        await asyncio.to_thread(check_base, principal.account_id, spec.model, self._is_base)
        for field, folder in adapter_folders(spec):
            self._data.check_open(principal.account_id, field, folder)
        if not (Path(spec.model) / "config.json").is_file():
            raise errors.InvalidInput(
                "model",
                spec.model,
                "is not a model folder",
                remedy="give a Hugging Face folder with config.json and a tokenizer",
            )
        agent = await self._agents.resolved(principal.account_id, spec.agent)
        spec = dataclasses.replace(spec, agent=agent)
        if agent.kind is AgentKind.EVALUATOR and self._check_evaluator is not None:
            await self._check_evaluator(principal.account_id, agent.target)
        await self._data.check_output(principal.account_id, spec)
        files = await self._data.files(principal.account_id, spec)
        num_rows = 0
        if reads_rows:
            rows, _ = await asyncio.to_thread(load_job_rows, spec, files)
            num_rows = len(rows)
            # From now on it is this column, whatever the data may have later.
            column = prompt_column_of(rows, spec.prompt_column)
            spec = dataclasses.replace(spec, prompt_column=column)
        await check_groups(self._store, principal.account_id, spec)
        if spec.kind is JobKind.EVALUATION:
            spec = await with_models(self._store, principal.account_id, spec)
        return await self._lineage.beginning(principal.account_id, spec, files, num_rows)
