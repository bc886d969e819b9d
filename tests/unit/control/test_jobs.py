import asyncio
import dataclasses
import functools
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event

from tests import builders
from tests.builders import ACCOUNT
from tests.unit.control.kit import ADMIN, World
from turnwise import errors
from turnwise.control.jobs import RECORD_AGAIN_S
from turnwise.control.queue import Limits
from turnwise.domain.access import Action, Principal
from turnwise.domain.event import Event
from turnwise.domain.job import EvaluationSpec, Job, JobKind, JobStatus, Secondary
from turnwise.domain.resource import Resource
from turnwise.domain.rollout import Policy
from turnwise.ports import FinishedStep, ModelPackage
from turnwise.storage.database import open_engine
from turnwise.storage.sql import SqlStore
from turnwise.system import SYSTEM_CLOCK
from turnwise.training.checkpoint import folder_sha256

EVALUATION = JobKind.EVALUATION


async def status_events(store: SqlStore, name: str) -> list[tuple[str, str]]:
    job = await store.job(ACCOUNT, name)
    events: list[Event] = await store.events(ACCOUNT, job.job_id)
    return [(event.body["status"], event.body["secondary"]) for event in events]


def package(world: World, job_id: str = "job_a") -> ModelPackage:
    return builders.package(
        package_id="package_a",
        kind="checkpoint",
        path=str(world.folder / "checkpoint"),
        sha256=builders.ZERO_SHA256,
        base_model=str(world.folder / "model"),
        job_id=job_id,
    )


async def register(world: World, package: ModelPackage) -> None:
    """Finish a step of the package's job, as its loop would, which registers the package."""
    adapter = Path(package.path) / "adapter"
    adapter.mkdir(parents=True)
    (adapter / "adapter_config.json").write_text("{}")
    package = dataclasses.replace(package, sha256=folder_sha256(Path(package.path)))
    done = FinishedStep(
        step=0,
        policy=Policy(adapter_id=builders.ZERO_SHA256, policy_step=1),
        groups=(),
        bins={},
        checkpoint=None,
        packages=(package,),
        events=(),
    )
    await world.store.finish_step(ACCOUNT, package.job_id, done)


async def test_a_job_runs_at_once_where_there_is_a_place_and_ends_with_its_loop(world: World):
    created = await world.jobs.create(ADMIN, world.spec("walk"))
    assert (created.job_id, created.status) == ("job_a", JobStatus.RUNNING)

    (await world.running("walk")).end()

    ended = await world.until("walk", JobStatus.COMPLETED)
    assert ended.secondary is Secondary.COMPLETED
    assert await status_events(world.store, "walk") == [
        ("PENDING", "Pending"),
        ("RUNNING", "Starting"),
        ("COMPLETED", "Completed"),
    ]


async def test_waiting_jobs_show_their_place_and_run_oldest_first(world: World):
    await world.create("first", "second", "third")
    messages = {job.name: job.message for job in await world.jobs.list(ADMIN)}
    assert messages == {
        "first": "",
        "second": "waiting for a place: 0 ahead of it, 1 running",
        "third": "waiting for a place: 1 ahead of it, 1 running",
    }

    (await world.running("first")).end()
    await world.running("second")

    assert await world.statuses() == {
        "first": "COMPLETED",
        "second": "RUNNING",
        "third": "PENDING",
    }


async def test_jobs_created_at_the_same_moment_never_take_more_than_the_places(
    tmp_path: Path, store: SqlStore
):
    world = World(tmp_path, store, max_running=3)
    names = [f"job{number}" for number in range(8)]
    await asyncio.gather(*(world.create(name) for name in names))

    statuses = list((await world.statuses()).values())
    started = [await status_events(store, name) for name in names]
    await world.jobs.close()

    assert sorted(statuses) == ["PENDING"] * 5 + ["RUNNING"] * 3
    assert max(events.count(("RUNNING", "Starting")) for events in started) == 1


async def test_a_waiting_job_that_is_stopped_never_starts(world: World):
    await world.create("first", "second")
    stopped = await world.jobs.stop(ADMIN, "second")
    assert (stopped.status, stopped.message) == (JobStatus.STOPPED, "")

    (await world.running("first")).end()
    await world.until("first", JobStatus.COMPLETED)

    assert set(world.loops) == {"first"}


async def test_a_job_that_is_stopped_while_it_starts_ends_as_soon_as_it_has(world: World):
    world.may_start.clear()
    await world.create("walk")
    stopping = await world.jobs.stop(ADMIN, "walk")
    assert stopping.status is JobStatus.STOPPING

    world.may_start.set()

    await world.until("walk", JobStatus.STOPPED)


async def test_a_running_job_stops_and_frees_its_place(world: World):
    await world.create("first", "second")
    await world.running("first")

    await world.jobs.stop(ADMIN, "first")

    await world.until("first", JobStatus.STOPPED)
    await world.running("second")
    assert (await status_events(world.store, "first"))[-2:] == [
        ("STOPPING", "Stopping"),
        ("STOPPED", "Stopped"),
    ]


async def test_stopping_twice_is_one_stop_and_an_ended_job_cannot_be_stopped(world: World):
    world.may_start.clear()
    await world.create("walk")
    await world.jobs.stop(ADMIN, "walk")
    assert (await world.jobs.stop(ADMIN, "walk")).status is JobStatus.STOPPING
    world.may_start.set()
    await world.until("walk", JobStatus.STOPPED)

    with pytest.raises(errors.Conflict, match="a job that is STOPPED cannot become STOPPING"):
        await world.jobs.stop(ADMIN, "walk")


async def test_stopped_and_failed_jobs_resume_and_others_do_not(world: World):
    await world.create("walk")
    with pytest.raises(errors.Conflict, match="job 'walk' is RUNNING; stop it first"):
        await world.jobs.resume(ADMIN, "walk")
    (await world.running("walk")).end(JobStatus.FAILED)
    await world.until("walk", JobStatus.FAILED)

    world.loops.clear()
    await world.jobs.resume(ADMIN, "walk")
    (await world.running("walk")).end(JobStatus.COMPLETED)
    await world.until("walk", JobStatus.COMPLETED)

    with pytest.raises(errors.Conflict, match="a job that is COMPLETED cannot become PENDING"):
        await world.jobs.resume(ADMIN, "walk")


async def test_a_start_that_fails_says_why_and_the_next_job_runs(world: World):
    world.broken["first"] = errors.Unavailable("the engine did not start: no memory")
    await world.create("first", "second")

    failed = await world.until("first", JobStatus.FAILED)
    await world.running("second")

    assert (failed.secondary, failed.message) == (
        Secondary.FAILED,
        "the engine did not start: no memory",
    )


async def test_a_loop_that_breaks_fails_its_job_with_the_kind_of_error(world: World):
    await world.create("walk")
    (await world.running("walk")).break_down(ZeroDivisionError("no rows"))

    failed = await world.until("walk", JobStatus.FAILED)

    assert failed.message == "ZeroDivisionError: no rows"


async def test_a_failure_that_a_full_disk_keeps_from_being_recorded_is_once_there_is_room(
    tmp_path: Path,
):
    engine = open_engine(tmp_path / "turnwise.db")
    engine.dispose()
    connections: list[sqlite3.Connection] = []
    event.listen(engine, "connect", lambda connection, _: connections.append(connection))
    store = SqlStore(engine, SYSTEM_CLOCK, readers=1)
    world = World(tmp_path, store)
    await world.create("walk")
    loop = await world.running("walk")
    for connection in connections:
        connection.execute("PRAGMA max_page_count = 1")  # it may not grow
    loop.break_down(errors.StorageFull("no room for checkpoint ".ljust(100_000)))
    tried_until = world.clock.at + 2 * RECORD_AGAIN_S
    async with asyncio.timeout(30):
        while world.clock.at < tried_until:
            await asyncio.sleep(0)
    assert await world.statuses() == {"walk": "RUNNING"}

    for connection in connections:
        connection.execute("PRAGMA max_page_count = 1000000")
    failed = await world.until("walk", JobStatus.FAILED)

    assert failed.message.startswith("no room for checkpoint")
    await world.jobs.close()
    await store.close()


async def test_a_restarted_server_continues_what_ran_and_then_fills_its_places(
    tmp_path: Path, store: SqlStore
):
    before = World(tmp_path, store, max_running=2)
    await before.create("ran", "stopped", "waited")
    await before.running("ran")
    await before.running("stopped")
    before.loops["stopped"].request_stop = lambda: None  # the server ends before it has
    await before.jobs.stop(ADMIN, "stopped")
    await before.jobs.close()
    assert await before.statuses() == {
        "ran": "RUNNING",
        "stopped": "STOPPING",
        "waited": "PENDING",
    }

    after = World(tmp_path, store, max_running=2)
    await after.jobs.recover()
    await after.running("ran")
    await after.running("waited")
    statuses = await after.statuses()
    await after.jobs.close()

    assert statuses == {"ran": "RUNNING", "stopped": "STOPPED", "waited": "RUNNING"}
    assert (await status_events(store, "ran"))[-1] == ("RUNNING", "Restarting")


async def test_a_job_is_deleted_once_it_has_ended_and_its_models_stay(world: World):
    await world.create("walk")
    loop = await world.running("walk")
    await register(world, package(world))
    with pytest.raises(errors.Conflict, match="job 'walk' is RUNNING and cannot be deleted"):
        await world.jobs.delete(ADMIN, "walk")
    loop.end()
    await world.until("walk", JobStatus.COMPLETED)

    deleted = await world.jobs.delete(ADMIN, "walk")

    assert deleted.name == "walk"
    with pytest.raises(errors.NotFound, match="job 'walk' does not exist"):
        await world.jobs.describe(ADMIN, "walk")
    assert (await world.store.package(ACCOUNT, "walk/1")).job_id == deleted.job_id
    assert (world.folder / "checkpoint" / "adapter" / "adapter_config.json").is_file()


async def test_a_taken_name_is_refused(world: World):
    await world.create("walk")
    with pytest.raises(errors.Conflict, match="a job named 'walk' exists already"):
        await world.create("walk")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"model": "/nowhere"},
            "model: '/nowhere' is not a model folder; give a Hugging Face folder with "
            "config.json and a tokenizer",
        ),
        (
            {"dataset": "/nowhere.jsonl"},
            "dataset: '/nowhere.jsonl' cannot be read: No such file or directory; check the path",
        ),
        (
            {"validation_dataset": "/rows.xml"},
            "validation_dataset: '/rows.xml' has an unknown format; use .jsonl, .json, .csv, "
            ".parquet",
        ),
        (
            {"input_adapter": "run/3"},
            "input_adapter: 'run/3' is neither a PEFT folder nor a registered model; give a "
            "folder's absolute path, or a name of `turnwise models list`",
        ),
        (
            {"input_adapter": "/nowhere"},
            "input_adapter: '/nowhere' is neither a PEFT folder nor a registered model; give a "
            "folder's absolute path, or a name of `turnwise models list`",
        ),
    ],
)
async def test_files_that_cannot_be_used_are_refused_before_anything_is_stored(
    world: World, changes: dict[str, str], message: str
):
    with pytest.raises(errors.InvalidInput) as refused:
        await world.jobs.create(ADMIN, world.spec("walk", **changes))

    assert str(refused.value) == message
    assert await world.statuses() == {}


async def test_the_models_to_evaluate_are_found_and_fixed_to_their_versions(world: World):
    await world.create("run")
    await register(world, package(world))
    tuned = str(world.folder / "checkpoint" / "adapter")

    async def models(**changes: Any) -> tuple[str, ...]:
        spec = world.spec(f"eval-{len(await world.jobs.list(ADMIN))}", kind=EVALUATION, **changes)
        return (await world.jobs.create(ADMIN, spec)).spec.evaluation.models

    several = EvaluationSpec(models=("walk", "base", tuned))
    assert await models(evaluation=several) == ("walk/1", "base", tuned)
    assert await models(input_adapter="walk") == ("walk/1",)
    assert await models() == ("base",)


@pytest.mark.parametrize(
    ("models", "message"),
    [
        (
            ("base", "beside"),
            "evaluation.models[1]: 'beside' is neither a registered model nor a PEFT folder; give "
            "'base', a name of `turnwise models list`, or a folder's absolute path",
        ),
        (
            ("walk/1", "walk"),
            "evaluation.models[1]: 'walk' is there twice; each model is needed once",
        ),
    ],
)
async def test_models_that_cannot_be_evaluated_are_refused(
    world: World, models: tuple[str, ...], message: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(world.folder)
    (world.folder / "beside").mkdir()  # the server's own working directory is nobody's business
    (world.folder / "beside" / "adapter_config.json").write_text("{}")
    await world.create("run")
    await register(world, package(world))
    spec = world.spec("eval", kind=EVALUATION, evaluation=EvaluationSpec(models=models))
    with pytest.raises(errors.InvalidInput) as refused:
        await world.jobs.create(ADMIN, spec)

    assert str(refused.value) == message


READER = Principal(account_id=ACCOUNT, actions=frozenset({Action.READ}))
OF_FIRST = Principal(account_id=ACCOUNT, job_ids=frozenset({"job_a"}))
STRANGER = Principal(account_id="acc_other")


async def test_a_key_does_only_what_it_allows(world: World):
    await world.create("first", "second")
    with pytest.raises(errors.Denied, match="this key may not manage"):
        await world.jobs.create(READER, world.spec("third"))
    with pytest.raises(errors.Denied, match="this key may not manage job 'job_a'"):
        await world.jobs.stop(READER, "first")
    with pytest.raises(errors.Denied, match="it may not create one"):
        await world.jobs.create(OF_FIRST, world.spec("third"))
    with pytest.raises(errors.Denied, match="this key may not read job 'job_b'"):
        await world.jobs.describe(OF_FIRST, "second")
    with pytest.raises(errors.NotFound, match="job 'first' does not exist"):
        await world.jobs.delete(STRANGER, "first")

    assert [job.name for job in await world.jobs.list(OF_FIRST)] == ["first"]
    assert list(await world.jobs.list(STRANGER)) == []


async def test_a_higher_priority_runs_first_and_shows_how_many_are_ahead(world: World):
    await world.create("first", "second", "third")
    await world.jobs.create(ADMIN, world.spec("urgent", priority=10))

    ahead = {job.name: job.ahead for job in await world.jobs.list(ADMIN)}
    assert ahead == {"first": None, "urgent": 0, "second": 1, "third": 2}
    assert (await world.jobs.describe(ADMIN, "third")).ahead == 2

    (await world.running("first")).end()
    await world.running("urgent")
    assert (await world.statuses())["second"] == "PENDING"


async def test_an_account_holds_no_more_places_than_its_limit(tmp_path: Path, store: SqlStore):
    world = World(tmp_path, store, limits=Limits(running=3, account_running=1))
    await world.create("first", "second")
    assert await world.statuses() == {"first": "RUNNING", "second": "PENDING"}

    (await world.running("first")).end()
    await world.running("second")
    await world.jobs.close()


async def test_of_jobs_created_at_once_within_a_quota_no_more_pass_than_it_has_room(
    tmp_path: Path, store: SqlStore
):
    limits = Limits(running=1, training_quota=2)
    world = World(tmp_path, store, limits=limits)

    async def create(name: str) -> Job | errors.LimitExceeded:
        try:
            return await world.jobs.create(ADMIN, world.spec(name), within_quota=True)
        except errors.LimitExceeded as refused:
            return refused

    made = await asyncio.gather(*(create(f"job{number}") for number in range(6)))

    assert sum(isinstance(one, Job) for one in made) == 2
    assert len(await world.jobs.list(ADMIN)) == 2
    with pytest.raises(errors.LimitExceeded, match="may have 2 unfinished training jobs"):
        await world.jobs.check_quota(ADMIN, JobKind.TRAIN)
    await world.jobs.check_quota(ADMIN, EVALUATION)
    await world.jobs.create(ADMIN, world.spec("waits"))  # this door lets it wait
    await world.jobs.close()


async def test_a_taken_name_is_a_conflict_even_where_the_quota_is_full(
    tmp_path: Path, store: SqlStore
):
    world = World(tmp_path, store, limits=Limits(running=1, training_quota=1))
    await world.jobs.create(ADMIN, world.spec("walk"), within_quota=True)
    with pytest.raises(errors.Conflict, match="'walk' exists already"):
        await world.jobs.create(ADMIN, world.spec("walk"), within_quota=True)
    await world.jobs.close()


async def test_jobs_that_have_ended_leave_room_in_the_quota(tmp_path: Path, store: SqlStore):
    world = World(tmp_path, store, limits=Limits(running=1, training_quota=1))
    await world.jobs.create(ADMIN, world.spec("walk"), within_quota=True)
    (await world.running("walk")).end()
    await world.until("walk", JobStatus.COMPLETED)

    await world.jobs.create(ADMIN, world.spec("run"), within_quota=True)
    await world.jobs.close()


async def test_a_job_whose_rows_are_read_at_its_start_is_made_of_any(world: World):
    (world.folder / "bad.jsonl").write_text("{")
    spec = world.spec("late", dataset=str(world.folder / "bad.jsonl"), prompt_column="messages")
    with pytest.raises(errors.InvalidInput, match="dataset line 1"):
        await world.jobs.create(ADMIN, spec)
    made = await world.jobs.create(ADMIN, spec, reads_rows=False)
    assert (made.name, made.spec.prompt_column) == ("late", "messages")


async def test_a_job_that_is_deleted_takes_the_records_of_every_door_along(world: World):
    async def records_of(kind: str, job: Job) -> list[tuple[str, str]]:
        return [(kind, job.name)]

    for kind in ("one-door", "another"):
        world.jobs.plug(functools.partial(records_of, kind))
        await world.store.create_resource(Resource(account_id=ACCOUNT, kind=kind, name="walk"))
    await world.create("walk")
    (await world.running("walk")).end()
    await world.until("walk", JobStatus.COMPLETED)
    await world.jobs.delete(ADMIN, "walk")
    for kind in ("one-door", "another"):
        assert await world.store.resources(ACCOUNT, kind) == []


async def test_a_key_is_told_the_places_of_the_waiting_jobs_that_it_may_see(world: World):
    await world.create("first", "second", "third")
    await world.running("first")
    jobs = {job.name: job.job_id for job in await world.jobs.list(ADMIN)}
    assert await world.jobs.ahead(ADMIN) == {jobs["second"]: 0, jobs["third"]: 1}
    narrow = dataclasses.replace(ADMIN, job_ids=frozenset({jobs["third"]}))
    assert await world.jobs.ahead(narrow) == {jobs["third"]: 1}
    stranger = dataclasses.replace(ADMIN, account_id="acc_other")
    assert await world.jobs.ahead(stranger) == {}
