"""`ports.Store` and `ports.Keys` over SQL: SQLite by default, Postgres by URL."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Concatenate, ParamSpec, TypeVar

from sqlalchemy import Connection, Engine

from turnwise import errors
from turnwise.domain.access import Account, Key
from turnwise.domain.agent import AgentLogEntry
from turnwise.domain.audit import (
    AuditDraft,
    AuditHead,
    AuditQuery,
    AuditRecord,
    AuditSegment,
    Sealer,
)
from turnwise.domain.event import Event, EventDraft
from turnwise.domain.job import Inputs, Job, JobSpec, JobStatus
from turnwise.domain.ledger import TokenUsage
from turnwise.domain.objects import Listing, Part, StoredObject, Upload
from turnwise.domain.resource import Resource
from turnwise.domain.rollout import (
    Fault,
    Group,
    Node,
    Policy,
    Purpose,
    Rollout,
    RolloutStatus,
    Trajectory,
    Turn,
)
from turnwise.domain.traced import TracedCall, TracedLog, TraceQuery
from turnwise.domain.training import Checkpoint
from turnwise.ports import (
    Clock,
    Excerpt,
    FinishedStep,
    Histogram,
    JobQuery,
    JobSummary,
    LogQuery,
    ModelPackage,
    Pruned,
    RolloutQuery,
    RolloutSummary,
    Tally,
)
from turnwise.storage import (
    accounts,
    agent_logs,
    audit,
    jobs,
    logs,
    objects,
    packages,
    resources,
    rollout_pages,
    rollouts,
    steps,
    traces,
    transcripts,
    turns,
)
from turnwise.storage.database import (
    is_sqlite_file,
    memory_engine,
    open_engine,
    translated_errors,
)
from turnwise.storage.wal import WalKeeper
from turnwise.storage.writer import Writer
from turnwise.system import SYSTEM_CLOCK

P = ParamSpec("P")
T = TypeVar("T")

# Pages and exports are rare beside turns; more threads would only take the interpreter from them.
_READERS = 4

# Few enough that a turn which comes meanwhile hardly waits.
_SEARCHABLE_AT_ONCE = 4


def _make_searchable(connection: Connection) -> bool:
    return transcripts.work(connection, _SEARCHABLE_AT_ONCE)


class SqlStore:
    """The database, used from one event loop.

    One thread writes; a call returns once its commit is synced. Reads run on their own
    connections, so that a page never waits for the writer. The database in memory has a single
    connection, where reads take their turn among the writes.
    """

    def __init__(self, engine: Engine, clock: Clock, *, readers: int) -> None:
        self._engine = engine
        self._clock = clock
        self._commit_turn = turns.CommitTurn(engine.dialect)
        self._move_rollout = rollouts.MoveRollout(engine.dialect)
        self._wal = WalKeeper(engine) if is_sqlite_file(engine) else None
        committed = None if self._wal is None else self._wal.count
        self._writer = Writer(engine, committed, _make_searchable)
        self._readers = ThreadPoolExecutor(readers, "store-reader") if readers else None
        self._watchers: set[tuple[str, asyncio.Future[None]]] = set()
        self._closed = False

    @classmethod
    def open(cls, url_or_path: str | Path, *, clock: Clock = SYSTEM_CLOCK) -> SqlStore:
        """A store on a SQLite file (made if absent) or a database URL, migrated; blocks."""
        return cls(open_engine(url_or_path), clock, readers=_READERS)

    @classmethod
    def in_memory(cls, *, clock: Clock = SYSTEM_CLOCK) -> SqlStore:
        """The same store on an empty database in memory."""
        return cls(memory_engine(), clock, readers=0)

    async def close(self) -> None:
        """Finish what waits and close."""
        self._closed = True
        await asyncio.to_thread(self._close)
        for job_id, _ in self._watchers:
            self._wake(job_id)

    def _close(self) -> None:
        self._writer.close()
        if self._wal is not None:
            self._wal.close()
        if self._readers is not None:
            self._readers.shutdown()
        self._engine.dispose()

    # ── how calls reach the database ──────────────────────────────────────────────────────────

    async def _write(
        self,
        function: Callable[Concatenate[Connection, P], T],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        written: T = await self._writer.submit(lambda c: function(c, *args, **kwargs))
        return written

    async def _write_ends(
        self,
        function: Callable[Concatenate[Connection, P], T],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        """A write that ends rollouts, or removes them: what can be searched is to change."""
        written: T = await self._writer.submit(
            lambda c: function(c, *args, **kwargs), after_commit=self._writer.work_later
        )
        return written

    async def _write_events(
        self,
        job_id: str,
        function: Callable[Concatenate[Connection, P], list[Event]],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> list[Event]:
        """A write that appends events: whoever waits for them is woken after the commit."""
        appended: list[Event] = await self._writer.submit(
            lambda c: function(c, *args, **kwargs), after_commit=lambda: self._wake(job_id)
        )
        return appended

    async def _read(
        self,
        function: Callable[Concatenate[Connection, P], T],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        if self._readers is None:
            return await self._write(function, *args, **kwargs)
        if self._closed:
            raise errors.Unavailable("the store is closed")
        return await asyncio.get_running_loop().run_in_executor(
            self._readers, lambda: self._query(lambda c: function(c, *args, **kwargs))
        )

    def _query(self, function: Callable[[Connection], T]) -> T:
        with translated_errors(), self._engine.connect() as connection:
            return function(connection)

    # ── jobs and events ───────────────────────────────────────────────────────────────────────

    async def create_job(self, job: Job, records: Sequence[Resource] = ()) -> Job:
        """Raises `Conflict` if its name is taken, or a model that it needs was pruned."""
        return await self._write(jobs.create, job, records)

    async def job(self, account_id: str, id_or_name: str) -> Job:
        """Raises `NotFound`."""
        return await self._read(jobs.find, account_id, id_or_name)

    async def jobs(
        self, account_id: str | None, *, status: JobStatus | None = None, limit: int = 100
    ) -> list[Job]:
        """Newest first. Account None: all accounts."""
        return await self._read(jobs.newest, account_id, status, limit)

    async def job_page(self, query: JobQuery) -> list[JobSummary]:
        """One page, newest first, without the jobs' specs."""
        return await self._read(jobs.page, query)

    async def update_spec(self, account_id: str, job_id: str, spec: JobSpec) -> None:
        """Replace the spec of a job that has not started, else `Conflict`."""
        await self._write(jobs.update_spec, account_id, job_id, spec)

    async def delete_job(
        self, account_id: str, job_id: str, records: Collection[tuple[str, str]] = ()
    ) -> None:
        """Remove a final job and these records, with all but its packages; else `Conflict`."""
        await self._write_ends(jobs.remove, account_id, job_id, records)

    async def append(
        self, account_id: str, job_id: str, drafts: Sequence[EventDraft]
    ) -> list[Event]:
        """Number and keep events. A STATUS event moves the job too (`Conflict` if it may not)."""
        return await self._write_events(
            job_id, jobs.append, account_id, job_id, drafts, self._clock.now()
        )

    async def events(
        self,
        account_id: str,
        job_id: str,
        *,
        after: int = 0,
        kinds: Sequence[str] = (),
        limit: int = 1000,
    ) -> list[Event]:
        """Events with seq > after, in order."""
        return await self._read(jobs.read_events, account_id, job_id, after, kinds, limit)

    async def log_events(self, account_id: str, query: LogQuery) -> list[Event]:
        """One page of the job's log."""
        return await self._read(logs.page, account_id, query)

    async def metrics_since(self, account_id: str, job_id: str, after: int) -> list[Event]:
        """All METRICS events with seq > after, in order."""
        return await self._read(logs.metrics_since, account_id, job_id, after)

    async def last_event(self, account_id: str, job_id: str) -> int:
        """The newest event's seq, 0 if there is none. Raises `NotFound`."""
        return await self._read(jobs.last_event, account_id, job_id)

    async def wait_for(self, account_id: str, job_id: str, *, after: int) -> None:
        """Return once the job has an event with seq > after. Sees what this store appends."""
        while True:
            # Watch first, look second: an append in between is not missed.
            watcher = (job_id, asyncio.get_running_loop().create_future())
            self._watchers.add(watcher)
            try:
                if await self._read(jobs.last_event, account_id, job_id) > after:
                    return
                await watcher[1]
            finally:
                self._watchers.discard(watcher)

    def _wake(self, job_id: str) -> None:
        for watched, woken in self._watchers:
            if watched == job_id and not woken.done():
                woken.set_result(None)

    async def record_inputs(self, account_id: str, job_id: str, inputs: Inputs) -> None:
        """Keep what the job's first start found; later ones change nothing."""
        await self._write(jobs.record_inputs, account_id, job_id, inputs)

    async def start_incarnation(self, account_id: str, job_id: str) -> int:
        """Count one more start of the job's loop; its number, from 1."""
        return await self._write(jobs.start_incarnation, account_id, job_id)

    # ── rollouts ──────────────────────────────────────────────────────────────────────────────

    async def open_group(self, group: Group) -> None:
        """Record an admitted group."""
        await self._write(rollouts.open_group, group)

    async def close_group(self, account_id: str, group_id: str) -> None:
        """OPEN -> CLOSED, else `Conflict`."""
        await self._write(rollouts.close_group, account_id, group_id)

    async def groups(
        self,
        account_id: str,
        job_id: str,
        *,
        status: str | None = None,
        step: int | None = None,
        group_id: str | None = None,
    ) -> list[Group]:
        """In order of admission; of that status, taken by that step, of that id."""
        return await self._read(rollouts.list_groups, account_id, job_id, status, step, group_id)

    async def supersede(
        self, account_id: str, job_id: str, incarnation: int, *, keep: Sequence[str] = ()
    ) -> int:
        """Close what earlier incarnations left, but for the groups in `keep`.

        The tokens of superseded groups go to the bin `dropped_superseded` of the next step.
        """
        return await self._write_ends(
            rollouts.supersede, account_id, job_id, incarnation, keep, self._clock.now()
        )

    async def open_rollouts(self, opened: Sequence[Rollout]) -> None:
        """Record rollouts as PENDING."""
        await self._write(rollouts.open_all, opened)

    async def rollout(self, rollout_id: str, account_id: str | None = None) -> Rollout:
        """Raises `NotFound`. Account None: for the data plane, which then checks the secret."""
        return await self._read(rollouts.find, rollout_id, account_id)

    async def commit_turn(
        self, account_id: str, rollout_id: str, nodes: Sequence[Node], turn: Turn
    ) -> None:
        """Keep a turn and the nodes it adds. Raises `Conflict` unless the rollout is PENDING."""
        await self._write(self._commit_turn, account_id, rollout_id, nodes, turn)

    async def mark_undelivered(self, account_id: str, rollout_id: str, turn_id: str) -> None:
        """The reply did not reach the agent."""
        await self._write(turns.mark_undelivered, account_id, rollout_id, turn_id)

    async def move_rollout(
        self,
        account_id: str,
        rollout_id: str,
        expected: Sequence[RolloutStatus],
        *,
        status: RolloutStatus,
        rewards: tuple[float, ...] | None = None,
        metrics: Mapping[str, float] | None = None,
        fault: Fault | None = None,
        ended_at: float | None = None,
        reason: str | None = None,
    ) -> Rollout:
        """Compare-and-set; metrics are added to those there. Raises `Conflict`."""
        given = {
            "status": status,
            "rewards": rewards,
            "metrics": metrics,
            "fault": fault,
            "ended_at": ended_at,
            "reason": reason,
        }
        write = self._write if ended_at is None else self._write_ends
        return await write(self._move_rollout, account_id, rollout_id, expected, given)

    async def trajectory(self, account_id: str, rollout_id: str) -> Trajectory:
        """A rollout with all nodes and turns."""
        return await self._read(turns.trajectory, account_id, rollout_id)

    async def group_trajectories(self, account_id: str, group_id: str) -> list[Trajectory]:
        """Every attempt of the group, by (slot, attempt)."""
        return await self._read(turns.of_group, account_id, group_id)

    async def rollouts(self, account_id: str, query: RolloutQuery) -> list[RolloutSummary]:
        """One page."""
        return await self._read(rollout_pages.page, account_id, query)

    async def rollout_excerpts(
        self, account_id: str, rollout_ids: Sequence[str]
    ) -> dict[str, Excerpt]:
        """By rollout id; those without turns are left out."""
        return await self._read(transcripts.excerpts, account_id, rollout_ids)

    async def reward_histogram(
        self, account_id: str, query: RolloutQuery, bins: int = 20
    ) -> Histogram:
        """Of all that the query's filters let through, whatever their rewards."""
        return await self._read(rollout_pages.histogram, account_id, query, bins)

    async def rollout_tally(self, account_id: str, job_id: str) -> list[Tally]:
        """How many rollouts there are by step, purpose, status and fault."""
        return await self._read(rollout_pages.tally, account_id, job_id)

    async def random_rollouts(
        self,
        account_id: str,
        job_id: str,
        step: int,
        purpose: Purpose,
        count: int = 10,
        seed: int = 0,
        *,
        is_trained: bool = False,
    ) -> list[RolloutSummary]:
        """Some that have ended; the same ones for the same seed."""
        return await self._read(
            rollout_pages.sample,
            account_id,
            job_id,
            step,
            purpose,
            count,
            seed,
            is_trained=is_trained,
        )

    async def make_searchable(self) -> None:
        """Do now what is otherwise done while nobody writes: then all that ended is found."""
        while await self._write(_make_searchable):
            pass

    async def ledger(self, account_id: str, job_id: str) -> dict[int, dict[str, int]]:
        """Tokens per bin per step."""
        return await self._read(steps.ledger, account_id, job_id)

    async def usage(self, account_id: str, job_id: str) -> TokenUsage:
        """What the job cost so far; `NotFound`."""
        return await self._read(steps.usage, account_id, job_id)

    # ── steps and models ──────────────────────────────────────────────────────────────────────

    async def finish_step(self, account_id: str, job_id: str, done: FinishedStep) -> None:
        """Keep a step's outcome, atomically; `Conflict` if a group was counted before."""
        await self._write_events(job_id, steps.finish, account_id, job_id, done, self._clock.now())

    async def rewind(self, account_id: str, job_id: str, step: int) -> None:
        """Take back the steps after `step`, whose checkpoints are lost."""
        await self._write(steps.rewind, account_id, job_id, step)

    async def policy(self, account_id: str, job_id: str) -> Policy | None:
        """What the newest finished step published; None before the first."""
        return await self._read(steps.newest_policy, account_id, job_id)

    async def save_checkpoint(self, account_id: str, job_id: str, checkpoint: Checkpoint) -> None:
        """Record a checkpoint outside a step (the one before training)."""
        await self._write(steps.save_checkpoint, account_id, job_id, checkpoint)

    async def checkpoints(self, account_id: str, job_id: str) -> list[Checkpoint]:
        """Oldest first."""
        return await self._read(steps.list_checkpoints, account_id, job_id)

    async def prune(
        self, account_id: str, job_id: str, keep: Collection[int], *, adapters: bool
    ) -> list[Pruned]:
        """Give up checkpoints; see `ports.Store.prune`."""
        return await self._write(
            steps.prune, account_id, job_id, keep, adapters=adapters, now=self._clock.now()
        )

    async def packages(self, account_id: str, *, group: str | None = None) -> list[ModelPackage]:
        """Oldest first."""
        return await self._read(packages.listed, account_id, group)

    async def newest_packages(self, account_id: str, job_id: str) -> list[ModelPackage]:
        """The newest adapter and the newest checkpoint that a job registered, if it did."""
        return await self._read(jobs.newest_packages, account_id, job_id)

    async def package(self, account_id: str, id_or_name: str) -> ModelPackage:
        """By package id, "group/version", or "group" for the newest version."""
        return await self._read(packages.find, account_id, id_or_name)

    async def next_version(self, account_id: str, groups: Collection[str]) -> int:
        """The lowest number that none of these groups has had, nor any above it."""
        return await self._read(packages.next_version, account_id, groups)

    async def register(self, made: Sequence[ModelPackage]) -> list[ModelPackage]:
        """Keep packages that no job's step makes; see `ports.Store.register`."""
        return await self._write(packages.register, made)

    async def delete_package(
        self, account_id: str, id_or_name: str
    ) -> tuple[ModelPackage, list[str]]:
        """Delete one; see `ports.Store.delete_package`."""
        return await self._write(packages.remove, account_id, id_or_name, self._clock.now())

    # ── accounts and keys ─────────────────────────────────────────────────────────────────────

    async def default_account(self) -> Account:
        """The account with slug "default", made at the first call."""
        return await self._write(accounts.default)

    async def create_account(self, account: Account) -> Account:
        """Raises `Conflict` if its slug or number is taken."""
        return await self._write(accounts.create, account)

    async def account(self, account_id: str) -> Account:
        """Raises `NotFound`."""
        return await self._read(accounts.find, account_id)

    async def accounts(self) -> list[Account]:
        """All accounts, by number."""
        return await self._read(accounts.every)

    async def add_key(self, key: Key) -> None:
        """Keep a key."""
        await self._write(accounts.add_key, key)

    async def key_by_sha256(self, sha256: str) -> Key:
        """Raises `NotFound`. A revoked key is found too, with its `revoked_at`."""
        return await self._read(accounts.key_by_sha256, sha256)

    async def key_by_access_key_id(self, access_key_id: str) -> Key:
        """Raises `NotFound`. A revoked key is found too, with its `revoked_at`."""
        return await self._read(accounts.key_by_access_key_id, access_key_id)

    async def seal_key(self, key: Key) -> None:
        """Keep the access key id and the sealed secret of a key made before there were any."""
        await self._write(accounts.seal_key, key)

    async def keys(self, account_id: str) -> list[Key]:
        """Oldest first, revoked ones included."""
        return await self._read(accounts.list_keys, account_id)

    async def revoke_key(self, account_id: str, key_id: str) -> Key:
        """End a key for good; revoking it again changes nothing. Raises `NotFound`."""
        return await self._write(accounts.revoke_key, account_id, key_id, self._clock.now())

    # ── named records ─────────────────────────────────────────────────────────────────────────

    async def create_resource(self, resource: Resource) -> Resource:
        """Raises `Conflict` if the account has one of that kind and name."""
        return await self._write(resources.create, resource)

    async def change_resource(self, resource: Resource) -> Resource:
        """Replace the body. Raises `NotFound`."""
        return await self._write(resources.change, resource, self._clock.now())

    async def resource(self, account_id: str, kind: str, name: str) -> Resource:
        """Raises `NotFound`."""
        return await self._read(resources.find, account_id, kind, name)

    async def resources(self, account_id: str, kind: str, *, prefix: str = "") -> list[Resource]:
        """Those whose names begin with `prefix`, oldest first."""
        return await self._read(resources.listed, account_id, kind, prefix)

    async def delete_resource(self, account_id: str, kind: str, name: str) -> Resource:
        """The record as it was. Raises `NotFound`."""
        return await self._write(resources.remove, account_id, kind, name)

    # ── the audit trail ───────────────────────────────────────────────────────────────────────

    async def append_audit(
        self, account_id: str, drafts: Sequence[AuditDraft], sealer: Sealer
    ) -> int:
        """Add records to the account's chain; the number of the last one."""
        return await self._write(audit.append, account_id, drafts, sealer)

    async def audit_records(self, account_id: str, query: AuditQuery) -> list[AuditRecord]:
        """A page of records."""
        return await self._read(audit.find, account_id, query)

    async def audit_head(self, account_id: str) -> AuditHead:
        """Where the account's chain ends."""
        return await self._read(audit.head, account_id)

    async def audit_segments(self, account_id: str) -> list[AuditSegment]:
        """The account's sealed segments in order, dropped ones included."""
        return await self._read(audit.segments, account_id)

    async def drop_audit(self, account_id: str, before: float) -> int:
        """Remove the records of segments that ended before a time; how many segments."""
        return await self._write(audit.drop, account_id, before, self._clock.now())

    # ── buckets and objects ───────────────────────────────────────────────────────────────────

    async def create_bucket(self, account_id: str, bucket: str) -> None:
        """Raises `Conflict` if the account has it."""
        await self._write(objects.create_bucket, account_id, bucket, self._clock.now())

    async def buckets(self, account_id: str) -> list[Resource]:
        """By name."""
        return await self._read(objects.buckets, account_id)

    async def delete_bucket(self, account_id: str, bucket: str) -> None:
        """Raises `NotFound`, and `Conflict` while something is in it or being uploaded to it."""
        await self._write(objects.delete_bucket, account_id, bucket)

    async def put_object(
        self, account_id: str, stored: StoredObject, blob: str, *, replaces: str | None = None
    ) -> list[str]:
        """Keep an object in place of the one of its key; the blobs that are no longer used."""
        return await self._write(objects.put, account_id, stored, blob, replaces)

    async def object(self, account_id: str, bucket: str, key: str) -> tuple[StoredObject, str]:
        """An object and its blob. Raises `NotFound` of kind "bucket" or "object"."""
        return await self._read(objects.find, account_id, bucket, key)

    async def list_objects(
        self, account_id: str, bucket: str, *, prefix: str, delimiter: str, after: str, limit: int
    ) -> Listing:
        """A page, in the order of keys as bytes. Raises `NotFound`."""
        return await self._read(objects.listed, account_id, bucket, prefix, delimiter, after, limit)

    async def delete_objects(self, account_id: str, bucket: str, keys: Sequence[str]) -> list[str]:
        """Remove those that are there; their blobs. Raises `NotFound` without the bucket."""
        return await self._write(objects.remove_from, account_id, bucket, keys)

    async def start_upload(self, account_id: str, upload: Upload) -> None:
        """Raises `NotFound` without the bucket."""
        await self._write(objects.start_upload, account_id, upload)

    async def upload(self, account_id: str, upload_id: str) -> Upload:
        """Raises `NotFound`."""
        return await self._read(objects.find_upload, account_id, upload_id)

    async def uploads(self, account_id: str, bucket: str, prefix: str = "") -> list[Upload]:
        """Those under way, by key and age. Raises `NotFound` without the bucket."""
        return await self._read(objects.list_uploads, account_id, bucket, prefix)

    async def put_part(self, account_id: str, upload_id: str, part: Part) -> list[str]:
        """Keep a part in place of the one of its number; blobs no longer used. `NotFound`."""
        return await self._write(objects.put_part, account_id, upload_id, part)

    async def parts(self, account_id: str, upload_id: str) -> list[Part]:
        """By number. Raises `NotFound`."""
        return await self._read(objects.list_parts, account_id, upload_id)

    async def end_upload(
        self,
        account_id: str,
        upload_id: str,
        stored: StoredObject | None = None,
        blob: str = "",
        *,
        replaces: str | None = None,
    ) -> list[str]:
        """Forget an upload; with `stored`, it has become this object. Blobs no longer used."""
        return await self._write(objects.end_upload, account_id, upload_id, stored, blob, replaces)

    async def blobs_in_use(self) -> set[str]:
        """Of all accounts' objects and parts."""
        return await self._read(objects.blobs_in_use)

    async def end_uploads_before(self, before: float) -> list[str]:
        """Forget all accounts' uploads that are older than that; their blobs."""
        return await self._write(objects.end_uploads_before, before)

    # ── logs of agents ────────────────────────────────────────────────────────────────────────

    async def append_agent_log(self, entries: Sequence[AgentLogEntry]) -> None:
        """Keep entries, in this order; their `seq` is given here."""
        await self._write(agent_logs.append, entries)

    async def agent_log(
        self,
        account_id: str,
        agent: str,
        *,
        after: int = 0,
        limit: int = 1000,
        since: float | None = None,
        until: float | None = None,
    ) -> list[AgentLogEntry]:
        """Entries with seq > `after`, in order; of times from `since` and before `until`."""
        return await self._read(agent_logs.page, account_id, agent, after, limit, since, until)

    async def trim_agent_log(self, account_id: str, agent: str, *, keep: int) -> None:
        """Remove all but the newest `keep` entries of an agent."""
        await self._write(agent_logs.trim, account_id, agent, keep)

    # ── traces of remote rollouts ─────────────────────────────────────────────────────────────

    async def add_traced(self, noun: TracedCall | TracedLog) -> None:
        """Keep a call or an entry with its tags; its `seq` is given here."""
        await self._write(traces.add, noun)

    async def traced_calls(self, account_id: str, query: TraceQuery) -> list[TracedCall]:
        """A page, the newest first."""
        return await self._read(traces.calls, account_id, query)

    async def traced_logs(self, account_id: str, query: TraceQuery) -> list[TracedLog]:
        """A page, the newest first."""
        return await self._read(traces.logs, account_id, query)

    async def drop_traces(self, before: float, *, limit: int) -> int:
        """Remove up to `limit` calls and as many entries of before a time; how many it were."""
        return await self._write(traces.drop, before, limit)
