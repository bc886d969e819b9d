import asyncio
from dataclasses import replace
from typing import Any

import pytest

from tests import builders
from tests.builders import ACCOUNT
from tests.unit.control.kit import ADMIN
from turnwise import errors
from turnwise.control.browse import Browse, Point
from turnwise.domain.access import Principal
from turnwise.domain.event import EventDraft, EventKind
from turnwise.domain.job import Job
from turnwise.domain.ledger import TokenUsage
from turnwise.domain.rollout import Policy, Purpose, RolloutStatus
from turnwise.ports import (
    Excerpt,
    FinishedStep,
    JobQuery,
    LogQuery,
    ModelPackage,
    RolloutCursor,
    RolloutQuery,
    RolloutSort,
)
from turnwise.storage.sql import SqlStore

STRANGER = Principal(account_id="acc_other")
OF_OTHER_JOB = Principal(account_id=ACCOUNT, job_ids=frozenset({"job_run"}))


@pytest.fixture
async def job(store: SqlStore) -> Job:
    return await store.create_job(builders.job())


async def append(store: SqlStore, kind: EventKind, **body: Any) -> None:
    await store.append(ACCOUNT, "job_walk", [EventDraft(kind=kind, body=body)])


async def register(store: SqlStore) -> ModelPackage:
    package = builders.package(package_id="package_a", path="/blobs/a")
    done = FinishedStep(
        step=0,
        policy=Policy(),
        groups=(),
        bins={},
        checkpoint=None,
        packages=(package,),
        events=(),
    )
    await store.finish_step(ACCOUNT, "job_walk", done)
    return package


async def test_a_waiting_reader_wakes_with_the_event(store: SqlStore, job: Job):
    waiting = asyncio.create_task(Browse(store).events(ADMIN, "walk", wait_s=5))
    await asyncio.sleep(0.02)
    await append(store, EventKind.LOG, message="now")

    (event,) = await asyncio.wait_for(waiting, 1)

    assert (event.seq, event.body) == (1, {"message": "now"})


async def test_a_reader_of_one_kind_sleeps_through_the_others(store: SqlStore, job: Job):
    kinds = [EventKind.METRICS]
    await append(store, EventKind.LOG, message="before")
    waiting = asyncio.create_task(Browse(store).events(ADMIN, "walk", kinds=kinds, wait_s=5))
    await asyncio.sleep(0.02)
    await append(store, EventKind.LOG, message="between")
    await asyncio.sleep(0.02)
    assert not waiting.done()
    await append(store, EventKind.METRICS, step=0, values={})

    assert [event.seq for event in await asyncio.wait_for(waiting, 1)] == [3]


async def test_a_reader_without_news_gets_nothing_after_its_wait(store: SqlStore, job: Job):
    await append(store, EventKind.LOG, message="old")
    assert await Browse(store).events(ADMIN, "walk", after=1, wait_s=0.02) == []


async def test_curves_take_the_later_record_of_a_step_and_the_names_asked_for(
    store: SqlStore, job: Job
):
    await append(store, EventKind.METRICS, step=0, values={"training/loss": 1.0})
    await append(store, EventKind.METRICS, step=1, values={"training/loss": 0.5, "val/x": 3})
    await append(store, EventKind.METRICS, step=1, values={"training/loss": 0.25})
    browse = Browse(store)

    assert await browse.metrics(ADMIN, "walk") == {
        "training/loss": [Point(1, 0, 1.0), Point(3, 1, 0.25)],
        "val/x": [Point(2, 1, 3.0)],
    }
    assert set(await browse.metrics(ADMIN, "walk", names=["val/"])) == {"val/x"}


async def test_rollouts_and_trajectories_are_found_by_the_jobs_name(store: SqlStore, job: Job):
    await store.open_group(builders.group())
    await store.open_rollouts([builders.rollout()])
    browse = Browse(store)

    (summary,) = await browse.rollouts(ADMIN, RolloutQuery(job_id="walk"))

    assert summary.rollout == builders.rollout()
    assert (await browse.trajectory(ADMIN, "rol_a")).rollout == builders.rollout()
    assert await browse.ledger(ADMIN, "walk") == {}
    assert await browse.usage(ADMIN, "walk") == TokenUsage()


async def test_models_are_found_by_id_version_and_group(store: SqlStore, job: Job):
    package = await register(store)
    browse = Browse(store)

    assert await browse.packages(ADMIN) == [package]
    for name in ("package_a", "walk/1", "walk"):
        assert await browse.package(ADMIN, name) == package
    with pytest.raises(errors.NotFound) as missing:
        await browse.package(ADMIN, "walk/2")
    assert str(missing.value) == (
        "model 'walk/2' does not exist; `turnwise models list` shows what is registered"
    )


async def test_what_validation_measured_of_a_model_is_found_while_its_job_is_there(
    store: SqlStore, job: Job
):
    package = await register(store)
    browse = Browse(store)
    assert await browse.validation(package) == {}
    for step, purpose, reward in (
        (0, "validation", 0.1),
        (1, "validation", 0.2),
        (1, "evaluation", 0.9),
        (2, "validation", 0.3),
    ):
        values = {"val/reward/mean": reward}
        await append(store, EventKind.EVALUATION, step=step, purpose=purpose, values=values)

    assert await browse.validation(package) == {"val/reward/mean": 0.2}
    await append(store, EventKind.STATUS, status="STOPPED")
    await store.delete_job(ACCOUNT, "job_walk")
    assert await browse.validation(package) == {}


async def test_nothing_is_shown_to_another_account_or_to_a_key_of_another_job(
    store: SqlStore, job: Job
):
    await store.open_group(builders.group())
    await store.open_rollouts([builders.rollout()])
    await register(store)
    browse = Browse(store)

    for principal, error in ((STRANGER, errors.NotFound), (OF_OTHER_JOB, errors.Denied)):
        for read in (
            browse.events(principal, "walk"),
            browse.metrics(principal, "walk"),
            browse.ledger(principal, "walk"),
            browse.usage(principal, "walk"),
            browse.rollouts(principal, RolloutQuery(job_id="walk")),
            browse.trajectory(principal, "rol_a"),
            browse.package(principal, "walk"),
        ):
            with pytest.raises(error):
                await read
        assert await browse.packages(principal) == []


# ── lists ─────────────────────────────────────────────────────────────────────────────────────


async def with_rollouts(store: SqlStore, *names: str) -> None:
    for slot, name in enumerate(names):
        await store.open_rollouts([builders.rollout(f"rol_{name}", slot=slot)])
        await store.commit_turn(ACCOUNT, f"rol_{name}", *builders.turn_with_nodes())
        await store.move_rollout(
            ACCOUNT,
            f"rol_{name}",
            [RolloutStatus.PENDING],
            status=RolloutStatus.REWARDED,
            rewards=(float(slot),),
            ended_at=1010.0,
        )


async def test_a_page_of_rollouts_has_excerpts_and_says_where_to_go_on(store: SqlStore, job: Job):
    await with_rollouts(store, "a", "b", "c")
    browse = Browse(store)
    query = RolloutQuery(job_id="walk", sort=RolloutSort.REWARD, descending=True, limit=2)

    first = await browse.rollout_page(ADMIN, query)
    rest = await browse.rollout_page(ADMIN, replace(query, after=first.next))

    ids = [[row.summary.rollout.rollout_id for row in page.rows] for page in (first, rest)]
    assert ids == [["rol_c", "rol_b"], ["rol_a"]]
    assert first.rows[0].excerpt == Excerpt(prompt="question 0", reply="answer 0")
    assert (first.next, rest.next) == (RolloutCursor(1.0, 2), None)
    assert (await browse.rollout_page(ADMIN, replace(query, limit=3))).next is None


async def test_counts_samples_and_groups_are_read_by_the_jobs_name(store: SqlStore, job: Job):
    await with_rollouts(store, "a", "b")
    browse = Browse(store)

    histogram = await browse.histogram(ADMIN, RolloutQuery(job_id="walk"), bins=2)
    (tally,) = await browse.tally(ADMIN, "walk")
    drawn = await browse.random_rollouts(ADMIN, "walk", 0, Purpose.TRAIN)
    siblings = await browse.group(ADMIN, "grp_a")

    assert (histogram.edges, histogram.counts) == ((0.0, 1.0, 2.0), (1, 1))
    assert tally.count == 2
    assert {row.summary.rollout.rollout_id for row in drawn} == {"rol_a", "rol_b"}
    assert {row.excerpt.reply for row in drawn} == {"answer 0"}
    assert [each.rollout.rollout_id for each in siblings] == ["rol_a", "rol_b"]
    with pytest.raises(errors.NotFound, match="group 'grp_z'"):
        await browse.group(ADMIN, "grp_z")


async def test_the_log_and_new_metrics_are_read_by_the_jobs_name(store: SqlStore, job: Job):
    await append(store, EventKind.LOG, message="one")
    await append(store, EventKind.METRICS, step=0, values={"training/loss": 1.0})
    browse = Browse(store)
    log = await browse.log_events(ADMIN, LogQuery(job_id="walk", text="ONE"))
    assert [event.seq for event in log] == [1]
    assert [event.seq for event in await browse.metrics_since(ADMIN, "walk")] == [2]


async def test_who_may_see_certain_jobs_lists_these_alone(store: SqlStore, job: Job):
    await store.create_job(builders.job("run"))
    await store.create_job(builders.job("far", account_id="acc_other"))
    browse = Browse(store)

    async def listed(principal: Principal, **query: Any) -> list[str]:
        asked = JobQuery(**({"account_id": "acc_other"} | query))
        return [each.name for each in await browse.job_page(principal, asked)]

    assert await listed(ADMIN) == ["run", "walk"]  # of its own account, whatever is asked for
    assert await listed(OF_OTHER_JOB) == ["run"]
    assert await listed(OF_OTHER_JOB, job_ids=frozenset({"job_walk"})) == []
    with pytest.raises(errors.Denied):
        await listed(Principal(account_id=ACCOUNT, actions=frozenset()))


async def test_lists_of_a_job_are_refused_like_the_job(store: SqlStore, job: Job):
    await with_rollouts(store, "a")
    browse = Browse(store)
    for principal, refusal in ((STRANGER, errors.NotFound), (OF_OTHER_JOB, errors.Denied)):
        for asked in (
            browse.rollout_page(principal, RolloutQuery(job_id="walk")),
            browse.histogram(principal, RolloutQuery(job_id="walk")),
            browse.tally(principal, "walk"),
            browse.random_rollouts(principal, "walk", 0, Purpose.TRAIN),
            browse.log_events(principal, LogQuery(job_id="walk")),
            browse.metrics_since(principal, "walk"),
            browse.group(principal, "grp_a"),
        ):
            with pytest.raises(refusal):
                await asked
