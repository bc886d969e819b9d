"""The native API on a free loopback port, in a thread: what a client or the CLI talks to."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

from tests.builders import ACCOUNT
from tests.unit.control.kit import Loop, World, a_registry, agent_rooms, archives
from tests.wire.listening import listening
from turnwise.access.accounts import Accounts
from turnwise.access.keys import Keyring
from turnwise.access.vault import Vault
from turnwise.control.browse import Browse
from turnwise.control.results import StoredResults
from turnwise.diagnostics import Inspector
from turnwise.domain.event import EventDraft, EventKind
from turnwise.domain.job import Job, JobStatus
from turnwise.storage.sql import SqlStore
from turnwise.wire.native.findings import finding_routes
from turnwise.wire.native.routes import native_app

T = TypeVar("T")


class PlayedWorld(World):
    """Each job records a log line and a step's metrics, and then ends as `outcome` says."""

    outcome: JobStatus | None = JobStatus.COMPLETED  # None: it goes on until it is stopped

    async def _start(self, job: Job) -> Loop:
        loop = await super()._start(job)
        body = {"step": 0, "values": {"rollout/reward/mean": 0.25, "training/loss": 0.5}}
        drafts = [
            EventDraft(kind=EventKind.LOG, body={"message": "the agent [http] answers"}),
            EventDraft(kind=EventKind.METRICS, body=body),
        ]
        await self.store.append(ACCOUNT, job.job_id, drafts)
        if self.outcome is not None:
            loop.end(self.outcome)
        return loop


class Serving:
    """A server; `call` runs a coroutine on its loop. `data` is its data folder."""

    def __init__(self, folder: Path) -> None:
        self.data = folder / "data"
        self.data.mkdir()
        self._open_doors = contextlib.AsyncExitStack()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self.call(self._open(folder))

    def call(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    def later(self, seconds: float, function: Callable[[], object]) -> None:
        """Call it on the server's loop, then."""
        self._loop.call_soon_threadsafe(self._loop.call_later, seconds, function)

    async def _open(self, folder: Path) -> None:
        self._store = SqlStore.in_memory()
        self.world = PlayedWorld(folder, self._store)
        keyring = Keyring(self._store, Vault(bytes(32)))
        self.key = await keyring.admin_key(self.data / "admin.key")
        self._agents = agent_rooms(self.world)
        app = native_app(
            self.world.jobs,
            Browse(self._store),
            archives(),
            StoredResults(self._store, self.world.blobs),
            Accounts(self._store, keyring, find_job=self._store.job, region="us-west-2"),
            a_registry(self._store, folder),
            agents=self._agents,
            more=[finding_routes(Inspector(self.world.jobs, Browse(self._store)))],
        )
        self.url = await self._open_doors.enter_async_context(listening(app))
        (self.data / "server.url").write_text(self.url + "\n")

    def close(self) -> None:
        self.call(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _close(self) -> None:
        await self._open_doors.aclose()
        await self._agents.calls.close()
        await self._agents.logs.close()
        await self.world.jobs.close()
        await self._store.close()
