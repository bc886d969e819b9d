"""What every `ports.Store` and `ports.Keys` must do, over each implementation."""

import asyncio
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests import builders
from tests.builders import ACCOUNT, SetClock, group, job, plain, rollout, spec, turn_with_nodes
from turnwise import errors
from turnwise.control.audit.record import Identity, Witnessed, draft
from turnwise.domain.access import Account, Action, Key
from turnwise.domain.audit import GENESIS, AuditDraft, AuditQuery, Sealer, chained
from turnwise.domain.event import Event, EventDraft, EventKind, Level
from turnwise.domain.job import EvaluationSpec, Inputs, Job, JobKind, JobStatus, Secondary
from turnwise.domain.ledger import TokenUsage
from turnwise.domain.objects import Part, StoredObject, Upload
from turnwise.domain.resource import Resource
from turnwise.domain.rollout import (
    Blame,
    Delivery,
    Fault,
    ForkCause,
    GroupStatus,
    Policy,
    Purpose,
    Rollout,
    RolloutStatus,
    Trajectory,
)
from turnwise.ports import FinishedStep, ModelPackage, Pruned, RolloutQuery
from turnwise.storage.sql import SqlStore

OTHER = "acc_other"


def status_event(status: JobStatus, **body: object) -> EventDraft:
    return EventDraft(kind=EventKind.STATUS, body={"status": status, **body})


def log_event(message: str) -> EventDraft:
    return EventDraft(kind=EventKind.LOG, body={"message": message})


async def with_job(store: SqlStore, *statuses: JobStatus) -> Job:
    made = await store.create_job(job())
    for status in statuses:
        await store.append(ACCOUNT, made.job_id, [status_event(status)])
    return await store.job(ACCOUNT, made.job_id)


async def with_group(store: SqlStore, *rollouts: Rollout) -> None:
    """job_walk with grp_a and these rollouts (by default one)."""
    await store.create_job(job())
    await store.open_group(group())
    await store.open_rollouts(rollouts or [rollout()])


async def scored(store: SqlStore, rollout_id: str, reward: float = 1.0) -> Rollout:
    return await store.move_rollout(
        ACCOUNT,
        rollout_id,
        [RolloutStatus.PENDING],
        status=RolloutStatus.REWARDED,
        rewards=(reward,),
        ended_at=1100.0,
    )


def finished(step: int = 0, **changes: object) -> FinishedStep:
    fields: dict[str, object] = {
        "step": step,
        "policy": Policy(adapter_id="a" * 64, policy_step=step + 1),
        "groups": ("grp_a",),
        "bins": {"rol_a": {"trained": 2}},
        "checkpoint": builders.checkpoint(step),
        "packages": (),
        "events": (EventDraft(kind=EventKind.STEP, body={"step": step}),),
    }
    return FinishedStep(**(fields | changes))


def package(version: int = 1, **changes: object) -> ModelPackage:
    fields: dict[str, object] = {
        "package_id": f"pkg_{version}",
        "account_id": ACCOUNT,
        "group": "walk",
        "version": version,
        "kind": "adapter",
        "path": "/blobs/a",
        "sha256": "b" * 64,
        "base_model": "/models/tiny",
        "job_id": "job_walk",
        "step": version,
        "created_at": 2000.0,
        "metadata": {"reward": 0.5},
    }
    return ModelPackage(**(fields | changes))


# ── jobs ──────────────────────────────────────────────────────────────────────────────────────


async def test_a_job_is_found_by_id_and_by_name(store: SqlStore) -> None:
    made = job(spec=spec(seed=2**64 - 1, deterministic=True))
    assert await store.create_job(made) == made
    assert await store.job(ACCOUNT, "job_walk") == made
    assert await store.job(ACCOUNT, "walk") == made


async def test_a_name_is_taken_once_per_account(store: SqlStore) -> None:
    await store.create_job(job())
    with pytest.raises(errors.Conflict, match="a job named 'walk' exists already"):
        await store.create_job(job(job_id="job_second"))
    await store.create_job(job(job_id="job_second", account_id=OTHER))
    assert (await store.job(OTHER, "walk")).job_id == "job_second"


async def test_a_missing_job_is_not_found(store: SqlStore) -> None:
    with pytest.raises(errors.NotFound, match="job 'run' does not exist"):
        await store.job(ACCOUNT, "run")


async def test_jobs_are_listed_newest_first_by_account_and_status(store: SqlStore) -> None:
    for name, account in [("a", ACCOUNT), ("b", ACCOUNT), ("c", OTHER)]:
        await store.create_job(job(name, account_id=account))
    await store.append(ACCOUNT, "job_a", [status_event(JobStatus.RUNNING)])
    names = lambda jobs: [j.name for j in jobs]  # noqa: E731
    assert names(await store.jobs(ACCOUNT)) == ["b", "a"]
    assert names(await store.jobs(ACCOUNT, limit=1)) == ["b"]
    assert names(await store.jobs(None)) == ["c", "b", "a"]
    assert names(await store.jobs(None, status=JobStatus.RUNNING)) == ["a"]


async def test_a_spec_is_replaced_only_before_the_job_starts(store: SqlStore) -> None:
    await with_job(store)
    changed = spec(seed=9)
    await store.update_spec(ACCOUNT, "job_walk", changed)
    assert (await store.job(ACCOUNT, "walk")).spec == changed
    await store.start_incarnation(ACCOUNT, "job_walk")
    with pytest.raises(errors.Conflict, match="job 'walk' has started"):
        await store.update_spec(ACCOUNT, "job_walk", spec())


async def test_incarnations_count_from_one(store: SqlStore) -> None:
    await with_job(store)
    assert [await store.start_incarnation(ACCOUNT, "job_walk") for _ in range(2)] == [1, 2]
    assert (await store.job(ACCOUNT, "walk")).incarnation == 2


async def test_only_a_final_job_is_deleted_and_with_all_it_owns(store: SqlStore) -> None:
    await with_group(store)
    nodes, turn = turn_with_nodes()
    await store.commit_turn(ACCOUNT, "rol_a", nodes, turn)
    with pytest.raises(errors.Conflict, match="job 'walk' is PENDING; stop it first"):
        await store.delete_job(ACCOUNT, "job_walk")
    await store.append(ACCOUNT, "job_walk", [status_event(JobStatus.STOPPED)])
    await store.delete_job(ACCOUNT, "job_walk")
    assert await store.jobs(ACCOUNT) == []
    assert await store.group_trajectories(ACCOUNT, "grp_a") == []
    await with_group(store)
    assert await store.events(ACCOUNT, "job_walk") == []
    assert await store.trajectory(ACCOUNT, "rol_a") == Trajectory(rollout=rollout())


# ── events ────────────────────────────────────────────────────────────────────────────────────


async def test_events_are_numbered_from_one_and_read_after_a_cursor(
    store: SqlStore, clock: SetClock
) -> None:
    await with_job(store)
    draft = EventDraft(
        kind=EventKind.METRICS,
        body={"step": 0, "values": {"loss": np.float32(0.5)}},
        level=Level.DEBUG,
    )
    appended = await store.append(ACCOUNT, "job_walk", [log_event("one"), draft])
    await store.append(ACCOUNT, "job_walk", [log_event("three")])
    assert [event.seq for event in appended] == [1, 2]
    assert await store.events(ACCOUNT, "job_walk", after=1, limit=1) == [
        Event(
            seq=2,
            job_id="job_walk",
            at=5000.0,
            kind=EventKind.METRICS,
            level=Level.DEBUG,
            body={"step": 0, "values": {"loss": 0.5}},
        )
    ]
    logs = await store.events(ACCOUNT, "job_walk", kinds=[EventKind.LOG])
    assert [event.body["message"] for event in logs] == ["one", "three"]


async def test_seq_has_no_gap_when_many_append_and_some_fail(store: SqlStore) -> None:
    await with_job(store)

    async def append(number: int) -> None:
        draft = status_event(JobStatus.STOPPING) if number % 5 == 0 else log_event(str(number))
        await store.append(ACCOUNT, "job_walk", [draft, log_event("second")])

    outcomes = await asyncio.gather(*map(append, range(100)), return_exceptions=True)
    failed = [type(outcome) for outcome in outcomes if outcome is not None]
    assert failed == [errors.Conflict] * 20
    events = await store.events(ACCOUNT, "job_walk")
    assert [event.seq for event in events] == list(range(1, 161))


async def test_status_events_move_the_job(store: SqlStore, clock: SetClock) -> None:
    await with_job(store)
    running = status_event(JobStatus.RUNNING, secondary=Secondary.STARTING)
    await store.append(ACCOUNT, "job_walk", [running])
    clock.at = 6000.0
    await store.append(
        ACCOUNT,
        "job_walk",
        [
            status_event(JobStatus.RUNNING, secondary=Secondary.TRAINING),
            status_event(JobStatus.FAILED, secondary=Secondary.FAILED, message="no agent"),
        ],
    )
    moved = job(
        status=JobStatus.FAILED,
        secondary=Secondary.FAILED,
        message="no agent",
        started_at=5000.0,
        ended_at=6000.0,
    )
    assert await store.job(ACCOUNT, "walk") == moved
    await store.append(
        ACCOUNT, "job_walk", [status_event(JobStatus.PENDING, secondary=Secondary.PENDING)]
    )
    resumed = replace(
        moved, status=JobStatus.PENDING, secondary=Secondary.PENDING, message="", ended_at=None
    )
    assert await store.job(ACCOUNT, "walk") == resumed


async def test_an_impossible_move_keeps_nothing_of_the_call(store: SqlStore) -> None:
    await with_job(store)
    with pytest.raises(errors.Conflict, match="PENDING cannot become COMPLETED"):
        await store.append(
            ACCOUNT, "job_walk", [log_event("done"), status_event(JobStatus.COMPLETED)]
        )
    assert await store.events(ACCOUNT, "job_walk") == []


async def test_a_status_that_does_not_exist_is_refused(store: SqlStore) -> None:
    await with_job(store)
    draft = EventDraft(kind=EventKind.STATUS, body={"status": "DONE"})
    with pytest.raises(errors.InvalidInput, match="status: 'DONE' is not one that a job can have"):
        await store.append(ACCOUNT, "job_walk", [draft])


async def test_a_reader_waits_for_the_next_event(store: SqlStore) -> None:
    await with_job(store)
    await store.create_job(job("run"))
    waiting = asyncio.create_task(store.wait_for(ACCOUNT, "job_walk", after=1))
    await store.append(ACCOUNT, "job_run", [log_event("other"), log_event("job")])
    await store.append(ACCOUNT, "job_walk", [log_event("one")])
    assert not waiting.done()
    await store.append(ACCOUNT, "job_walk", [log_event("two")])
    await asyncio.wait_for(waiting, 5)
    await store.wait_for(ACCOUNT, "job_walk", after=0)


# ── rollouts ──────────────────────────────────────────────────────────────────────────────────


async def test_a_rollout_comes_back_as_it_was(store: SqlStore) -> None:
    whole = rollout(
        "rol_whole",
        slot=1,
        seed=2**64 - 1,
        policy=Policy(adapter_id="a" * 64, policy_step=3),
        status=RolloutStatus.FAILED,
        rewards=(0.1, 0.2),
        metrics={"seconds": 1.5},
        fault=Fault(blame=Blame.AGENT, code="deadline", message="late", retryable=False),
        ended_at=1200.0,
    )
    await with_group(store, whole)
    assert await store.rollout("rol_whole") == whole
    assert await store.rollout("rol_whole", ACCOUNT) == whole


async def test_a_place_is_taken_once(store: SqlStore) -> None:
    await with_group(store)
    with pytest.raises(errors.Conflict, match="the database refused it"):
        await store.open_rollouts([rollout("rol_c", slot=1), rollout("rol_b")])
    assert [s.rollout.rollout_id for s in await page(store)] == ["rol_a"]
    await store.open_rollouts([rollout("rol_b", attempt=1)])


async def test_groups_close_once_and_are_listed_in_order(store: SqlStore) -> None:
    await with_group(store)
    await store.open_group(group("grp_b", order=1))
    await store.close_group(ACCOUNT, "grp_a")
    with pytest.raises(errors.Conflict, match="group 'grp_a' is closed"):
        await store.close_group(ACCOUNT, "grp_a")
    with pytest.raises(errors.NotFound, match="group 'grp_c'"):
        await store.close_group(ACCOUNT, "grp_c")
    closed = group(status=GroupStatus.CLOSED)
    assert await store.groups(ACCOUNT, "job_walk") == [closed, group("grp_b", order=1)]
    assert await store.groups(ACCOUNT, "job_walk", status="closed") == [closed]


async def test_a_rollout_moves_only_from_an_expected_state(store: SqlStore) -> None:
    await with_group(store)
    ready = await store.move_rollout(
        ACCOUNT,
        "rol_a",
        [RolloutStatus.PENDING],
        status=RolloutStatus.READY,
        metrics={"tools": 3.0},
    )
    assert ready == rollout(status=RolloutStatus.READY, metrics={"tools": 3.0})
    with pytest.raises(errors.Conflict, match="rollout 'rol_a' is READY, not PENDING"):
        await scored(store, "rol_a")
    rewarded = await store.move_rollout(
        ACCOUNT,
        "rol_a",
        [RolloutStatus.READY],
        status=RolloutStatus.REWARDED,
        rewards=(0.1, 0.7),
        metrics={"seconds": 2.0},
        ended_at=1100.0,
    )
    assert rewarded == replace(
        ready,
        status=RolloutStatus.REWARDED,
        rewards=(0.1, 0.7),
        metrics={"tools": 3.0, "seconds": 2.0},
        ended_at=1100.0,
    )
    assert await store.rollout("rol_a") == rewarded


async def test_one_of_many_racing_rewards_wins(store: SqlStore) -> None:
    await with_group(store)
    outcomes = await asyncio.gather(
        *(scored(store, "rol_a", float(n)) for n in range(20)), return_exceptions=True
    )
    won = [outcome for outcome in outcomes if isinstance(outcome, Rollout)]
    assert len(won) == 1
    assert await store.rollout("rol_a") == won[0]


async def page(store: SqlStore, **filters: object):
    return await store.rollouts(ACCOUNT, RolloutQuery(job_id="job_walk", **filters))


async def test_pages_follow_a_cursor_and_filters(store: SqlStore) -> None:
    opened = [rollout(f"rol_{n}", slot=n, step=n % 2) for n in range(5)]
    opened[4] = replace(opened[4], purpose=Purpose.VALIDATION)
    await with_group(store, *opened)
    nodes, turn = turn_with_nodes(completion=(7, 8, 9))
    await store.commit_turn(ACCOUNT, "rol_1", nodes, turn)
    await scored(store, "rol_3")
    first = await page(store, limit=2)
    assert [(s.rollout.rollout_id, s.turns, s.tokens) for s in first] == [
        ("rol_0", 0, 0),
        ("rol_1", 1, 3),
    ]
    ids = lambda summaries: [s.rollout.rollout_id for s in summaries]  # noqa: E731
    assert ids(await page(store, after=first[-1].cursor())) == ["rol_2", "rol_3", "rol_4"]
    assert ids(await page(store, step=1)) == ["rol_1", "rol_3"]
    assert ids(await page(store, status=RolloutStatus.REWARDED)) == ["rol_3"]
    assert ids(await page(store, purpose=Purpose.VALIDATION, step=0)) == ["rol_4"]


# ── turns ─────────────────────────────────────────────────────────────────────────────────────


async def test_a_trajectory_comes_back_token_for_token(store: SqlStore) -> None:
    await with_group(store)
    first_nodes, first = turn_with_nodes(0, logprobs=(-0.1, -1e-30), seed=2**64 - 1)
    second_nodes, second = turn_with_nodes(
        1, prompt=(), policy=Policy(adapter_id="a" * 64, policy_step=2)
    )
    forked = (replace(second_nodes[0], fork_cause=ForkCause.TEMPLATE), second_nodes[1])
    await store.commit_turn(ACCOUNT, "rol_a", first_nodes, first)
    await store.commit_turn(ACCOUNT, "rol_a", forked, second)
    read = await store.trajectory(ACCOUNT, "rol_a")
    whole = Trajectory(rollout=rollout(), nodes=first_nodes + forked, turns=(first, second))
    assert plain(read) == plain(whole)
    assert [node.tokens.dtype for node in read.nodes] == [np.int32] * 4


async def test_only_a_pending_rollout_takes_turns(store: SqlStore) -> None:
    await with_group(store)
    await scored(store, "rol_a")
    nodes, turn = turn_with_nodes()
    with pytest.raises(
        errors.NotInValidStatus, match="'rol_a' is REWARD_RECEIVED: it takes no more"
    ):
        await store.commit_turn(ACCOUNT, "rol_a", nodes, turn)
    with pytest.raises(errors.NotFound, match="rollout 'rol_z'"):
        await store.commit_turn(ACCOUNT, "rol_z", nodes, turn)
    assert (await store.trajectory(ACCOUNT, "rol_a")).nodes == ()


async def test_a_turn_that_fails_halfway_leaves_nothing(store: SqlStore) -> None:
    await with_group(store)
    nodes, turn = turn_with_nodes()
    await store.commit_turn(ACCOUNT, "rol_a", nodes, turn)
    other_nodes, _ = turn_with_nodes(1)
    with pytest.raises(errors.Conflict, match="the database refused it"):
        await store.commit_turn(ACCOUNT, "rol_a", other_nodes, turn)
    assert len((await store.trajectory(ACCOUNT, "rol_a")).nodes) == 2
    assert [s.turns for s in await page(store)] == [1]


async def test_an_undelivered_turn_stays_but_does_not_count(store: SqlStore) -> None:
    await with_group(store)
    for index in range(2):
        await store.commit_turn(ACCOUNT, "rol_a", *turn_with_nodes(index))
    for _ in range(2):  # saying it again changes nothing
        await store.mark_undelivered(ACCOUNT, "rol_a", "trn_0")
    read = await store.trajectory(ACCOUNT, "rol_a")
    assert [t.delivery for t in read.turns] == [Delivery.UNDELIVERED, Delivery.DELIVERED]
    assert [(s.turns, s.tokens) for s in await page(store)] == [(1, 4)]
    with pytest.raises(errors.NotFound, match="turn 'trn_z'"):
        await store.mark_undelivered(ACCOUNT, "rol_a", "trn_z")


async def test_many_turns_at_once_are_all_kept_and_failures_stay_alone(store: SqlStore) -> None:
    await with_group(store, *(rollout(f"rol_{n}", slot=n) for n in range(100)))
    await scored(store, "rol_13")
    nodes, turn = turn_with_nodes()
    outcomes = await asyncio.gather(
        *(store.commit_turn(ACCOUNT, f"rol_{n}", nodes, turn) for n in range(100)),
        return_exceptions=True,
    )
    failed = {n: type(outcome) for n, outcome in enumerate(outcomes) if outcome is not None}
    assert failed == {13: errors.NotInValidStatus}
    assert [s.turns for s in await page(store)] == [1] * 13 + [0] + [1] * 86


async def test_a_cancelled_caller_does_not_take_its_turn_back(store: SqlStore) -> None:
    await with_group(store)
    nodes, turn = turn_with_nodes()
    caller = asyncio.create_task(store.commit_turn(ACCOUNT, "rol_a", nodes, turn))
    await asyncio.sleep(0)
    caller.cancel()
    assert [t.turn_id for t in (await committed(store)).turns] == ["trn_0"]


async def committed(store: SqlStore) -> Trajectory:
    """rol_a after every write that was asked for before."""
    await store.append(ACCOUNT, "job_walk", [log_event("after it")])
    return await store.trajectory(ACCOUNT, "rol_a")


async def test_a_groups_attempts_come_by_slot_and_attempt(store: SqlStore) -> None:
    opened = [rollout("rol_b", slot=1), rollout("rol_a2", attempt=1), rollout("rol_a1")]
    await with_group(store, *opened)
    await store.commit_turn(ACCOUNT, "rol_a2", *turn_with_nodes())
    found = await store.group_trajectories(ACCOUNT, "grp_a")
    assert [(t.rollout.rollout_id, len(t.turns)) for t in found] == [
        ("rol_a1", 0),
        ("rol_a2", 1),
        ("rol_b", 0),
    ]


# ── incarnations ──────────────────────────────────────────────────────────────────────────────


async def test_a_new_incarnation_supersedes_all_but_what_it_keeps(
    store: SqlStore, clock: SetClock
) -> None:
    await store.create_job(job())
    for order, name in enumerate(["a", "b", "c"]):
        await store.open_group(group(f"grp_{name}", order=order))
        await store.open_rollouts(
            [rollout(f"rol_{name}{slot}", group_id=f"grp_{name}", slot=slot) for slot in (0, 1)]
        )
        await store.commit_turn(ACCOUNT, f"rol_{name}0", *turn_with_nodes())
        await scored(store, f"rol_{name}0")
    await scored(store, "rol_a1")
    await store.close_group(ACCOUNT, "grp_a")
    await store.open_group(group("grp_new", order=3, incarnation=2))

    assert await store.supersede(ACCOUNT, "job_walk", 2, keep=["grp_a"]) == 2

    assert [g.status.value for g in await store.groups(ACCOUNT, "job_walk")] == [
        "closed",
        "superseded",
        "superseded",
        "open",
    ]
    assert await store.rollout("rol_b1") == rollout(
        "rol_b1",
        group_id="grp_b",
        slot=1,
        status=RolloutStatus.FAILED,
        fault=Fault(
            blame=Blame.SERVICE,
            code="superseded",
            message="start 2 of the job plans its row again",
        ),
        ended_at=5000.0,
    )
    assert (await store.rollout("rol_b0")).status is RolloutStatus.REWARDED
    assert await store.ledger(ACCOUNT, "job_walk") == {0: {"dropped_superseded": 4}}
    assert await store.supersede(ACCOUNT, "job_walk", 2, keep=["grp_a"]) == 0


# ── steps and models ──────────────────────────────────────────────────────────────────────────


async def with_closed_group(store: SqlStore) -> None:
    await with_group(store)
    await store.commit_turn(ACCOUNT, "rol_a", *turn_with_nodes())
    await scored(store, "rol_a")
    await store.close_group(ACCOUNT, "grp_a")


async def test_a_finished_step_is_kept_whole(store: SqlStore) -> None:
    await with_closed_group(store)
    assert await store.policy(ACCOUNT, "job_walk") is None
    done = finished(packages=(package(),))
    await store.finish_step(ACCOUNT, "job_walk", done)
    assert await store.groups(ACCOUNT, "job_walk") == [group(status=GroupStatus.TRAINED, step=0)]
    assert await store.ledger(ACCOUNT, "job_walk") == {0: {"trained": 2}}
    assert await store.checkpoints(ACCOUNT, "job_walk") == [done.checkpoint]
    assert await store.packages(ACCOUNT) == [package()]
    assert await store.policy(ACCOUNT, "job_walk") == done.policy
    assert (await store.job(ACCOUNT, "walk")).step == 1
    assert [e.body for e in await store.events(ACCOUNT, "job_walk")] == [{"step": 0}]


@pytest.mark.parametrize(
    ("done", "error", "text"),
    [
        (finished(step=1), errors.Conflict, "has finished 0 steps; step 1 is not the next"),
        (finished(groups=("grp_a", "grp_open")), errors.Conflict, "'grp_open' is open"),
        (finished(groups=("grp_z",)), errors.NotFound, "group 'grp_z'"),
        (finished(bins={"rol_z": {"trained": 1}}), errors.Conflict, "'rol_z' is not of this job"),
        (finished(packages=(package(), package())), errors.Conflict, "walk/1 exists already"),
        (
            finished(events=(status_event(JobStatus.COMPLETED),)),
            errors.Conflict,
            "PENDING cannot become COMPLETED",
        ),
    ],
)
async def test_a_step_that_cannot_be_kept_whole_is_not_kept_at_all(
    store: SqlStore, done: FinishedStep, error: type[Exception], text: str
) -> None:
    await with_closed_group(store)
    await store.open_group(group("grp_open", order=1))
    with pytest.raises(error, match=text):
        await store.finish_step(ACCOUNT, "job_walk", done)
    assert (await store.job(ACCOUNT, "walk")).step == 0
    assert [g.status.value for g in await store.groups(ACCOUNT, "job_walk")] == ["closed", "open"]
    assert await store.ledger(ACCOUNT, "job_walk") == {}
    assert await store.checkpoints(ACCOUNT, "job_walk") == []
    assert await store.packages(ACCOUNT) == []
    assert await store.events(ACCOUNT, "job_walk") == []


async def test_a_group_is_never_counted_twice(store: SqlStore) -> None:
    await with_closed_group(store)
    await store.finish_step(ACCOUNT, "job_walk", finished())
    with pytest.raises(errors.Conflict, match="group 'grp_a' is trained"):
        await store.finish_step(ACCOUNT, "job_walk", finished(1, bins={}))
    with pytest.raises(errors.Conflict, match="'rol_a' is not of this job, or was counted"):
        await store.finish_step(ACCOUNT, "job_walk", finished(1, groups=()))


async def test_the_ledger_adds_up_per_step(store: SqlStore) -> None:
    await with_group(store, *(rollout(f"rol_{n}", slot=n) for n in range(3)))
    await store.finish_step(
        ACCOUNT,
        "job_walk",
        finished(groups=(), bins={"rol_0": {"trained": 2, "greedy": 1}, "rol_1": {"trained": 5}}),
    )
    await store.finish_step(
        ACCOUNT, "job_walk", finished(1, groups=(), bins={"rol_2": {"deadline": 4}})
    )
    assert await store.ledger(ACCOUNT, "job_walk") == {
        0: {"trained": 7, "greedy": 1},
        1: {"deadline": 4},
    }


async def test_the_ledger_of_an_ended_job_holds_all_that_was_sampled(store: SqlStore) -> None:
    """What no step took is `dropped_unfinished`, until a resume trains or supersedes it."""
    purposes = (Purpose.TRAIN, Purpose.TRAIN, Purpose.VALIDATION, Purpose.TRAIN)
    made = [rollout(f"rol_{n}", slot=n, purpose=purpose) for n, purpose in enumerate(purposes)]
    await with_group(store, *made)
    for n in range(4):
        nodes, turn = turn_with_nodes(completion=range(n + 1), past_stop_tokens=n)
        await store.commit_turn(ACCOUNT, f"rol_{n}", nodes, turn)
    trained = {"trained": 1}
    await store.finish_step(ACCOUNT, "job_walk", finished(groups=(), bins={"rol_0": trained}))
    running = {0: trained}
    assert await store.ledger(ACCOUNT, "job_walk") == running

    await store.append(ACCOUNT, "job_walk", [status_event(JobStatus.FAILED)])
    assert await store.ledger(ACCOUNT, "job_walk") == {
        0: {"trained": 1, "not_for_training": 3 + 2},
        1: {"dropped_unfinished": 2 + 1 + 4 + 3},
    }

    await store.append(ACCOUNT, "job_walk", [status_event(JobStatus.PENDING)])
    assert await store.ledger(ACCOUNT, "job_walk") == running
    late = {"rol_1": {"trained": 3}}
    await store.finish_step(ACCOUNT, "job_walk", finished(1, groups=(), bins=late))
    await store.append(ACCOUNT, "job_walk", [status_event(JobStatus.STOPPED)])
    assert (await store.ledger(ACCOUNT, "job_walk"))[1] == {"trained": 3}
    assert (await store.ledger(ACCOUNT, "job_walk"))[2] == {"dropped_unfinished": 7}


async def test_usage_counts_every_turn_of_the_job_and_no_other(store: SqlStore) -> None:
    await with_job(store)
    assert await store.usage(ACCOUNT, "job_walk") == TokenUsage()
    await store.create_job(job("other"))
    await store.open_rollouts([rollout(), rollout("rol_o", job_id="job_other", slot=9)])
    for rollout_id, index, cached in (("rol_a", 0, 0), ("rol_a", 1, 3), ("rol_o", 0, 9)):
        nodes, turn = turn_with_nodes(
            index, turn_id=f"trn_{rollout_id}{index}", cached_tokens=cached, past_stop_tokens=index
        )
        await store.commit_turn(ACCOUNT, rollout_id, nodes, turn)
    await store.mark_undelivered(ACCOUNT, "rol_a", "trn_rol_a1")
    done = finished(groups=(), bins={"rol_a": {"trained": 2, "dropped_undelivered": 3}})
    await store.finish_step(ACCOUNT, "job_walk", done)
    assert await store.usage(ACCOUNT, "job_walk") == TokenUsage(
        train=2, prefill=6, cached=3, sample=5
    )


async def test_a_checkpoint_of_the_same_step_takes_the_place_of_the_earlier(
    store: SqlStore,
) -> None:
    await with_job(store)
    for path in ("/blobs/one", "/blobs/two"):
        await store.save_checkpoint(ACCOUNT, "job_walk", builders.checkpoint(-1, path=path))
    await store.save_checkpoint(ACCOUNT, "job_walk", builders.checkpoint(-2))
    assert await store.checkpoints(ACCOUNT, "job_walk") == [
        builders.checkpoint(-2),
        builders.checkpoint(-1, path="/blobs/two"),
    ]


async def test_a_package_is_found_by_id_version_or_group(store: SqlStore) -> None:
    await with_job(store)
    versions = tuple(package(n) for n in (1, 2, 10))
    nested = package(3, package_id="pkg_nested", group="team/walk")
    done = finished(groups=(), bins={}, packages=(*versions, nested))
    await store.finish_step(ACCOUNT, "job_walk", done)
    assert await store.package(ACCOUNT, "pkg_2") == versions[1]
    assert await store.package(ACCOUNT, "walk/1") == versions[0]
    assert await store.package(ACCOUNT, "walk") == versions[2]
    assert await store.package(ACCOUNT, "team/walk") == nested
    assert await store.package(ACCOUNT, "team/walk/3") == nested
    assert await store.packages(ACCOUNT, group="walk") == list(versions)
    with pytest.raises(errors.NotFound, match="model package 'walk/4'"):
        await store.package(ACCOUNT, "walk/4")


CHECKPOINT_FIELDS = {"kind": "checkpoint", "group": "walk-checkpoints"}


def step_packages(step: int) -> tuple[ModelPackage, ModelPackage]:
    """The adapter and the checkpoint of `builders.checkpoint(step)`."""
    saved = builders.checkpoint(step)
    return (
        package(step + 1, step=step, path=saved.adapter.path),
        package(
            step + 1, package_id=f"pkg_c{step + 1}", step=step, path=saved.path, **CHECKPOINT_FIELDS
        ),
    )


async def with_steps(store: SqlStore, count: int) -> None:
    """job_walk with its first state and so many finished steps."""
    await with_job(store, JobStatus.RUNNING)
    await store.save_checkpoint(ACCOUNT, "job_walk", builders.checkpoint(-1))
    for step in range(count):
        done = finished(step, groups=(), bins={}, packages=step_packages(step))
        await store.finish_step(ACCOUNT, "job_walk", done)


async def test_pruned_checkpoints_are_forgotten_and_their_packages_stay_as_records(
    store: SqlStore, clock: SetClock
) -> None:
    await with_steps(store, 3)
    clock.at = 5000.0
    pruned = await store.prune(ACCOUNT, "job_walk", [1, 2], adapters=False)
    assert pruned == [
        Pruned(path="/blobs/job_walk/step_-1", with_adapter=True),  # nothing registered it
        Pruned(path="/blobs/job_walk/step_0", with_adapter=False),
    ]
    assert [c.step for c in await store.checkpoints(ACCOUNT, "job_walk")] == [1, 2]
    adapter, resumable = step_packages(0)
    assert await store.package(ACCOUNT, "walk/1") == adapter
    assert await store.package(ACCOUNT, "walk-checkpoints/1") == replace(
        resumable, pruned_at=5000.0
    )
    clock.at = 6000.0
    assert await store.prune(ACCOUNT, "job_walk", [1, 2], adapters=False) == []
    assert (await store.package(ACCOUNT, "walk-checkpoints/1")).pruned_at == 5000.0

    last = await store.prune(ACCOUNT, "job_walk", [2], adapters=True)
    assert last == [Pruned(path="/blobs/job_walk/step_1", with_adapter=True)]
    assert [p.name for p in await store.packages(ACCOUNT) if p.pruned_at is None] == [
        *("walk/1", "walk/3", "walk-checkpoints/3"),
    ]


async def test_what_another_job_started_from_is_never_pruned(store: SqlStore) -> None:
    await with_steps(store, 3)
    await store.create_job(job("on", parent="walk-checkpoints/1"))
    await store.create_job(job("anew", parent="walk/2"))
    assert await store.prune(ACCOUNT, "job_walk", [2], adapters=True) == [
        Pruned(path="/blobs/job_walk/step_-1", with_adapter=True),
        Pruned(path="/blobs/job_walk/step_1", with_adapter=False),
    ]
    assert [c.step for c in await store.checkpoints(ACCOUNT, "job_walk")] == [0, 2]


async def test_what_an_evaluation_is_to_compare_stays_until_it_has_ended(store: SqlStore) -> None:
    await with_steps(store, 3)
    evaluated = EvaluationSpec(models=("base", "walk/1", "walk-checkpoints/2"))
    spec = builders.spec("test", kind=JobKind.EVALUATION, evaluation=evaluated)
    await store.create_job(job("test", spec=spec))
    assert await store.prune(ACCOUNT, "job_walk", [2], adapters=True) == [
        Pruned(path="/blobs/job_walk/step_-1", with_adapter=True),
        Pruned(path="/blobs/job_walk/step_0", with_adapter=False),
    ]
    assert (await store.package(ACCOUNT, "walk/1")).pruned_at is None
    await store.append(ACCOUNT, "job_test", [status_event(JobStatus.STOPPED)])
    assert await store.prune(ACCOUNT, "job_walk", [2], adapters=True) == [
        Pruned(path="/blobs/job_walk/step_1", with_adapter=True),
    ]
    with pytest.raises(errors.Conflict, match="model 'walk-checkpoints/2' has just been pruned"):
        await store.create_job(job("again", spec=spec))


async def test_no_job_starts_from_what_has_been_pruned_meanwhile(store: SqlStore) -> None:
    await with_steps(store, 2)
    await store.prune(ACCOUNT, "job_walk", [1], adapters=False)
    with pytest.raises(errors.Conflict, match="model 'walk-checkpoints/1' has just been pruned"):
        await store.create_job(job("on", parent="walk-checkpoints/1"))
    assert (await store.create_job(job("anew", parent="walk/1"))).parent == "walk/1"


async def test_taking_steps_back_leaves_no_group_to_train(store: SqlStore) -> None:
    await with_steps(store, 2)
    for name, order in (("grp_closed", 0), ("grp_open", 1)):
        await store.open_group(group(name, order=order))
    await store.close_group(ACCOUNT, "grp_closed")
    await store.rewind(ACCOUNT, "job_walk", 0)
    assert {g.status for g in await store.groups(ACCOUNT, "job_walk")} == {GroupStatus.SUPERSEDED}


async def test_the_files_of_steps_taken_back_are_pruned_too(store: SqlStore) -> None:
    await with_steps(store, 2)
    await store.rewind(ACCOUNT, "job_walk", 0)
    assert await store.prune(ACCOUNT, "job_walk", [-1, 0], adapters=False) == [
        Pruned(path="/blobs/job_walk/step_1", with_adapter=False)
    ]


@pytest.mark.parametrize("status", [s for s in JobStatus if s.is_final])
async def test_the_end_of_a_job_promotes_its_newest_adapter(
    store: SqlStore, status: JobStatus
) -> None:
    await with_steps(store, 2)
    await store.append(ACCOUNT, "job_walk", [status_event(status, message="disk full")])
    ended = await store.job(ACCOUNT, "walk")
    assert (ended.status, ended.message, ended.output) == (status, "disk full", "walk/2")
    *_, promotion, told = await store.events(ACCOUNT, "job_walk")
    assert (promotion.kind, promotion.body) == (
        EventKind.PROMOTION,
        {"step": 1, "model": "walk/2"},
    )
    assert told.body["status"] == status


async def test_an_output_is_promoted_once_and_never_of_a_step_taken_back(store: SqlStore) -> None:
    await with_steps(store, 2)
    ups_and_downs = (JobStatus.STOPPED, JobStatus.PENDING, JobStatus.STOPPED, JobStatus.PENDING)
    for status in ups_and_downs:
        await store.append(ACCOUNT, "job_walk", [status_event(status)])
    await store.rewind(ACCOUNT, "job_walk", 0)
    await store.append(ACCOUNT, "job_walk", [status_event(JobStatus.FAILED)])
    kinds = [EventKind.PROMOTION.value]
    promoted = await store.events(ACCOUNT, "job_walk", kinds=kinds)
    assert [event.body["model"] for event in promoted] == ["walk/2", "walk/1"]


async def test_a_job_that_finished_no_step_has_no_output(store: SqlStore) -> None:
    await with_steps(store, 0)
    await store.append(ACCOUNT, "job_walk", [status_event(JobStatus.STOPPED)])
    assert (await store.job(ACCOUNT, "walk")).output == ""


async def test_what_the_first_start_of_a_job_found_stays(store: SqlStore) -> None:
    await with_job(store)
    first = Inputs(base_sha256="a" * 64, dataset_sha256="b" * 64)
    await store.record_inputs(ACCOUNT, "job_walk", first)
    await store.record_inputs(ACCOUNT, "job_walk", replace(first, base_sha256="c" * 64))
    assert (await store.job(ACCOUNT, "walk")).inputs == first


# ── accounts ──────────────────────────────────────────────────────────────────────────────────


async def test_another_account_sees_and_changes_nothing(store: SqlStore) -> None:
    await with_closed_group(store)
    await store.finish_step(ACCOUNT, "job_walk", finished(packages=(package(),)))
    nodes, turn = turn_with_nodes(1)
    for refused in (
        store.job(OTHER, "job_walk"),
        store.update_spec(OTHER, "job_walk", spec()),
        store.delete_job(OTHER, "job_walk"),
        store.append(OTHER, "job_walk", [log_event("hello")]),
        store.events(OTHER, "job_walk"),
        store.wait_for(OTHER, "job_walk", after=0),
        store.start_incarnation(OTHER, "job_walk"),
        store.open_group(group("grp_b", account_id=OTHER)),
        store.close_group(OTHER, "grp_a"),
        store.supersede(OTHER, "job_walk", 2),
        store.open_rollouts([rollout("rol_b", account_id=OTHER)]),
        store.rollout("rol_a", OTHER),
        store.commit_turn(OTHER, "rol_a", nodes, turn),
        store.mark_undelivered(OTHER, "rol_a", "trn_0"),
        store.move_rollout(OTHER, "rol_a", list(RolloutStatus), status=RolloutStatus.FAILED),
        store.trajectory(OTHER, "rol_a"),
        store.ledger(OTHER, "job_walk"),
        store.usage(OTHER, "job_walk"),
        store.finish_step(OTHER, "job_walk", finished(1)),
        store.save_checkpoint(OTHER, "job_walk", builders.checkpoint(1)),
        store.package(OTHER, "walk"),
    ):
        with pytest.raises(errors.NotFound):
            await refused
    assert await store.jobs(OTHER) == []
    assert await store.groups(OTHER, "job_walk") == []
    assert await store.group_trajectories(OTHER, "grp_a") == []
    assert await store.rollouts(OTHER, RolloutQuery(job_id="job_walk")) == []
    assert await store.checkpoints(OTHER, "job_walk") == []
    assert await store.policy(OTHER, "job_walk") is None
    assert await store.packages(OTHER) == []


async def test_the_default_account_is_made_once(store: SqlStore) -> None:
    account = await store.default_account()
    assert (account.slug, len(account.number), account.number.isdecimal()) == ("default", 12, True)
    assert await store.default_account() == account


async def test_keys_are_found_listed_and_revoked(store: SqlStore, clock: SetClock) -> None:
    wide = Key(key_id="key_a", account_id=ACCOUNT, name="ci", sha256="a" * 64, created_at=1.0)
    narrow = Key(
        key_id="key_b",
        account_id=ACCOUNT,
        name="agent",
        sha256="b" * 64,
        actions=frozenset({Action.READ}),
        job_ids=frozenset({"job_walk"}),
        created_at=2.0,
    )
    for key in (wide, narrow):
        await store.add_key(key)
    assert await store.key_by_sha256("b" * 64) == narrow
    with pytest.raises(errors.NotFound):
        await store.key_by_sha256("c" * 64)
    revoked = await store.revoke_key(ACCOUNT, "key_a")
    assert revoked == replace(wide, revoked_at=5000.0)
    clock.at = 9000.0
    assert await store.revoke_key(ACCOUNT, "key_a") == revoked
    assert await store.keys(ACCOUNT) == [revoked, narrow]
    assert await store.keys(OTHER) == []
    with pytest.raises(errors.NotFound, match="key 'key_b'"):
        await store.revoke_key(OTHER, "key_b")


# ── durability ────────────────────────────────────────────────────────────────────────────────


async def test_a_key_is_found_by_its_access_key_id_once_it_is_sealed(store: SqlStore) -> None:
    old = Key(key_id="key_a", account_id=ACCOUNT, name="old", sha256="a" * 64, created_at=1.0)
    new = replace(old, key_id="key_b", sha256="b" * 64, access_key_id="TWAKB", sealed=b"\x00b")
    for key in (old, new):
        await store.add_key(key)
    assert await store.key_by_access_key_id("TWAKB") == new
    for unknown in ("TWAKA", ""):  # "" is what all unsealed keys have
        with pytest.raises(errors.NotFound):
            await store.key_by_access_key_id(unknown)
    sealed = replace(old, access_key_id="TWAKA", sealed=b"\x00a")
    await store.seal_key(sealed)
    assert await store.key_by_access_key_id("TWAKA") == sealed
    revoked = await store.revoke_key(ACCOUNT, "key_b")
    assert await store.key_by_access_key_id("TWAKB") == revoked


async def test_accounts_are_listed_by_number_and_each_slug_and_number_is_taken_once(
    store: SqlStore,
) -> None:
    default = await store.default_account()
    lab = Account(account_id="acc_lab", slug="lab", number="000000000003")
    team = Account(account_id="acc_team", slug="team", number="000000000002")
    for account in (lab, team):
        assert await store.create_account(account) == account
    assert await store.accounts() == [default, team, lab]
    assert await store.account("acc_lab") == lab
    with pytest.raises(errors.NotFound, match="account 'acc_x'"):
        await store.account("acc_x")
    for taken in (
        replace(lab, account_id="acc_b", number="000000000009"),
        replace(lab, account_id="acc_b", slug="b"),
    ):
        with pytest.raises(errors.Conflict, match="exists already"):
            await store.create_account(taken)
    assert await store.accounts() == [default, team, lab]


def resource(kind: str, name: str, **body: object) -> Resource:
    return Resource(account_id=ACCOUNT, kind=kind, name=name, body=body, created_at=1.0)


async def test_a_resource_is_one_of_its_kind_and_name(store: SqlStore, clock: SetClock) -> None:
    made = await store.create_resource(resource("agent", "walker", url="http://a", n=[1, {"a": 2}]))
    assert (made.body, made.created_at, made.updated_at) == (
        {"url": "http://a", "n": [1, {"a": 2}]},
        1.0,
        1.0,
    )
    assert await store.resource(ACCOUNT, "agent", "walker") == made
    with pytest.raises(errors.Conflict, match="agent 'walker' exists already"):
        await store.create_resource(resource("agent", "walker"))
    other = await store.create_resource(resource("pipeline", "walker"))
    assert other.seq > made.seq
    clock.at = 7000.0
    changed = await store.change_resource(resource("agent", "walker", url="http://b"))
    assert changed == replace(made, body={"url": "http://b"}, updated_at=7000.0)
    assert await store.resource(ACCOUNT, "pipeline", "walker") == other
    assert await store.delete_resource(ACCOUNT, "agent", "walker") == changed
    for gone in (
        store.resource(ACCOUNT, "agent", "walker"),
        store.change_resource(resource("agent", "walker")),
        store.delete_resource(ACCOUNT, "agent", "walker"),
    ):
        with pytest.raises(errors.NotFound, match="agent 'walker'"):
            await gone
    again = await store.create_resource(resource("agent", "walker"))
    assert again.seq > other.seq


async def test_resources_are_listed_by_prefix_as_they_were_made(store: SqlStore) -> None:
    names = ["b_2", "a_1", "B_1", "b%x", "b_1"]
    for name in names:
        await store.create_resource(resource("tag", name))
    await store.create_resource(resource("trail", "b_3"))

    async def listed(prefix: str) -> list[str]:
        return [found.name for found in await store.resources(ACCOUNT, "tag", prefix=prefix)]

    assert await listed("") == names
    assert await listed("b_") == ["b_2", "b_1"]
    assert await listed("b%") == ["b%x"]
    assert await listed("x") == []


async def test_another_accounts_resources_are_not_seen_or_changed(store: SqlStore) -> None:
    made = await store.create_resource(resource("agent", "walker", url="http://a"))
    theirs = replace(resource("agent", "walker", url="http://b"), account_id=OTHER)
    for refused in (
        store.resource(OTHER, "agent", "walker"),
        store.change_resource(theirs),
        store.delete_resource(OTHER, "agent", "walker"),
    ):
        with pytest.raises(errors.NotFound):
            await refused
    assert await store.resources(OTHER, "agent") == []
    await store.create_resource(theirs)  # the same name is free there
    assert await store.resources(ACCOUNT, "agent") == [made]


async def test_a_closed_store_says_so(store: SqlStore) -> None:
    await with_job(store)
    waiting = asyncio.create_task(store.wait_for(ACCOUNT, "job_walk", after=0))
    await store.events(ACCOUNT, "job_walk")
    await store.close()
    with pytest.raises(errors.Unavailable, match="the store is closed"):
        await store.job(ACCOUNT, "walk")
    with pytest.raises(errors.Unavailable, match="the store is closed"):
        await waiting


async def test_what_waits_is_committed_before_a_store_closes(tmp_path: Path) -> None:
    store = SqlStore.open(tmp_path / "turnwise.db")
    await store.create_job(job())
    appends = [
        asyncio.create_task(store.append(ACCOUNT, "job_walk", [log_event("x")])) for _ in range(99)
    ]
    await asyncio.sleep(0)
    await store.close()
    await asyncio.gather(*appends)
    reopened = SqlStore.open(tmp_path / "turnwise.db")
    assert len(await reopened.events(ACCOUNT, "job_walk")) == 99
    await reopened.close()


async def test_objects_are_kept_by_account_bucket_and_key(store: SqlStore) -> None:
    def stored(key: str, etag: str) -> StoredObject:
        return StoredObject("data", key, 3, etag, 7.5, "text/x", {"a": "é"}, {"expires": "0"})

    await store.create_bucket("acc_a", "data")
    await store.create_bucket("acc_b", "data")
    assert await store.put_object("acc_a", stored("k", "1"), "blob_1") == []
    assert await store.put_object("acc_b", stored("k", "2"), "blob_2") == []
    assert await store.put_object("acc_a", stored("k", "3"), "blob_3", replaces="1") == ["blob_1"]
    with pytest.raises(errors.Conflict):
        await store.put_object("acc_a", stored("k", "4"), "blob_4", replaces="1")

    assert await store.object("acc_a", "data", "k") == (stored("k", "3"), "blob_3")
    assert await store.blobs_in_use() == {"blob_2", "blob_3"}
    for bucket, kind in (("data", "object"), ("none", "bucket")):
        with pytest.raises(errors.NotFound, match=f"^{kind} "):
            await store.object("acc_a", bucket, "none")
    assert await store.delete_objects("acc_a", "data", ["k", "none"]) == ["blob_3"]
    await store.delete_bucket("acc_a", "data")
    with pytest.raises(errors.Conflict, match="not empty"):
        await store.delete_bucket("acc_b", "data")
    assert [each.name for each in await store.buckets("acc_b")] == ["data"]


async def test_listings_are_in_the_order_of_the_keys_bytes(store: SqlStore) -> None:
    await store.create_bucket(ACCOUNT, "data")
    keys = ["Z", "a", "a/b", "a/b/c", "b", "é", "\U0001f600", "\uffff"]
    for key in reversed(keys):
        await store.put_object(ACCOUNT, StoredObject("data", key, 0, "", 0.0), "blob")

    async def page(**given: Any) -> tuple[list[str], list[str], str]:
        every: dict[str, Any] = {"prefix": "", "delimiter": "", "after": "", "limit": 1000}
        found = await store.list_objects(ACCOUNT, "data", **(every | given))
        return [each.key for each in found.objects], list(found.prefixes), found.next

    assert await page() == (sorted(keys, key=str.encode), [], "")
    assert await page(limit=2) == (["Z", "a"], [], "a")
    assert await page(limit=2, after="a") == (["a/b", "a/b/c"], [], "a/b/c")
    assert await page(prefix="a", delimiter="/") == (["a"], ["a/"], "")
    assert await page(prefix="a/", delimiter="/", limit=1) == (["a/b"], [], "a/b")


async def test_an_upload_becomes_an_object_in_one_move(store: SqlStore) -> None:
    await store.create_bucket(ACCOUNT, "data")
    whole = StoredObject("data", "big", 2, "e-2", 9.0)
    for upload_id, at in (("upl_a", 1.0), ("upl_b", 5.0)):
        upload = Upload(upload_id=upload_id, bucket="data", key="big", started_at=at)
        await store.start_upload(ACCOUNT, upload)
        for number in (2, 1):
            part = Part(number=number, size=1, etag="e", modified=2.0, blob=f"{upload_id}{number}")
            assert await store.put_part(ACCOUNT, upload_id, part) == []
    assert [part.number for part in await store.parts(ACCOUNT, "upl_a")] == [1, 2]
    assert await store.end_uploads_before(3.0) == ["upl_a1", "upl_a2"]
    assert [each.upload_id for each in await store.uploads(ACCOUNT, "data")] == ["upl_b"]
    with pytest.raises(errors.Conflict):
        await store.end_upload(ACCOUNT, "upl_b", whole, "blob", replaces="other")

    assert await store.end_upload(ACCOUNT, "upl_b", whole, "blob") == ["upl_b1", "upl_b2"]

    assert await store.object(ACCOUNT, "data", "big") == (whole, "blob")
    assert await store.blobs_in_use() == {"blob"}
    for call in (store.parts(ACCOUNT, "upl_b"), store.end_upload(ACCOUNT, "upl_b")):
        with pytest.raises(errors.NotFound, match="upload 'upl_b'"):
            await call


_COMMIT_UNTIL_KILLED = """
import asyncio, sys
from tests.builders import ACCOUNT, group, job, rollout, turn_with_nodes
from turnwise.storage.sql import SqlStore

async def commit(store, slot):
    await store.open_rollouts([rollout(f"rol_{slot}", slot=slot)])
    for index in range(1_000_000):
        await store.commit_turn(ACCOUNT, f"rol_{slot}", *turn_with_nodes(index))
        print(slot, index, flush=True)

async def main():
    store = SqlStore.open(sys.argv[1])
    await store.create_job(job())
    await store.open_group(group())
    await asyncio.gather(*(commit(store, slot) for slot in range(8)))

asyncio.run(main())
"""


async def test_every_acknowledged_turn_survives_kill_nine(tmp_path: Path) -> None:
    path = tmp_path / "turnwise.db"
    child = subprocess.Popen(
        [sys.executable, "-c", _COMMIT_UNTIL_KILLED, str(path)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    with child:
        assert child.stdout is not None
        acknowledged = [child.stdout.readline() for _ in range(500)]
        child.kill()
        acknowledged += child.stdout.read().splitlines(keepends=True)
    whole = [line.split() for line in acknowledged if line.endswith("\n")]
    store = SqlStore.open(path)
    for slot in range(8):
        indices = [int(index) for its_slot, index in whole if int(its_slot) == slot]
        read = await store.trajectory(ACCOUNT, f"rol_{slot}")
        kept = [t.index for t in read.turns]
        assert kept[: len(indices)] == indices
        assert len(read.nodes) == 2 * len(kept)
    await store.close()


# ── deleting models ───────────────────────────────────────────────────────────────────────────


async def with_ended_steps(store: SqlStore, count: int, status: JobStatus) -> None:
    """job_walk, ended after so many steps."""
    await with_steps(store, count)
    await store.append(ACCOUNT, "job_walk", [status_event(status)])


async def test_a_deleted_model_is_gone_and_its_number_is_never_given_again(
    store: SqlStore,
) -> None:
    await with_ended_steps(store, 2, JobStatus.COMPLETED)
    deleted, _ = await store.delete_package(ACCOUNT, "walk/2")
    assert deleted == step_packages(1)[0]
    with pytest.raises(errors.NotFound, match="model package 'walk/2'"):
        await store.package(ACCOUNT, "walk/2")
    with pytest.raises(errors.NotFound, match="model package 'walk/2'"):
        await store.delete_package(ACCOUNT, "walk/2")
    assert [p.name for p in await store.packages(ACCOUNT, group="walk")] == ["walk/1"]
    assert (await store.package(ACCOUNT, "walk")).name == "walk/1"
    assert await store.next_version(ACCOUNT, ["walk"]) == 3
    again = await store.register([package(2, package_id="pkg_again", path="/blobs/own")])
    assert [p.name for p in again] == ["walk/3"]


async def test_another_account_can_neither_see_nor_delete_a_model(store: SqlStore) -> None:
    await with_ended_steps(store, 1, JobStatus.COMPLETED)
    with pytest.raises(errors.NotFound):
        await store.delete_package(OTHER, "walk/1")
    assert await store.next_version(OTHER, ["walk"]) == 1
    assert (await store.package(ACCOUNT, "walk/1")).version == 1


async def test_only_files_that_nothing_else_is_made_of_are_left_to_remove(
    store: SqlStore,
) -> None:
    await with_ended_steps(store, 2, JobStatus.COMPLETED)
    folder = "/blobs/job_walk/step_0"
    assert (await store.delete_package(ACCOUNT, "walk/1"))[1] == []  # in its checkpoint's folder
    assert (await store.delete_package(ACCOUNT, "walk-checkpoints/1"))[1] == [folder]
    state = ["/blobs/job_walk/step_1/state.safetensors", "/blobs/job_walk/step_1/meta.json"]
    assert (await store.delete_package(ACCOUNT, "walk-checkpoints/2"))[1] == state
    assert (await store.delete_package(ACCOUNT, "walk/2"))[1] == ["/blobs/job_walk/step_1"]
    assert [c.step for c in await store.checkpoints(ACCOUNT, "job_walk")] == [-1]


async def test_what_a_stopped_job_goes_on_from_stays(store: SqlStore) -> None:
    await with_ended_steps(store, 2, JobStatus.STOPPED)
    removed = {
        each.name: (await store.delete_package(ACCOUNT, each.name))[1]
        for step in (0, 1)
        for each in step_packages(step)
    }
    assert removed == {
        "walk/1": [],
        "walk-checkpoints/1": ["/blobs/job_walk/step_0"],
        "walk/2": [],
        "walk-checkpoints/2": [],
    }
    assert [c.step for c in await store.checkpoints(ACCOUNT, "job_walk")] == [-1, 1]


async def test_a_pruned_model_is_deleted_without_its_files(store: SqlStore) -> None:
    await with_steps(store, 3)
    await store.prune(ACCOUNT, "job_walk", [2], adapters=False)
    await store.append(ACCOUNT, "job_walk", [status_event(JobStatus.COMPLETED)])
    assert (await store.delete_package(ACCOUNT, "walk-checkpoints/1"))[1] == []
    assert (await store.delete_package(ACCOUNT, "walk/1"))[1] == ["/blobs/job_walk/step_0"]


async def test_a_model_is_not_deleted_under_a_job_that_has_not_ended(store: SqlStore) -> None:
    await with_steps(store, 3)
    with pytest.raises(errors.Conflict, match="walk/1 is needed by job 'walk', which has not"):
        await store.delete_package(ACCOUNT, "walk/1")
    await store.append(ACCOUNT, "job_walk", [status_event(JobStatus.COMPLETED)])
    compared = EvaluationSpec(models=("base", "walk/2"))
    test = builders.spec("test", kind=JobKind.EVALUATION, evaluation=compared)
    folder = step_packages(2)[0].path
    await store.create_job(job("on", parent="walk/1"))
    await store.create_job(job("test", spec=test))
    await store.create_job(job("from", spec=builders.spec("from", input_adapter=folder)))
    for version, name in ((1, "on"), (2, "test"), (3, "from")):
        with pytest.raises(errors.Conflict, match=f"needed by job '{name}'"):
            await store.delete_package(ACCOUNT, f"walk/{version}")
        await store.append(ACCOUNT, f"job_{name}", [status_event(JobStatus.STOPPED)])
        assert (await store.delete_package(ACCOUNT, f"walk/{version}"))[0].version == version


async def test_no_job_starts_from_what_has_been_deleted_meanwhile(store: SqlStore) -> None:
    await with_ended_steps(store, 1, JobStatus.COMPLETED)
    await store.delete_package(ACCOUNT, "walk/1")
    with pytest.raises(errors.Conflict, match="model 'walk/1' has just been deleted"):
        await store.create_job(job("on", parent="walk/1"))


async def test_a_job_that_ends_promotes_no_deleted_adapter(store: SqlStore) -> None:
    await with_ended_steps(store, 1, JobStatus.STOPPED)
    await store.delete_package(ACCOUNT, "walk/1")
    await store.append(ACCOUNT, "job_walk", [status_event(JobStatus.PENDING)])
    await store.append(ACCOUNT, "job_walk", [status_event(JobStatus.STOPPED)])
    promoted = await store.events(ACCOUNT, "job_walk", kinds=[EventKind.PROMOTION])
    assert [event.body["model"] for event in promoted] == ["walk/1"]  # the first end's


async def test_jobs_of_one_group_get_numbers_of_their_own(store: SqlStore) -> None:
    await with_steps(store, 1)
    await store.create_job(job("run"))
    pair = step_packages(0)
    theirs = tuple(replace(p, package_id=f"{p.package_id}_run", job_id="job_run") for p in pair)
    saved = builders.checkpoint(0, path="/blobs/job_run/step_0")
    done = replace(finished(groups=(), bins={}, packages=theirs), checkpoint=saved)
    await store.finish_step(ACCOUNT, "job_run", done)
    names = [package.name for package in await store.packages(ACCOUNT)]
    assert names == ["walk/1", "walk-checkpoints/1", "walk/2", "walk-checkpoints/2"]


# ── the audit trail ───────────────────────────────────────────────────────────────────────────


def audit_draft(name: str, at: float = 1000.0) -> AuditDraft:
    """A record, as the control plane makes one."""
    who = Identity(number="000000000001", user_name="admin")
    return draft(
        Witnessed(
            account_id=ACCOUNT,
            identity=who,
            at=at,
            region="us-west-2",
            source="sagemaker.amazonaws.com",
            name=name,
            read_only=False,
            request_id=f"{name} {at}",
        )
    )


async def test_audit_records_are_numbered_without_gaps_whoever_appends(store: SqlStore) -> None:
    sealer = Sealer(b"k" * 32)
    await asyncio.gather(
        *(store.append_audit(ACCOUNT, [audit_draft(f"N{n}")] * 2, sealer) for n in range(20)),
        *(store.append_audit(OTHER, [audit_draft(f"O{n}")], sealer) for n in range(5)),
    )
    found = await store.audit_records(ACCOUNT, AuditQuery(newest_first=False, limit=100))
    assert [each.seq for each in found] == list(range(1, 41))
    previous = GENESIS
    for each in found:
        assert each.digest == chained(previous, each.body)
        previous = each.digest
    head = await store.audit_head(ACCOUNT)
    assert (head.last_seq, head.digest, head.seal) == (40, previous, sealer.head(head))
    assert (await store.audit_head(OTHER)).last_seq == 5
    assert (await store.audit_head("acc_nobody")).last_seq == 0


async def test_only_sealed_segments_of_the_audit_trail_are_dropped(store: SqlStore) -> None:
    sealer, day = Sealer(b"k" * 32), 86_400.0
    for n in range(4):
        await store.append_audit(ACCOUNT, [audit_draft("N", 1000.0 + n * day)], sealer)
    assert await store.drop_audit(ACCOUNT, before=1000.0 + 1.5 * day) == 2
    assert await store.drop_audit(ACCOUNT, before=1000.0 + 1.5 * day) == 0
    found = await store.audit_records(ACCOUNT, AuditQuery())
    assert [each.seq for each in found] == [4, 3]
    assert await store.drop_audit(ACCOUNT, before=1e12) == 1  # the open segment stays
    segments = await store.audit_segments(ACCOUNT)
    assert [each.dropped_at for each in segments] == [5000.0] * 3
    assert segments[2].previous == segments[1].digest
