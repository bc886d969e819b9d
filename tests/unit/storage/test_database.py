"""The SQL store's database: migrations, portability, a full disk, a held file."""

import asyncio
import sqlite3
import stat
import threading
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from sqlalchemy import Connection, create_engine, event
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.schema import CreateIndex, CreateTable

from tests.builders import ACCOUNT, group, job, rollout, turn_with_nodes
from turnwise import errors
from turnwise.domain.event import Event, EventDraft, EventKind
from turnwise.domain.job import CheckpointSpec, Job, JobKind, JobStatus
from turnwise.domain.rollout import Blame, Fault, Node, Rollout, RolloutStatus, Turn
from turnwise.ports import JobQuery, LogQuery, RolloutQuery, RolloutSort
from turnwise.storage import database, jobs, rollouts
from turnwise.storage.database import memory_engine, migrate, open_engine
from turnwise.storage.rows import TABLES, from_rows, select_nouns, to_row
from turnwise.storage.sql import SqlStore
from turnwise.storage.tables import metadata, turns
from turnwise.storage.turns import CommitTurn
from turnwise.storage.writer import Writer
from turnwise.system import SYSTEM_CLOCK

LOG = EventDraft(kind=EventKind.LOG, body={"message": "hello"})


def test_the_migrations_make_exactly_the_tables(tmp_path: Path) -> None:
    engine = open_engine(tmp_path / "turnwise.db")
    migrate(engine)  # again: nothing is left to do
    opts = {"compare_type": True, "include_object": _is_no_search_index}
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts=opts)
        assert compare_metadata(context, metadata) == []
    engine.dispose()


def _is_no_search_index(_object: object, name: str, *_: object) -> bool:
    return not name.startswith("search_index")


def test_both_ways_to_a_database_make_it_searchable(tmp_path: Path) -> None:
    made = []
    for engine in (open_engine(tmp_path / "turnwise.db"), memory_engine()):
        with engine.connect() as connection:
            query = "SELECT sql FROM sqlite_master WHERE name = 'search_index'"
            made.append(connection.exec_driver_sql(query).scalar())
        engine.dispose()
    assert made[0] == made[1]
    assert "fts5" in made[0]


def test_a_database_from_before_usage_keeps_its_turns(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'turnwise.db'}"
    migrate(old := create_engine(url), "first")
    _, turn = turn_with_nodes()
    added = ("cached_tokens", "past_stop_tokens")
    row = {k: v for k, v in to_row(turn).items() if k not in added}
    with old.begin() as connection:
        connection.execute(turns.insert(), row | {"rollout_id": "rol_a", "account_id": ACCOUNT})
    old.dispose()

    engine = open_engine(tmp_path / "turnwise.db")
    with engine.connect() as connection:
        assert from_rows(Turn, connection.execute(select_nouns(Turn)).all()) == [turn]
    engine.dispose()


async def test_a_database_of_the_first_version_opens_with_all_it_holds(tmp_path: Path) -> None:
    path = tmp_path / "turnwise.db"
    config = Config()
    config.set_main_option("script_location", str(Path(database.__file__).parent / "migrations"))
    engine = create_engine(f"sqlite:///{path}")
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "first")
    engine.dispose()
    old = sqlite3.connect(path)
    old.execute(
        "INSERT INTO jobs (job_id, account_id, name, spec, status, secondary, message, incarnation,"
        " step, created_at, last_event) VALUES ('job_walk', ?, 'walk', ?, 'STOPPED', 'Stopped', '',"
        " 1, 1, 5.0, 0)",
        (ACCOUNT, '{"name": "walk", "model": "/m", "dataset": "/d.jsonl", "agent": {}}'),
    )
    old.execute(
        'INSERT INTO packages (package_id, account_id, "group", version, kind, path, sha256,'
        " base_model, job_id, step, created_at, metadata) VALUES ('pkg_a', ?, 'walk', 1, 'adapter',"
        " '/blobs/a', 'aa', '/m', 'job_walk', 0, 5.0, '{}')",
        (ACCOUNT,),
    )
    old.commit()
    old.close()

    store = SqlStore.open(path)
    found, package = await store.job(ACCOUNT, "walk"), await store.package(ACCOUNT, "walk")
    await store.close()

    assert (found.step, found.inputs, found.parent, found.output) == (1, None, "", "")
    assert (found.spec.resume_from, found.spec.checkpoints) == ("", CheckpointSpec())
    assert (package.metadata, package.pruned_at) == ({}, None)


def test_every_table_has_the_account() -> None:
    assert [table.name for table in metadata.tables.values() if "account_id" not in table.c] == []


def test_the_tables_and_the_hot_statements_compile_for_postgres() -> None:
    dialect = postgresql.psycopg.dialect()
    for table in metadata.sorted_tables:
        CreateTable(table).compile(dialect=dialect)
        for index in table.indexes:
            CreateIndex(index).compile(dialect=dialect)
    assert "%(its_id)s" in CommitTurn(dialect)._count


def test_the_database_file_is_the_owners_alone(tmp_path: Path) -> None:
    open_engine(tmp_path / "turnwise.db").dispose()
    assert stat.S_IMODE((tmp_path / "turnwise.db").stat().st_mode) == 0o600


def test_a_file_that_is_no_database_is_named(tmp_path: Path) -> None:
    path = tmp_path / "turnwise.db"
    path.write_text("something else " * 100)
    with pytest.raises(errors.Unavailable, match="the database failed: file is not a database"):
        open_engine(path)


def test_commits_are_synced(tmp_path: Path) -> None:
    engine = open_engine(tmp_path / "turnwise.db")
    with engine.connect() as connection:
        pragma = {
            name: connection.exec_driver_sql(f"PRAGMA {name}").scalar()
            for name in ("journal_mode", "synchronous", "busy_timeout")
        }
    engine.dispose()
    full = 2
    assert pragma == {"journal_mode": "wal", "synchronous": full, "busy_timeout": 30_000}


async def test_a_full_disk_fails_the_call_and_leaves_nothing_of_it(tmp_path: Path) -> None:
    engine = open_engine(tmp_path / "turnwise.db")
    store = SqlStore(engine, SYSTEM_CLOCK, readers=1)
    await store.create_job(job())
    await store.open_group(group())
    await store.open_rollouts([rollout(f"rol_{n}", slot=n) for n in range(3)])
    await store.close()

    @event.listens_for(engine, "connect")
    def limit(connection: sqlite3.Connection, _record: object) -> None:
        connection.execute("PRAGMA max_page_count = 100")

    store = SqlStore(engine, SYSTEM_CLOCK, readers=1)
    small = turn_with_nodes()
    large = turn_with_nodes(prompt=range(400_000))
    outcomes = await asyncio.gather(
        store.commit_turn(ACCOUNT, "rol_0", *small),
        store.commit_turn(ACCOUNT, "rol_1", *large),
        store.commit_turn(ACCOUNT, "rol_2", *small),
        return_exceptions=True,
    )
    assert [type(outcome) for outcome in outcomes] == [type(None), errors.StorageFull, type(None)]
    assert "the device of the database is full" in str(outcomes[1])
    turns = [len((await store.trajectory(ACCOUNT, f"rol_{n}")).turns) for n in range(3)]
    assert turns == [1, 0, 1]
    await store.close()


async def test_a_lost_connection_fails_its_own_call_and_the_writer_goes_on(tmp_path: Path) -> None:
    writer = Writer(open_engine(tmp_path / "turnwise.db"))

    def loses(connection: Connection) -> None:
        connection.invalidate()
        raise ConnectionError("the database has gone")

    outcomes = await asyncio.wait_for(
        asyncio.gather(
            *(writer.submit(call) for call in (lambda c: 1, loses, lambda c: 2)),
            return_exceptions=True,
        ),
        5,
    )
    assert [repr(o) for o in outcomes] == ["1", "ConnectionError('the database has gone')", "2"]
    writer.close()


async def test_reads_do_not_wait_for_the_writer(tmp_path: Path) -> None:
    store = SqlStore.open(tmp_path / "turnwise.db")
    await store.create_job(job())
    holder = sqlite3.connect(tmp_path / "turnwise.db")
    holder.execute("BEGIN IMMEDIATE")
    append = asyncio.create_task(store.append(ACCOUNT, "job_walk", [LOG]))
    await asyncio.sleep(0)
    assert await store.events(ACCOUNT, "job_walk") == []
    assert not append.done()
    holder.close()
    assert [e.seq for e in await append] == [1]
    await store.close()


async def test_the_log_is_moved_into_the_file_while_turns_are_committed(tmp_path: Path) -> None:
    store = SqlStore.open(tmp_path / "turnwise.db")
    await store.create_job(job())
    size = (tmp_path / "turnwise.db").stat().st_size
    while (tmp_path / "turnwise.db").stat().st_size == size:
        await asyncio.gather(*(store.append(ACCOUNT, "job_walk", [LOG]) for _ in range(64)))
    await store.close()


async def test_a_value_that_is_not_json_is_refused_and_nothing_kept() -> None:
    store = SqlStore.in_memory()
    await store.create_job(job())
    draft = EventDraft(kind=EventKind.LOG, body={"message": object()})
    with pytest.raises(Exception, match="object cannot be stored as JSON"):
        await store.append(ACCOUNT, "job_walk", [draft])
    assert await store.events(ACCOUNT, "job_walk") == []
    await store.close()


# ── what can be searched ──────────────────────────────────────────────────────────────────────


def _indexed(path: Path) -> tuple[int, int, int]:
    """Transcripts, terms of the search index, jobs whose transcripts are still to be removed."""
    with closing(sqlite3.connect(path)) as read:
        read.execute("CREATE VIRTUAL TABLE temp.terms USING fts5vocab(main, search_index, row)")
        counts = [
            read.execute(f"SELECT count(*) FROM {table}").fetchone()[0]
            for table in ("transcripts", "temp.terms", "deleted_jobs")
        ]
    return counts[0], counts[1], counts[2]


async def _ended(store: SqlStore, rollout_id: str = "rol_a") -> None:
    """job_walk, and in it a rollout of one turn that failed late."""
    await store.create_job(job())
    await store.open_rollouts([rollout(rollout_id)])
    await store.commit_turn(ACCOUNT, rollout_id, *turn_with_nodes())
    await store.move_rollout(
        ACCOUNT,
        rollout_id,
        [RolloutStatus.PENDING],
        status=RolloutStatus.FAILED,
        fault=Fault(blame=Blame.AGENT, code="deadline"),
        rewards=(0.1,) * 10,
        ended_at=1060.0,
    )
    metrics = {"step": 4, "values": {"rollout/reward/mean": 0.5}}
    await store.append(ACCOUNT, "job_walk", [EventDraft(kind=EventKind.METRICS, body=metrics)])


async def _found(store: SqlStore, query: RolloutQuery) -> list[str]:
    found = await store.rollouts(ACCOUNT, query)
    return [each.rollout.rollout_id for each in found]


async def test_a_database_from_before_pages_is_listed_and_searched_like_a_new_one(
    tmp_path: Path,
) -> None:
    path = tmp_path / "turnwise.db"
    migrate(old := create_engine(f"sqlite:///{path}"), "audit")
    old.dispose()
    new = SqlStore.in_memory()
    await _ended(new)
    kept = {
        kind: await new._read(lambda c, kind=kind: [to_row(n) for n in _all_of(c, kind)])
        for kind in (Job, Rollout, Node, Event)
    }
    await new.close()
    with closing(sqlite3.connect(path)) as write, write:
        for kind, rows in kept.items():
            _insert_as_before(write, kind, rows)

    store = SqlStore.open(path)
    query = RolloutQuery(job_id="job_walk", text="question", fault_code="deadline", reward_ge=1.0)
    async with asyncio.timeout(30):
        while await _found(store, query) != ["rol_a"]:
            await asyncio.sleep(0.01)
    longest = replace(query, sort=RolloutSort.DURATION, descending=True)
    (summary,) = await store.rollouts(ACCOUNT, longest)
    (listed,) = await store.job_page(JobQuery(account_id=ACCOUNT, kind=JobKind.TRAIN))
    (event,) = await store.log_events(ACCOUNT, LogQuery(job_id="job_walk", step=4))
    await store.close()

    assert summary.cursor(RolloutSort.DURATION).value == 60.0
    assert (listed.model, listed.output_group, listed.max_steps) == ("/models/tiny", "walk", 50)
    assert (listed.latest_reward, event.kind) == (0.5, EventKind.METRICS)


def _all_of(connection: Connection, kind: type) -> list[object]:
    return from_rows(kind, connection.execute(select_nouns(kind)).all())


def _insert_as_before(write: sqlite3.Connection, kind: type, rows: list[dict]) -> None:
    """Rows as the version before wrote them: the noun's own columns, and counters."""
    table = TABLES[kind]
    counters = {Rollout: {"turns": 1, "tokens": 2}, Node: {"rollout_id": "rol_a"}}
    accounts = {Event: {"account_id": ACCOUNT}, Node: {"account_id": ACCOUNT}}
    more = {**counters.get(kind, {}), **accounts.get(kind, {})}
    dialect = sqlite.dialect()
    had = {name for _, name, *_ in write.execute(f"PRAGMA table_info({table.name})")}
    for row in rows:
        values = row | more | ({"last_event": 1} if kind is Job else {})
        values = {name: value for name, value in values.items() if name in had}
        stored = {
            name: process(value)
            if (process := table.c[name].type.dialect_impl(dialect).bind_processor(dialect))
            else value
            for name, value in values.items()
        }
        columns = ", ".join(f'"{name}"' for name in stored)
        marks = ", ".join("?" * len(stored))
        statement = f"INSERT INTO {table.name} ({columns}) VALUES ({marks})"
        write.execute(statement, tuple(stored.values()))


async def test_nothing_of_a_deleted_job_stays_to_be_searched(tmp_path: Path) -> None:
    path = tmp_path / "turnwise.db"
    store = SqlStore.open(path)
    await _ended(store)
    await store.make_searchable()
    assert _indexed(path)[0] == 1
    stopped = EventDraft(kind=EventKind.STATUS, body={"status": JobStatus.STOPPED})
    await store.append(ACCOUNT, "job_walk", [stopped])
    await store.delete_job(ACCOUNT, "job_walk")
    await _ended(store, "rol_b")  # of a job of the same id
    await store.make_searchable()
    query = RolloutQuery(job_id="job_walk", text="question")
    assert await _found(store, query) == ["rol_b"]
    await store.append(ACCOUNT, "job_walk", [stopped])
    await store.delete_job(ACCOUNT, "job_walk")
    await store.make_searchable()
    await store.close()
    assert _indexed(path) == (0, 0, 0)


async def test_what_ended_before_a_kill_is_searched_after_the_next_start(tmp_path: Path) -> None:
    path = tmp_path / "turnwise.db"
    engine = open_engine(path)
    writer = Writer(engine)  # without the work: as if the process had ended before it
    opened = rollout(status=RolloutStatus.FAILED, ended_at=1060.0)
    await writer.submit(lambda c: jobs.create(c, job(), ()))
    await writer.submit(lambda c: rollouts.open_all(c, [opened]))
    nodes, _ = turn_with_nodes()
    rows = [to_row(node, rollout_id="rol_a", account_id=ACCOUNT) for node in nodes]
    await writer.submit(lambda c: c.execute(TABLES[Node].insert(), rows))
    writer.close()
    engine.dispose()
    assert _indexed(path) == (0, 0, 0)

    store = SqlStore.open(path)
    query = RolloutQuery(job_id="job_walk", text="answer")
    async with asyncio.timeout(30):
        while await _found(store, query) != ["rol_a"]:
            await asyncio.sleep(0.01)
    await store.close()


# ── work that can wait ────────────────────────────────────────────────────────────────────────


async def test_work_waits_for_calls_and_is_done_piece_by_piece(tmp_path: Path) -> None:
    done: list[str] = []
    finished = threading.Event()

    def work(connection: Connection) -> bool:
        done.append("work")
        if done.count("work") == 3:
            finished.set()
        return done.count("work") < 3

    writer = Writer(open_engine(tmp_path / "turnwise.db"), work=work)
    calls = [writer.submit(lambda c: done.append("call")) for _ in range(100)]
    await asyncio.gather(*calls)
    assert await asyncio.to_thread(finished.wait, 30)
    writer.close()
    assert done == ["call"] * 100 + ["work"] * 3


async def test_work_that_fails_is_put_off_and_harms_no_call(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tried: list[int] = []

    def work(connection: Connection) -> bool:
        connection.exec_driver_sql("CREATE TABLE half_done (a)")
        tried.append(1)
        raise errors.StorageFull("no room")

    engine = open_engine(tmp_path / "turnwise.db")
    writer = Writer(engine, work=work)
    for count in (1, 2):
        async with asyncio.timeout(30):
            while len(tried) < count:
                await asyncio.sleep(0.01)
        assert await writer.submit(lambda c: "kept") == "kept"
        writer.work_later()
    writer.close()
    assert "what can wait was put off: no room" in caplog.text
    with engine.connect() as connection:
        tables = connection.exec_driver_sql("SELECT name FROM sqlite_master").scalars().all()
    engine.dispose()
    assert "half_done" not in tables
