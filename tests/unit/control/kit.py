"""Jobs over a store in memory, with loops that do what a test says."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

from tests import builders
from tests.builders import ACCOUNT, SetClock
from turnwise import errors
from turnwise.agents import AgentCalls
from turnwise.control.agent_logs import AgentLogs
from turnwise.control.agents import Agents
from turnwise.control.job_data import JobData
from turnwise.control.jobs import Jobs, status_event
from turnwise.control.models.catalogue import Catalogue
from turnwise.control.models.registry import ObjectFiles, Registry
from turnwise.control.models.served import verified_base, verified_folder
from turnwise.control.objects.buckets import Buckets
from turnwise.control.queue import Limits
from turnwise.domain.access import Principal
from turnwise.domain.job import Job, JobSpec, JobStatus, Secondary
from turnwise.exporting.archives import Archives
from turnwise.ports import Archive, MergeSpec
from turnwise.storage.blobs import FolderBlobs
from turnwise.storage.sql import SqlStore
from turnwise.system import new_id
from turnwise.wire.native.agents import AgentRooms

ADMIN = Principal(account_id=ACCOUNT)


async def _no_merge(spec: MergeSpec) -> Archive:
    raise AssertionError("merging needs a process, which flow tests start")


def agent_rooms(world: World) -> AgentRooms:
    """The world's agents, for the native API."""
    return AgentRooms(
        agents=world.agents,
        logs=AgentLogs(world.store, world.clock, keep=10_000),
        calls=AgentCalls(),
        url="http://127.0.0.1:1",
    )


async def _number(account_id: str) -> str:
    return "000000000001"


def archives() -> Archives:
    """Exports of verified PEFT folders."""
    return Archives(verified_folder, verified_base, _no_merge)


class NoObjects:
    """Buckets with nothing in them."""

    async def get(self, account_id: str, bucket: str, key: str) -> tuple[Any, Path]:
        raise errors.NotFound("object", key)


def a_registry(store: SqlStore, folder: Path, objects: ObjectFiles | None = None) -> Registry:
    """Of models whose files are in `folder`/blobs, with base models in `folder`/models."""
    names = iter(range(1, 1000))
    return Registry(
        store=store,
        resources=store,
        blobs=FolderBlobs(folder / "blobs"),
        objects=objects or NoObjects(),
        catalogue=Catalogue(folder / "models"),
        clock=SetClock(),
        new_id=lambda prefix: f"{prefix}_own{next(names)}",
    )


class Loop:
    """A job's loop that ends when it is told to."""

    def __init__(self, job: Job, store: SqlStore) -> None:
        self.job = job
        self._store = store
        self._end: asyncio.Future[JobStatus] = asyncio.get_running_loop().create_future()

    async def run(self) -> None:
        status = await self._end
        secondary = Secondary(status.value.capitalize())
        event = status_event(status, secondary)
        await self._store.append(self.job.account_id, self.job.job_id, [event])

    def request_stop(self) -> None:
        self.end(JobStatus.STOPPED)

    def end(self, status: JobStatus = JobStatus.COMPLETED) -> None:
        if not self._end.done():
            self._end.set_result(status)

    def break_down(self, error: Exception) -> None:
        self._end.set_exception(error)


class World:
    """One server's control plane. `make` gives another one, as after a restart, on its store."""

    def __init__(
        self,
        folder: Path,
        store: SqlStore,
        *,
        max_running: int = 1,
        limits: Limits | None = None,
    ) -> None:
        self.folder = folder
        self.store = store
        self.blobs = FolderBlobs(folder / "blobs")
        self.loops: dict[str, Loop] = {}  # by job name
        self.broken: dict[str, Exception] = {}  # what starting that job raises
        self.may_start = asyncio.Event()
        self.may_start.set()
        self.clock = SetClock()
        self._names = iter("abcdefghijklmnopqrstuvwxyz")
        self.agents = Agents(store, _number, self.clock, region="us-west-2")
        self.buckets = Buckets(
            store, self.blobs, self.clock, new_id, private=(folder / "blobs").resolve()
        )
        self.jobs = Jobs(
            store=store,
            agents=self.agents,
            clock=self.clock,
            new_id=lambda prefix: f"{prefix}_{next(self._names)}",
            start=self._start,
            limits=limits or Limits(running=max_running),
            data=JobData(self.buckets),
        )
        model = folder / "model"
        model.mkdir(exist_ok=True)
        (model / "config.json").write_text("{}")
        (folder / "train.jsonl").write_text(json.dumps({"prompt": "go"}) + "\n")

    async def _start(self, job: Job) -> Loop:
        await self.may_start.wait()
        if error := self.broken.get(job.name):
            raise error
        loop = self.loops[job.name] = Loop(job, self.store)
        return loop

    def spec(self, name: str, **changes: Any) -> JobSpec:
        files = {"model": str(self.folder / "model"), "dataset": str(self.folder / "train.jsonl")}
        return builders.spec(name, **(files | changes))

    def job_file(self, name: str, **changes: Any) -> dict[str, Any]:
        """What a client would send for `spec`."""
        files = {"model": str(self.folder / "model"), "dataset": str(self.folder / "train.jsonl")}
        return {"name": name, "agent": {"kind": "scripted"}, **files, **changes}

    async def create(self, *names: str) -> None:
        for name in names:
            await self.jobs.create(ADMIN, self.spec(name))

    async def until(self, name: str, status: JobStatus) -> Job:
        """Wait for a job's status."""
        async with asyncio.timeout(30):
            while True:
                events = await self.store.events(ACCOUNT, name_id := await self._id(name))
                job = await self.jobs.describe(ADMIN, name)
                if job.status is status:
                    return job
                await self.store.wait_for(ACCOUNT, name_id, after=events[-1].seq)

    async def running(self, name: str) -> Loop:
        """Wait for a job's loop."""
        await self.until(name, JobStatus.RUNNING)
        async with asyncio.timeout(30):
            while name not in self.loops:
                await asyncio.sleep(0)
        return self.loops[name]

    async def statuses(self) -> dict[str, str]:
        found = await self.jobs.list(ADMIN)
        return {job.name: job.status.value for job in reversed(found)}

    async def _id(self, name: str) -> str:
        return (await self.store.job(ACCOUNT, name)).job_id
