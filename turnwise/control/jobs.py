"""Jobs: create, watch, stop, resume, delete; and the queue that decides which run.

    create -> PENDING --place free--> RUNNING --loop--> COMPLETED | STOPPED | FAILED
                 ^                                                   |         |
                 +----------------------- resume --------------------+---------+

A server that ends leaves its jobs as they are; `recover` continues them when it starts again.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Protocol

from turnwise import errors
from turnwise.control.datasets import load_rows
from turnwise.domain.access import Action, Principal
from turnwise.domain.data import Row
from turnwise.domain.event import EventDraft, EventKind, Level
from turnwise.domain.job import Job, JobSpec, JobStatus, Secondary, check_move
from turnwise.ports import Clock, ModelPackage, NewId, Store

log = logging.getLogger(__name__)


class Running(Protocol):
    """A job's loop, as control sees it."""

    async def run(self) -> None:
        """Until the job is final. Records its own status events."""
        ...

    def request_stop(self) -> None:
        """End soon, as STOPPED."""
        ...


#: Builds engine, learner and loop for a job. Given by `turnwise.app`.
Start = Callable[[Job], Awaitable[Running]]


def status_event(
    status: JobStatus, secondary: Secondary, message: str = "", *, level: Level = Level.INFO
) -> EventDraft:
    """The event that moves a job."""
    body = {"status": status.value, "secondary": secondary.value, "message": message}
    return EventDraft(kind=EventKind.STATUS, body=body, level=level)


class Jobs:
    """The control plane's jobs. Every call requires a principal with the right."""

    def __init__(
        self, *, store: Store, clock: Clock, new_id: NewId, start: Start, max_running: int
    ) -> None:
        self._store = store
        self._clock = clock
        self._new_id = new_id
        self._start = start
        self._max_running = max_running
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._loops: dict[str, Running] = {}
        self._stopping: set[str] = set()

    async def create(self, principal: Principal, spec: JobSpec) -> Job:
        """Check a spec, store the job and run it when there is a place.

        Raises `InvalidInput` for a dataset, model or adapter that cannot be used, `Conflict` if
        the name is taken.
        """
        principal.require(Action.MANAGE)
        spec = await self._checked(principal, spec)
        job = await self._store.create_job(
            Job(
                job_id=self._new_id("job"),
                account_id=principal.account_id,
                name=spec.name,
                spec=spec,
                created_at=self._clock.now(),
            )
        )
        await self._store.append(
            job.account_id, job.job_id, [status_event(JobStatus.PENDING, Secondary.PENDING)]
        )
        await self._fill_places()
        return await self.describe(principal, job.job_id)

    async def describe(self, principal: Principal, id_or_name: str) -> Job:
        """One job; a waiting one says how many are ahead of it."""
        job = await self._store.job(principal.account_id, id_or_name)
        principal.require(Action.READ, job_id=job.job_id)
        return await self._with_place(job)

    async def list(
        self, principal: Principal, *, status: JobStatus | None = None, limit: int = 100
    ) -> list[Job]:
        """Newest first."""
        principal.require(Action.READ)
        found = await self._store.jobs(principal.account_id, status=status, limit=limit)
        visible = [job for job in found if principal.allows(Action.READ, job_id=job.job_id)]
        return [await self._with_place(job) for job in visible]

    async def stop(self, principal: Principal, id_or_name: str) -> Job:
        """Ask a job to end. Its last checkpoint stays; `resume` continues from it."""
        job = await self._store.job(principal.account_id, id_or_name)
        principal.require(Action.MANAGE, job_id=job.job_id)
        if job.status is JobStatus.PENDING:
            await self._move(job, JobStatus.STOPPED, Secondary.STOPPED)
        elif job.status is JobStatus.RUNNING:
            await self._move(job, JobStatus.STOPPING, Secondary.STOPPING)
            self._stopping.add(job.job_id)
            if loop := self._loops.get(job.job_id):
                loop.request_stop()
        elif job.status is not JobStatus.STOPPING:
            check_move(job.status, JobStatus.STOPPING)
        return await self.describe(principal, job.job_id)

    async def resume(self, principal: Principal, id_or_name: str) -> Job:
        """Continue a STOPPED or FAILED job from its last checkpoint."""
        job = await self._store.job(principal.account_id, id_or_name)
        principal.require(Action.MANAGE, job_id=job.job_id)
        if not job.status.is_final:
            raise errors.Conflict(f"job {job.name!r} is {job.status.value}; stop it first")
        await self._move(job, JobStatus.PENDING, Secondary.PENDING)
        await self._fill_places()
        return await self.describe(principal, job.job_id)

    async def delete(self, principal: Principal, id_or_name: str) -> Job:
        """Remove a job that has ended, with its rollouts. The job as it was."""
        job = await self._store.job(principal.account_id, id_or_name)
        principal.require(Action.MANAGE, job_id=job.job_id)
        if not job.status.is_final:
            raise errors.Conflict(
                f"job {job.name!r} is {job.status.value} and cannot be deleted; stop it first"
            )
        await self._store.delete_job(principal.account_id, job.job_id)
        return job

    async def recover(self) -> None:
        """Continue what a former server process left running, then fill free places."""
        for job in reversed(await self._store.jobs(None, limit=10_000)):
            if job.status is JobStatus.STOPPING:
                await self._move(job, JobStatus.STOPPED, Secondary.STOPPED)
            elif job.status is JobStatus.RUNNING:
                log.info("continuing job %s after a restart", job.name)
                await self._move(job, JobStatus.RUNNING, Secondary.RESTARTING)
                self._launch(job)
        await self._fill_places()

    async def close(self) -> None:
        """End the loops without ending the jobs: the next server process continues them."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _fill_places(self) -> None:
        waiting = await self._store.jobs(None, status=JobStatus.PENDING, limit=10_000)
        for job in reversed(waiting):
            if len(self._tasks) >= self._max_running:
                return
            if job.job_id not in self._tasks:
                await self._move(job, JobStatus.RUNNING, Secondary.STARTING)
                self._launch(job)

    def _launch(self, job: Job) -> None:
        self._tasks[job.job_id] = asyncio.create_task(self._run(job), name=f"job.{job.name}")

    async def _run(self, job: Job) -> None:
        """One incarnation, and then the next job's turn."""
        try:
            loop = self._loops[job.job_id] = await self._start(job)
            if job.job_id in self._stopping:
                loop.request_stop()
            await loop.run()
        except Exception as error:  # supervision: whatever broke, the job says so
            log.exception("job %s failed", job.name)
            await self._fail(job, error)
        finally:
            self._loops.pop(job.job_id, None)
            self._tasks.pop(job.job_id, None)
            self._stopping.discard(job.job_id)
        await self._fill_places()

    async def _fail(self, job: Job, error: Exception) -> None:
        job = await self._store.job(job.account_id, job.job_id)
        if not job.status.is_final:
            expected = isinstance(error, errors.TurnwiseError)
            message = str(error) if expected else f"{type(error).__name__}: {error}"
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

    async def _with_place(self, job: Job) -> Job:
        if job.status is not JobStatus.PENDING:
            return job
        waiting = await self._store.jobs(None, status=JobStatus.PENDING, limit=10_000)
        ahead = sum(other.created_at < job.created_at for other in waiting)
        message = f"waiting for a place: {ahead} jobs ahead, {len(self._tasks)} running"
        return dataclasses.replace(job, message=message)

    async def _checked(self, principal: Principal, spec: JobSpec) -> JobSpec:
        if not (Path(spec.model) / "config.json").is_file():
            raise errors.InvalidInput(
                "model",
                spec.model,
                "is not a model folder",
                remedy="give a Hugging Face folder with config.json and a tokenizer",
            )
        await asyncio.to_thread(load_job_rows, spec)
        if spec.input_adapter and not Path(spec.input_adapter).is_dir():
            package = await self._store.package(principal.account_id, spec.input_adapter)
            spec = dataclasses.replace(spec, input_adapter=adapter_folder(package))
        return spec


def load_job_rows(spec: JobSpec) -> tuple[list[Row], list[Row]]:
    """A job's rows for training (or evaluation) and for validation (maybe none)."""

    def load(path: str) -> list[Row]:
        return load_rows(path, prompt_column=spec.prompt_column, label_column=spec.label_column)

    return load(spec.dataset), load(spec.validation_dataset) if spec.validation_dataset else []


def adapter_folder(package: ModelPackage) -> str:
    """The PEFT folder inside a package of either kind."""
    inner = Path(package.path) / "adapter"
    return str(inner if inner.is_dir() else package.path)
