"""Weights & Biases as a destination of events: a run per job that asks for it.

Its client runs in a child process of each job, which may hang or die: the feed waits for it, and
nothing waits for the feed. The cursor is saved after each step that the child has taken.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import sys
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from turnwise import errors
from turnwise.domain.access import OPERATORS
from turnwise.domain.event import Event, EventDraft, EventKind, Level
from turnwise.domain.job import Job, JobStatus, WandbMode
from turnwise.domain.resource import Resource
from turnwise.ports import Clock, Resources, Store
from turnwise.tracking.feed import default_experiment
from turnwise.tracking.reading import Reader

Json = dict[str, Any]

#: The kind of the resource that keeps a `WandbState`; its name is the job's id.
KIND = "wandb-run"

#: An account's secret of that name; None where it has none.
Secret = Callable[[str, str], Awaitable[str | None]]

#: The child's command, and how long each of its answers may take, in seconds.
COMMAND = (sys.executable, "-m", "turnwise.tracking.wandb_child")
OPEN_S, LOG_S, CLOSE_S = 120.0, 60.0, 300.0
#: How long a child has to leave a run in order.
LEAVE_S = 5.0
_LINGER_S = 1.0
#: A new try costs a process, so a W&B that is away is asked rarely.
_LONGEST_PAUSE_S = 300.0

#: W&B reads a run's state from the exit code of its script; 255 is one that was interrupted.
_EXIT_CODES = {JobStatus.COMPLETED: 0, JobStatus.FAILED: 1, JobStatus.STOPPED: 255}


@dataclass(frozen=True, slots=True, kw_only=True)
class WandbState:
    """How far a job is told: everything up to event `told` is in its run.

    `is_warned` says that the job's log names a problem already.
    """

    told: int = 0
    url: str | None = None  # None before the run was made
    is_warned: bool = False


class WandbRuns:
    """A run for each job that asks for it."""

    name = "wandb"

    def __init__(
        self,
        *,
        store: Store,
        resources: Resources,
        clock: Clock,
        folder: Path,
        server_key: str = "",
        secret: Secret | None = None,
        command: Sequence[str] = COMMAND,
    ) -> None:
        """`folder` keeps W&B's files; `server_key` is for the operator's jobs, without a secret."""
        self._store = store
        self._resources = resources
        self._clock = clock
        self._folder = folder
        self._server_key = server_key
        self._secret = secret
        self._command = command

    def wants(self, job: Job) -> bool:
        """Whether the job asks for it."""
        return job.spec.tracking.wandb.enabled

    def feed(self, job: Job) -> WandbFeed:
        """What tells its events."""
        return WandbFeed(
            job,
            store=self._store,
            resources=self._resources,
            clock=self._clock,
            folder=self._folder / job.job_id,
            key=self._key,
            command=self._command,
        )

    async def told(self, job: Job) -> int | None:
        """The newest event that is told; None before the first."""
        state = await _load(self._resources, job)
        return None if state is None else state.told

    async def close(self) -> None:
        """Each feed has ended its own child."""

    async def _key(self, job: Job) -> str:
        name = job.spec.tracking.wandb.api_key_secret
        found = await self._secret(job.account_id, name) if self._secret else None
        # Another account's job could name the operator's own projects and runs.
        return found or (self._server_key if job.account_id == OPERATORS else "")


class WandbFeed:
    """Tells one job's metrics and how it ended."""

    def __init__(
        self,
        job: Job,
        *,
        store: Store,
        resources: Resources,
        clock: Clock,
        folder: Path,
        key: Callable[[Job], Awaitable[str]],
        command: Sequence[str] = COMMAND,
    ) -> None:
        self._job = job
        self._store = store
        self._resources = resources
        self._folder = folder
        self._key = key
        self._command = command
        self._child: Child | None = None
        self._state: WandbState | None = None
        self._reader = Reader(
            *(job,),
            store=store,
            clock=clock,
            destination="W&B",
            longest_pause_s=_LONGEST_PAUSE_S,
        )

    async def run(self) -> None:
        """Until the job has ended and everything is told."""
        try:
            with suppress(errors.NotFound):  # the job was deleted meanwhile
                await self._reader.lasting(self._tell, self._told, self._failed)
        finally:
            await self._end_child()

    def _told(self) -> object:
        return self._state and self._state.told

    async def _tell(self) -> None:
        if self._state is None:
            self._state = await _load(self._resources, self._job)
        if self._state is None:
            self._state = WandbState()
            await self._resources.create_resource(_resource(self._job, self._state))
        async for page in self._reader.pages(self._state.told, _LINGER_S):
            for event in page:
                if await self._tell_event(event):
                    await self._save(told=event.seq)
            await self._save(told=page[-1].seq)

    async def _tell_event(self, event: Event) -> bool:
        """Whether there was something to tell."""
        # An EVALUATION event repeats the values of the METRICS event before it.
        if event.kind not in (EventKind.METRICS, EventKind.STATUS):
            return False
        child = await self._opened()
        if event.kind is EventKind.METRICS:
            values = {**event.body["values"], "step": event.body["step"]}
            await child.call({"do": "log", "seq": event.seq, "values": values}, LOG_S)
        elif (status := JobStatus(event.body["status"])).is_final:
            await self._close(child, status, event)
        return True

    async def _close(self, child: Child, status: JobStatus, event: Event) -> None:
        summary = {f"turnwise/{name}": event.body[name] for name in ("status", "secondary")}
        summary["turnwise/message"] = event.body.get("message", "")
        call = {"do": "close", "exit_code": _EXIT_CODES[status], "summary": summary}
        await child.call(call, CLOSE_S)
        await self._end_child()

    async def _opened(self) -> Child:
        """The child with the job's run open; a new one takes up the run where it was left."""
        if self._child is not None:
            return self._child
        call = opening(self._job, await self._key(self._job), self._folder)
        if importlib.util.find_spec("wandb") is None:
            raise errors.Unavailable(
                "the package wandb is not installed on this server; "
                "`pip install turnwise[wandb]` adds it"
            )
        await asyncio.to_thread(self._folder.mkdir, mode=0o700, parents=True, exist_ok=True)
        self._child = await Child.start(self._command)
        reply = await self._child.call(call, OPEN_S)
        if self._state is not None and self._state.url is None:
            await self._save(url=reply["url"])
            where = reply["url"] or f"wandb/{self._job.job_id} of the server's data folder"
            await self._log(f"the W&B run is at {where}", Level.INFO)
        return self._child

    async def _failed(self, error: Exception) -> None:
        """Leave the child, which may hang; say in the job's log, once, what is wrong."""
        await self._end_child()
        if self._state is None or self._state.is_warned:
            return
        await self._save(is_warned=True)
        await self._log(
            f"W&B does not get this job's metrics for now: {error}. The job goes on; once that is "
            "put right, W&B gets all of them",
            Level.WARNING,
        )

    async def _log(self, message: str, level: Level) -> None:
        draft = EventDraft(kind=EventKind.LOG, body={"message": message}, level=level)
        await self._store.append(self._job.account_id, self._job.job_id, [draft])

    async def _save(self, **changes: Any) -> None:
        assert self._state is not None
        self._state = replace(self._state, **changes)
        await self._resources.change_resource(_resource(self._job, self._state))

    async def _end_child(self) -> None:
        child, self._child = self._child, None
        if child is not None:
            await child.end()


def opening(job: Job, key: str, folder: Path) -> Json:
    """The call that opens a job's run. Raises `Unavailable` where there is no key to do so."""
    wandb = job.spec.tracking.wandb
    if wandb.mode is WandbMode.ONLINE and not key:
        or_else = ", or start the server with WANDB_API_KEY"
        raise errors.Unavailable(
            f"there is no W&B key; keep one as the account's secret {wandb.api_key_secret!r}"
            + (or_else if job.account_id == OPERATORS else "")
        )
    return {
        "do": "open",
        "api_key": key,
        "mode": wandb.mode.value,
        "project": wandb.project or default_experiment(job),
        "entity": wandb.entity,
        "run_name": wandb.run_name or job.name,
        "run_id": wandb.run_id or job.job_id,
        "config": json.loads(json.dumps(asdict(job.spec))),
        "folder": str(folder),
        "timeout_s": OPEN_S - 10,
    }


class Child:
    """The process that holds a run."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    @classmethod
    async def start(cls, command: Sequence[str]) -> Child:
        """Start it; the key comes with a call, not where a list of processes shows it.

        Raises `Unavailable`.
        """
        try:
            process = await asyncio.create_subprocess_exec(
                *command,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.DEVNULL,
            )
        except OSError as error:
            raise errors.Unavailable(f"its process cannot be started: {error}") from error
        return cls(process)

    async def call(self, call: Json, timeout_s: float) -> Json:
        """The answer to one call. Raises `Unavailable` for an error, or for none in time."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        try:
            async with asyncio.timeout(timeout_s):
                stdin.write(json.dumps(call).encode() + b"\n")
                await stdin.drain()
                line = await stdout.readline()
        except TimeoutError:
            raise errors.Unavailable(
                f"it has not answered for {timeout_s:g} s; check that the server reaches W&B"
            ) from None
        except (OSError, ValueError) as error:
            raise errors.Unavailable(f"its process is gone: {error}") from error
        if not line:
            raise errors.Unavailable("its process has ended")
        reply: Json = json.loads(line)
        if "error" in reply:
            raise errors.Unavailable(
                f"{reply['error']}; check the key, the project and the server's network"
            )
        return reply

    async def end(self) -> None:
        """Let it go: by itself, as it leaves when its input closes, within its own time limit."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        with suppress(TimeoutError):
            async with asyncio.timeout(LEAVE_S):
                await self._process.wait()
        if self._process.returncode is None:
            with suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()


async def _load(resources: Resources, job: Job) -> WandbState | None:
    try:
        found = await resources.resource(job.account_id, KIND, job.job_id)
    except errors.NotFound:
        return None
    return WandbState(**found.body)


def _resource(job: Job, state: WandbState) -> Resource:
    return Resource(account_id=job.account_id, kind=KIND, name=job.job_id, body=asdict(state))
