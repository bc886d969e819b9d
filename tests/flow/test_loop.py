"""A job from its first row to its last adapter, through the loop alone: every neighbour is a fake.

What is locked here: a bad agent costs its own rollouts and never a job; a stop, a crash and a
full disk lose at most the step under way; no trained token is older than the job allows; every
sampled token is accounted for; nothing is left running.
"""

from __future__ import annotations

import asyncio
import shutil
import threading
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from tests import builders
from tests.unit.loop.fakes import (
    FakeSampler,
    until,
    write_adapter_files,
)
from tests.unit.loop.world import (
    LIMITS,
    TWO_STEPS,
    World,
    assert_ledger_is_complete,
    assert_usage_is_the_ledgers,
    make_job,
    resume,
    rows,
    run,
)
from turnwise import errors
from turnwise.agents.scripted import Behaviour
from turnwise.domain import metrics
from turnwise.domain.event import EventDraft, EventKind
from turnwise.domain.job import (
    AsyncSpec,
    BatchSpec,
    CheckpointSpec,
    EvaluationSpec,
    JobKind,
    JobStatus,
    TruncatedTurns,
    ValidationSpec,
)
from turnwise.domain.rollout import (
    FinishReason,
    GroupStatus,
    Policy,
    Purpose,
    Rollout,
    SamplingParams,
)
from turnwise.modeling.fingerprint import fingerprint, folder_sha256
from turnwise.ports import ModelPackage


async def test_a_two_step_job_trains_every_row_once_and_completes(world: World) -> None:
    job = await run(world, make_job())

    assert (job.status, job.message, job.step) == (JobStatus.COMPLETED, "", 2)
    assert [g.status for g in await world.groups()] == [GroupStatus.TRAINED] * 4
    assert sorted(g.row_index for g in await world.groups()) == [0, 1, 2, 3]
    assert [g.step for g in await world.groups()] == [0, 0, 1, 1]
    assert world.gateway.policies == [
        Policy(adapter_id="adapter-0", policy_step=0),
        Policy(adapter_id="adapter-1", policy_step=1),
        Policy(adapter_id="adapter-2", policy_step=2),
    ]
    statuses = [e.body["secondary"] for e in await world.events(EventKind.STATUS)]
    assert statuses == ["Downloading", "Training", "Uploading", "Completed"]
    assert [c.step for c in await world.store.checkpoints(job.account_id, "job_walk")] == [-1, 0, 1]
    packages = await world.store.packages(job.account_id)
    assert [(p.group, p.version, p.kind) for p in packages] == [
        ("walk", 1, "adapter"),
        ("walk-checkpoints", 1, "checkpoint"),
        ("walk", 2, "adapter"),
        ("walk-checkpoints", 2, "checkpoint"),
    ]
    assert world.sampler.adapters == set()
    await assert_ledger_is_complete(world)


async def test_each_step_logs_registered_metrics(world: World) -> None:
    await run(world, make_job())

    logged = [event.body for event in await world.events(EventKind.METRICS)]
    assert [body["step"] for body in logged] == [0, 1]
    for body in logged:
        metrics.check(body["values"])
    values = logged[0]["values"]
    assert values["rollout/reward/mean"] == 0.5
    assert values["rollout/metrics/replies/mean"] == 2.0
    assert values["training/updates"] == 1
    assert values["ledger/trained"] == 16  # 4 rollouts x 2 turns x 2 tokens
    assert values["mismatch/age_0/mean"] == 0.0


async def test_an_agent_that_fails_one_rollout_harms_only_that_rollout(world: World) -> None:
    def fail_slot_1_of_row_0(rollout: Rollout) -> Behaviour:
        is_victim = rollout.row_index == 0 and rollout.slot == 1
        return Behaviour.ABORT if is_victim else Behaviour.PLAY

    world.behave = fail_slot_1_of_row_0
    limits = replace(LIMITS, rollout_max_retries=0)
    three = BatchSpec(global_batch_size=2, group_size=3)
    job = await run(world, make_job(rollout=limits, batch=three))

    assert (job.status, job.step) == (JobStatus.COMPLETED, 2)
    failed = [t.rollout for t in await world.trajectories() if not t.rollout.is_scored]
    assert [(r.row_index, r.slot) for r in failed] == [(0, 1)]
    trained = [
        sum(len(batch.samples) for batch in request.mini_batches)
        for request in world.learner.requests
    ]
    assert sorted(trained) == [5, 6]
    await assert_ledger_is_complete(world)


async def test_an_answer_of_500_is_tried_again_with_a_new_rollout_id(world: World) -> None:
    world.behave = lambda rollout: Behaviour.PLAY if rollout.attempt else Behaviour.ANSWER_500
    await world.store.create_job(job := make_job())
    running = asyncio.create_task(world.loop(job, rows()).run())
    for at in (1000.5, 1001.0):  # one short wait before the second attempts of each step
        await until(lambda at=at: world.clock.waits == [at] * 4)
        world.clock.advance(0.5)
    await running

    assert (await world.job()).status is JobStatus.COMPLETED
    attempts: dict[tuple[str, int], list[str | None]] = {}
    for rollout in [t.rollout for t in await world.trajectories()]:
        code = rollout.fault.code if rollout.fault else None
        attempts.setdefault((rollout.group_id, rollout.slot), []).append(code)
    assert list(attempts.values()) == [["http_error", None]] * 8
    logged = (await world.events(EventKind.METRICS))[0].body["values"]
    assert (logged["rollout/retried"], logged["rollout/failed"]) == (4, 0)


async def test_an_attempt_that_failed_with_its_tokens_used_up_is_the_last(world: World) -> None:
    world.behave = lambda rollout: Behaviour.ABORT
    limits = replace(LIMITS, rollout_max_tokens=2)
    await run(world, make_job(schedule=replace(TWO_STEPS, max_steps=1), rollout=limits))

    logged = (await world.events(EventKind.METRICS))[0].body["values"]
    names = ("rollout/retried", "rollout/failed", "rollout/truncated/over_budget")
    assert [logged[name] for name in names] == [0, 4, 4]
    await assert_ledger_is_complete(world)


async def test_a_deterministic_run_says_once_that_a_retry_made_it_incomparable(
    world: World,
) -> None:
    world.behave = lambda rollout: Behaviour.PLAY if rollout.attempt else Behaviour.ABORT
    job = make_job(deterministic=True, schedule=replace(TWO_STEPS, max_steps=1))
    await world.store.create_job(job)
    running = asyncio.create_task(world.loop(job, rows()).run())
    await until(lambda: world.clock.waits == [1000.5] * 4)
    world.clock.advance(0.5)
    await running

    assert await world.warnings() == [
        "a deadline or a retry happened: this run is not comparable to a repeat of it"
    ]


async def test_an_agent_that_hangs_costs_one_group_timeout(world: World) -> None:
    world.behave = lambda rollout: Behaviour.HANG if rollout.slot == 1 else Behaviour.PLAY
    one_group = BatchSpec(global_batch_size=1, group_size=3)
    job = make_job(batch=one_group, schedule=replace(TWO_STEPS, max_steps=1))
    await world.store.create_job(job)
    running = asyncio.create_task(world.loop(job, rows()).run())
    # its deadline, the second attempt, the group's deadline
    for wakes_at, ended in ((1010.0, 2), (1010.5, 3), (1020.0, 3)):
        await world.waits_only_for(wakes_at, ended=ended)
        world.clock.advance(wakes_at - world.clock.now())
    await running

    assert (await world.job()).status is JobStatus.COMPLETED
    assert world.clock.now() - 1000.0 == job.spec.rollout.group_timeout_s
    stuck = [t.rollout for t in await world.trajectories() if t.rollout.slot == 1]
    assert [r.fault and r.fault.message for r in stuck] == [
        "No sampling requests were received for this rollout"
    ] * 2
    assert len(world.learner.requests) == 1
    await assert_ledger_is_complete(world)


async def test_a_reward_that_is_never_reported_fails_the_rollout_by_name(world: World) -> None:
    world.behave = lambda rollout: Behaviour.NO_REWARD if rollout.slot == 1 else Behaviour.PLAY
    limits = replace(LIMITS, rollout_max_retries=0)
    one_group = BatchSpec(global_batch_size=1, group_size=3)
    job = make_job(batch=one_group, schedule=replace(TWO_STEPS, max_steps=1), rollout=limits)
    await world.store.create_job(job)
    running = asyncio.create_task(world.loop(job, rows()).run())
    await world.waits_only_for(1010.0, ended=2)
    world.clock.advance(10.0)
    await running

    [event] = [e.body for e in await world.events(EventKind.ROLLOUT) if "fault" in e.body]
    assert event["fault"] == {
        "blame": "reward",
        "code": "no_reward",
        "message": "The rollout completed but no reward was received in time",
    }
    assert (event["status"], event["turns"], event["tokens"]) == ("FAILED", 2, 4)
    await assert_ledger_is_complete(world)


async def test_a_step_without_a_reward_that_differs_makes_no_update_and_warns(
    world: World,
) -> None:
    world.reward = lambda rollout: 1.0
    job = await run(world, make_job())

    assert (job.status, job.step, world.learner.requests) == (JobStatus.COMPLETED, 2, [])
    assert await world.warnings() == [
        f"step {step} made no update: none of its 2 groups has rewards that differ between siblings"
        for step in (0, 1)
    ]
    assert {policy.adapter_id for policy in world.gateway.policies} == {"adapter-0"}


async def test_a_step_of_which_nothing_was_scored_warns_with_the_commonest_fault(
    world: World,
) -> None:
    world.behave = lambda rollout: Behaviour.ANSWER_500
    limits = replace(LIMITS, rollout_max_retries=0)
    one_step = replace(TWO_STEPS, max_steps=1)
    batch = BatchSpec(global_batch_size=2, group_size=2)
    await run(world, make_job(schedule=one_step, rollout=limits, batch=batch))

    assert await world.warnings() == [
        "step 0 made no update: none of its 4 attempts was scored; "
        "4 failed so: the agent answered 500: scripted"
    ]
    await assert_ledger_is_complete(world)


async def test_a_step_whose_agents_sampled_nothing_warns_what_to_change(world: World) -> None:
    one_step = replace(TWO_STEPS, max_steps=1)
    await run(world, make_job(schedule=one_step, sampling_params=SamplingParams(temperature=0)))

    assert await world.warnings() == [
        "step 0 made no update: all 16 tokens that could have been learned from were sampled at "
        "temperature 0; have the agent leave the temperature to the job"
    ]
    await assert_ledger_is_complete(world)


async def test_a_step_whose_turns_are_all_masked_warns_what_to_change(world: World) -> None:
    world.gateway.finish_reason = FinishReason.LENGTH
    limits = replace(LIMITS, truncated_turns=TruncatedTurns.MASK)
    await run(world, make_job(schedule=replace(TWO_STEPS, max_steps=1), rollout=limits))

    assert await world.warnings() == [
        "step 0 made no update: all 16 tokens that could have been learned from are of truncated "
        "turns, which rollout.truncated_turns masks; raise max_tokens"
    ]
    await assert_ledger_is_complete(world)


async def test_a_penalty_lowers_what_is_learned_and_no_score(world: World) -> None:
    world.gateway.finish_reason = FinishReason.LENGTH
    world.reward = lambda rollout: 1.0
    limits = replace(LIMITS, truncated_turns=TruncatedTurns.PENALISE, truncation_penalty=0.25)
    every = replace(TWO_STEPS, max_steps=1, val_every=1)
    await run(world, make_job(schedule=every, rollout=limits), validation=rows(1))

    logged = [event.body["values"] for event in await world.events(EventKind.METRICS)]
    [validated, trained, _] = logged
    # Each rollout has two truncated turns.
    assert (trained["rollout/reward/mean"], trained["rollout/reward/penalised_mean"]) == (1.0, 0.5)
    assert trained["rollout/turns/at_cap_frac"] == validated["val/turns/at_cap_frac"] == 1.0
    assert validated["val/reward/mean"] == 1.0
    for values in logged:
        metrics.check(values)


# ── agents that are not there ─────────────────────────────────────────────────────────────────


def gone() -> None:
    raise errors.Unavailable("the agent cannot be reached: GET http://agent/health")


async def test_a_job_whose_agent_is_down_fails_with_the_address(world: World) -> None:
    world.check = gone
    job = await run(world, make_job())

    assert job.status is JobStatus.FAILED
    assert job.message == "the agent cannot be reached: GET http://agent/health"
    assert world.gateway.rollouts == {}


async def test_an_agent_that_goes_away_ends_the_job_instead_of_using_up_its_rows(
    world: World,
) -> None:
    def vanish(rollout: Rollout) -> Behaviour:
        if rollout.step == 0:
            return Behaviour.PLAY
        world.check = gone
        return Behaviour.ANSWER_500

    world.behave = vanish
    limits = replace(LIMITS, rollout_max_retries=0)
    job = await run(world, make_job(rollout=limits))

    assert (job.status, job.step) == (JobStatus.FAILED, 1)
    assert job.message.startswith("the agent cannot be reached")
    await assert_usage_is_the_ledgers(world)


async def test_an_error_nobody_foresaw_fails_the_job_with_its_name(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    def breaks(rollout: Rollout) -> Behaviour:
        raise ZeroDivisionError("division by zero")

    world.behave = breaks
    job = await run(world, make_job())

    assert (job.status, job.message) == (JobStatus.FAILED, "ZeroDivisionError: division by zero")
    assert "a job's loop broke" in caplog.text


async def test_a_dataset_without_rows_fails_the_job_by_name(world: World) -> None:
    await world.store.create_job(job := make_job())
    await world.loop(job, []).run()

    assert (await world.job()).message == "dataset: '/data/train.jsonl' has no rows"


async def test_a_sampler_without_exact_logprobs_is_refused(world: World) -> None:
    world.sampler.sampled_logprobs = False
    job = await run(world, make_job())

    assert job.status is JobStatus.FAILED
    assert "does not give the logprobs of sampled tokens" in job.message


# ── stop, crash, resume ───────────────────────────────────────────────────────────────────────


async def test_a_stopped_job_resumes_at_its_next_step_with_the_groups_it_had(
    world: World,
) -> None:
    await world.store.create_job(job := make_job())
    loop = world.loop(job, rows())
    running = asyncio.create_task(loop.run())
    await until(lambda: len(world.learner.requests) == 1)
    world.learner.may_step.clear()
    await until(lambda: len(world.learner.requests) == 2)
    loop.request_stop()
    await running
    stopped = await world.job()
    assert (stopped.status, stopped.step) == (JobStatus.STOPPED, 1)
    # The second step was under way; its groups are kept, and until then in no step.
    ledger = await world.store.ledger(builders.ACCOUNT, "job_walk")
    assert (ledger[0]["trained"], ledger[1]) == (16, {"dropped_unfinished": 16})
    await assert_usage_is_the_ledgers(world)
    rollouts_before = len(world.gateway.rollouts)

    resumed = await resume(world, job)

    assert (resumed.status, resumed.step, resumed.incarnation) == (JobStatus.COMPLETED, 2, 2)
    assert [request.step for request in world.learner.requests] == [1]
    assert world.learner.updates == 2
    assert len(world.gateway.rollouts) == rollouts_before
    assert [g.status for g in await world.groups()] == [GroupStatus.TRAINED] * 4
    await assert_ledger_is_complete(world)


async def test_a_stop_cancels_open_rollouts_and_their_rows_are_planned_again(
    world: World,
) -> None:
    world.behave = lambda rollout: Behaviour.HANG if rollout.step == 1 else Behaviour.PLAY
    await world.store.create_job(job := make_job())
    loop = world.loop(job, rows())
    running = asyncio.create_task(loop.run())
    await until(lambda: len([r for r in world.gateway.rollouts.values() if r.step == 1]) == 4)
    loop.request_stop()
    await running
    cancelled = [t.rollout.fault for t in await world.trajectories() if t.rollout.fault]
    assert [fault.code for fault in cancelled] == ["cancelled"] * 4
    await assert_usage_is_the_ledgers(world)

    world.behave = lambda rollout: Behaviour.PLAY
    resumed = await resume(world, job)

    assert (resumed.status, resumed.step) == (JobStatus.COMPLETED, 2)
    groups = await world.groups()
    assert [g.order for g in groups] == [0, 1, 2, 3, 2, 3]
    assert [g.row_index for g in groups[2:4]] == [g.row_index for g in groups[4:]]
    assert Counter(g.status for g in groups) == {GroupStatus.TRAINED: 4, GroupStatus.SUPERSEDED: 2}
    await assert_ledger_is_complete(world)


async def test_a_server_that_ends_leaves_the_job_running_for_the_next_one(world: World) -> None:
    world.behave = lambda rollout: Behaviour.HANG
    await world.store.create_job(job := make_job())
    running = asyncio.create_task(world.loop(job, rows()).run())
    await until(lambda: len(world.gateway.rollouts) == 4)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running

    assert (await world.job()).status is JobStatus.RUNNING
    world.behave = lambda rollout: Behaviour.PLAY
    await world.loop(job, rows()).run()
    assert (await world.job()).status is JobStatus.COMPLETED


async def test_a_full_disk_at_a_checkpoint_fails_the_job_and_keeps_the_one_before(
    world: World,
) -> None:
    await world.store.create_job(job := make_job())
    loop = world.loop(job, rows())
    world.learner.breaks[1] = errors.StorageFull("no room for a checkpoint of 3 MB; make room")
    await loop.run()
    failed = await world.job()
    assert (failed.status, failed.step) == (JobStatus.FAILED, 1)
    assert failed.message == "no room for a checkpoint of 3 MB; make room"

    resumed = await resume(world, job)

    assert (resumed.status, resumed.step) == (JobStatus.COMPLETED, 2)


async def test_a_damaged_checkpoint_is_named_and_the_one_before_continues(world: World) -> None:
    schedule = replace(TWO_STEPS, max_epochs=2, max_steps=3)
    await world.store.create_job(job := make_job(schedule=schedule))
    loop = world.loop(job, rows())
    world.learner.breaks[2] = errors.StorageFull("no room")
    await loop.run()
    [*_, newest] = await world.store.checkpoints(builders.ACCOUNT, "job_walk")
    (Path(newest.path) / "state.safetensors").unlink()

    resumed = await resume(world, job)

    assert (resumed.status, resumed.step) == (JobStatus.COMPLETED, 3)
    assert [request.step for request in world.learner.requests] == [1, 2]
    assert await world.warnings() == [
        f"the checkpoint of step 1 is damaged: {newest.path} is not complete; "
        "continuing from that of step 0 instead"
    ]
    groups = await world.groups()
    trained = [g for g in groups if g.status is GroupStatus.TRAINED]
    assert sorted((g.step, g.order) for g in trained) == [
        *((0, 0), (0, 1), (1, 2), (1, 3), (2, 4), (2, 5)),
    ]
    packages = await world.store.packages(builders.ACCOUNT, group="walk")
    assert [(p.version, p.step) for p in packages] == [(1, 0), (2, 1), (3, 1), (4, 2)]
    await assert_ledger_is_complete(world)


async def test_a_job_without_a_sound_checkpoint_fails_by_name(world: World) -> None:
    await world.store.create_job(job := make_job())
    loop = world.loop(job, rows())
    world.learner.breaks[0] = errors.StorageFull("no room")
    await loop.run()
    [initial] = await world.store.checkpoints(builders.ACCOUNT, "job_walk")
    (Path(initial.path) / "state.safetensors").unlink()

    failed = await resume(world, job)

    assert failed.message == "no checkpoint of job 'walk' is sound; start a new job"


async def test_what_is_registered_is_not_written_over_by_a_step_trained_again(
    world: World,
) -> None:
    await world.store.create_job(job := make_job())
    loop = world.loop(job, rows())
    world.learner.breaks[1] = errors.StorageFull("no room")
    await loop.run()
    [first] = await world.store.packages(builders.ACCOUNT, group="walk-checkpoints")
    (Path(first.path) / "state.safetensors").unlink()
    untouched = folder_sha256(Path(first.path))

    await resume(world, job)

    packages = await world.store.packages(builders.ACCOUNT, group="walk-checkpoints")
    assert [(p.version, p.step) for p in packages] == [(1, 0), (2, 0), (3, 1)]
    assert len({p.path for p in packages}) == 3
    assert folder_sha256(Path(first.path)) == untouched


async def test_a_stop_before_the_first_step_says_that_it_leaves_no_model(world: World) -> None:
    world.behave = lambda rollout: Behaviour.HANG
    await world.store.create_job(job := make_job())
    loop = world.loop(job, rows())
    running = asyncio.create_task(loop.run())
    await until(lambda: len(world.gateway.rollouts) == 4)
    loop.request_stop()
    await running

    stopped = await world.job()
    assert (stopped.status, stopped.output, stopped.message) == (
        *(JobStatus.STOPPED, "", "stopped before the end of its first step: it leaves no model"),
    )


async def test_a_failure_leaves_the_last_adapter_and_keeps_its_own_reason(world: World) -> None:
    await world.store.create_job(job := make_job())
    loop = world.loop(job, rows())
    world.learner.breaks[1] = errors.StorageFull("no room for a checkpoint")
    await loop.run()

    failed = await world.job()
    assert (failed.status, failed.output, failed.message) == (
        *(JobStatus.FAILED, "walk/1", "no room for a checkpoint"),
    )


async def test_a_checkpoint_that_never_counted_is_removed_by_the_next_start(world: World) -> None:
    await world.store.create_job(job := make_job())
    loop = world.loop(job, rows())

    async def fails(adapter_id: str, path: str) -> None:
        if adapter_id == "adapter-2":  # between the checkpoint of step 1 and its commit
            raise errors.ProcessDied("the engine's process has ended")

    world.sampler.load = fails
    await loop.run()
    [package] = await registered(world, "walk-checkpoints")
    folder = Path(package.path).parent
    assert {each.name for each in folder.iterdir()} == {
        *("initial.1", "step-00000.1", "step-00001.1"),
    }
    world.sampler = FakeSampler()
    await resume(world, job)

    assert {each.name for each in folder.iterdir()} == {
        *("initial.1", "step-00000.1", "step-00001.2"),
    }


# ── retention ─────────────────────────────────────────────────────────────────────────────────


SIX_STEPS = replace(TWO_STEPS, max_epochs=3, max_steps=6)


async def test_only_the_checkpoints_to_keep_keep_their_files(world: World) -> None:
    keep = CheckpointSpec(keep_last=1, keep_every=3)
    job = await run(world, make_job(schedule=SIX_STEPS, checkpoints=keep))

    kept = [p for p in await registered(world, "walk-checkpoints") if p.pruned_at is None]
    assert [p.step for p in kept] == [2, 4, 5]
    assert all((Path(p.path) / "state.safetensors").is_file() for p in kept)
    recorded = await world.store.checkpoints(job.account_id, "job_walk")
    assert [c.step for c in recorded] == [2, 4, 5]
    adapters = await registered(world, "walk")
    assert [p.pruned_at for p in adapters] == [None] * 6
    folder = Path(kept[0].path).parent
    assert files_of(folder) == {
        **{f"step-0000{n}.1": {"adapter"} for n in (0, 1, 3)},
        **{f"step-0000{n}.1": {"adapter", "state.safetensors"} for n in (2, 4, 5)},
    }


async def test_adapters_are_pruned_only_when_asked_for(world: World) -> None:
    keep = CheckpointSpec(keep_last=3, prune_adapters=True)
    await run(world, make_job(schedule=SIX_STEPS, checkpoints=keep))

    for group in ("walk", "walk-checkpoints"):
        kept = [p for p in await registered(world, group) if p.pruned_at is None]
        assert [p.step for p in kept] == [3, 4, 5]
    assert set(files_of(Path(kept[0].path).parent)) == {f"step-0000{n}.1" for n in (3, 4, 5)}


async def test_a_checkpoint_that_cannot_be_removed_is_a_warning(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(prefix: str) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(world.blobs, "delete", refuse)
    job = await run(world, make_job(checkpoints=CheckpointSpec(keep_last=1)))

    assert job.status is JobStatus.COMPLETED
    [warning] = await world.warnings()
    assert warning.endswith("/initial.1 cannot be removed: Permission denied")


async def test_the_checkpoint_before_the_newest_is_there_to_fall_back_to(world: World) -> None:
    keep = CheckpointSpec(keep_last=1)
    await world.store.create_job(job := make_job(schedule=SIX_STEPS, checkpoints=keep))
    loop = world.loop(job, rows())
    world.learner.breaks[4] = errors.StorageFull("no room")
    await loop.run()
    [before, newest] = await world.store.checkpoints(builders.ACCOUNT, "job_walk")
    assert (before.step, newest.step) == (2, 3)
    shutil.rmtree(newest.path)

    resumed = await resume(world, job)

    assert (resumed.status, resumed.step) == (JobStatus.COMPLETED, 6)
    assert await world.warnings() == [
        f"the checkpoint of step 3 is damaged: {newest.path} is not complete; "
        "continuing from that of step 2 instead"
    ]
    await assert_ledger_is_complete(world)


async def test_a_step_that_is_trained_again_is_validated_again(world: World) -> None:
    schedule = replace(SIX_STEPS, max_steps=4, val_every=1)
    await world.store.create_job(job := make_job(schedule=schedule))
    loop = world.loop(job, rows(), rows(1))
    world.learner.breaks[3] = errors.StorageFull("no room")
    await loop.run()
    [*_, newest] = await world.store.checkpoints(builders.ACCOUNT, "job_walk")
    shutil.rmtree(newest.path)

    await resume(world, job, validation=rows(1))

    told = [event.body["step"] for event in await world.events(EventKind.EVALUATION)]
    assert told == [0, 1, 2, 3, 3, 4]


async def registered(world: World, group: str) -> list[ModelPackage]:
    return await world.store.packages(builders.ACCOUNT, group=group)


def files_of(folder: Path) -> dict[str, set[str]]:
    return {each.name: {file.name for file in each.iterdir()} for each in folder.iterdir()}


# ── a new job from a checkpoint ───────────────────────────────────────────────────────────────


async def test_a_new_job_trains_what_a_checkpoint_had_not_and_stands_on_its_own(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def off_the_loop(folder: Path) -> str:
        assert threading.current_thread() is not threading.main_thread()
        return fingerprint(folder)

    monkeypatch.setattr("turnwise.loop.packages.fingerprint", off_the_loop)
    schedule = replace(SIX_STEPS, max_steps=3)
    await run(world, make_job(schedule=schedule))
    [*_, parent] = await registered(world, "walk-checkpoints")
    spec = replace(make_job(schedule=SIX_STEPS).spec, name="on", resume_from=parent.name)
    on = replace(builders.job("on", spec=spec, step=3, parent=parent.name), job_id="job_on")
    await world.store.create_job(on)
    loop = world.loop(on, rows())
    world.learner.breaks[4] = errors.StorageFull("no room")
    await loop.run()
    shutil.rmtree(parent.path)  # its own copy is all that it needs from now on
    pending = {"status": "PENDING", "secondary": "Pending"}
    await world.store.append(
        builders.ACCOUNT, "job_on", [EventDraft(kind=EventKind.STATUS, body=pending)]
    )
    await world.loop(on, rows()).run()

    ended = await world.store.job(builders.ACCOUNT, "on")
    assert (ended.status, ended.step, ended.output) == (JobStatus.COMPLETED, 6, "on/3")
    groups = await world.store.groups(builders.ACCOUNT, "job_on")
    trained = [(g.step, g.order) for g in groups if g.status is GroupStatus.TRAINED]
    assert trained == [(3, 6), (3, 7), (4, 8), (4, 9), (5, 10), (5, 11)]
    assert world.learner.updates == 6
    [first, *_] = await world.store.packages(builders.ACCOUNT, group="on")
    assert (first.step, first.metadata["parent"]) == (3, "walk-checkpoints/3")


async def test_an_epoch_that_ended_in_a_small_step_can_be_followed_by_a_whole_one(
    world: World,
) -> None:
    one_epoch = replace(SIX_STEPS, max_epochs=1, final_learning_rate_fraction=0.0)
    job = make_job(schedule=one_epoch)
    await world.store.create_job(job)
    await world.loop(job, rows(3)).run()  # steps of two groups and of one
    [*_, parent] = await registered(world, "walk-checkpoints")
    schedule = replace(one_epoch, max_epochs=2)
    spec = replace(job.spec, name="on", resume_from=parent.name, schedule=schedule)
    on = replace(builders.job("on", spec=spec, step=2, parent=parent.name), job_id="job_on")
    await world.store.create_job(on)
    await world.loop(on, rows(3)).run()

    groups = await world.store.groups(builders.ACCOUNT, "job_on")
    assert [(g.step, g.order) for g in groups] == [(2, 3), (2, 4), (3, 5)]
    assert [request.learning_rate for request in world.learner.requests] == [0.0, 0.0]


async def test_a_learner_that_dies_fails_the_job_with_that_reason(world: World) -> None:
    await world.store.create_job(job := make_job())
    loop = world.loop(job, rows())
    world.learner.breaks[-1] = errors.ProcessDied("the learner's process ended")
    await loop.run()

    assert (await world.job()).message == "the learner's process ended"


# ── asynchrony ────────────────────────────────────────────────────────────────────────────────


async def test_agents_go_on_while_the_learner_trains_and_no_token_gets_too_old(
    world: World,
) -> None:
    schedule = replace(TWO_STEPS, max_epochs=3, max_steps=6)
    job = make_job(schedule=schedule, async_config=AsyncSpec(max_steps_off_policy=2))
    await world.store.create_job(job)
    loop = world.loop(job, rows())
    world.learner.may_step.clear()
    running = asyncio.create_task(loop.run())

    async def three_steps_are_collected() -> bool:
        closed = {GroupStatus.CLOSED}
        return [g.status in closed for g in await world.groups()] == [True] * 6

    await until(three_steps_are_collected)
    assert [request.step for request in world.learner.requests] == [0]
    world.learner.may_step.set()
    await running

    assert (await world.job()).status is JobStatus.COMPLETED
    ages = Counter(
        request.step - int(policy_step)
        for request in world.learner.requests
        for batch in request.mini_batches
        for weighted in batch.samples
        for policy_step in weighted.sample.policy_steps[weighted.sample.trained]
    )
    assert set(ages) <= {0, 1, 2}
    assert max(ages) > 0
    await assert_ledger_is_complete(world)


async def test_rollouts_run_at_once_up_to_the_limit(world: World) -> None:
    world.behave = lambda rollout: Behaviour.HANG
    limits = replace(LIMITS, rollout_max_concurrency=3)
    await world.store.create_job(job := make_job(rollout=limits))
    loop = world.loop(job, rows())
    running = asyncio.create_task(loop.run())
    await until(lambda: world.clock.waits == [1010.0] * 3)
    loop.request_stop()
    await running

    assert len(world.gateway.rollouts) == 3


# ── parity ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("is_stale", "error", "verdict"),
    [
        (True, 0.0, "the sampler is wrong, it scores adapter adapter-"),
        (False, 0.25, "sampler and learner compute adapter adapter-"),
    ],
)
async def test_a_sampler_that_disagrees_fails_the_job_where_no_token_is_of_age_0(
    world: World, is_stale: bool, error: float, verdict: str
) -> None:
    job = make_job(async_config=AsyncSpec(max_steps_off_policy=2))
    await world.store.create_job(job)
    loop = world.loop(job, rows())
    world.learner.may_step.clear()  # so that step 1 trains tokens sampled before step 0 ended
    running = asyncio.create_task(loop.run())

    async def both_steps_are_collected() -> bool:
        return [g.status for g in await world.groups()] == [GroupStatus.CLOSED] * 4

    await until(both_steps_are_collected)
    world.sampler.is_stale, world.sampler.error = is_stale, error
    world.learner.may_step.set()
    await running

    failed = await world.job()
    assert (failed.status, failed.step) == (JobStatus.FAILED, 1)
    assert verdict in failed.message
    assert "limit 1e-05" in failed.message


# ── validation ────────────────────────────────────────────────────────────────────────────────


async def test_validation_runs_before_every_so_often_and_at_the_end_on_pinned_policies(
    world: World,
) -> None:
    schedule = replace(TWO_STEPS, max_epochs=2, max_steps=3, val_every=2)
    validation = ValidationSpec(group_size=2, max_rows=1, pass_k_values=(1, 2))
    job = await run(world, make_job(schedule=schedule, validation=validation), validation=rows(2))

    assert (job.status, job.step) == (JobStatus.COMPLETED, 3)
    evaluations = [event.body for event in await world.events(EventKind.EVALUATION)]
    assert [(body["step"], body["purpose"]) for body in evaluations] == [
        (0, "validation"),
        (2, "validation"),
        (3, "validation"),
    ]
    values = evaluations[0]["values"]
    metrics.check(values)
    assert values["val/reward/mean"] == 0.5
    assert values["val/reward/pass_at_2"] == 1.0
    assert values["val/reward/num_prompts"] == 1
    pinned = [
        (t.rollout.policy, {turn.policy for turn in t.turns})
        for t in await world.trajectories()
        if t.rollout.purpose is Purpose.VALIDATION
    ]
    assert [policy.policy_step for policy, _ in pinned if policy] == [0, 0, 2, 2, 3, 3]
    assert all(turns == {policy} for policy, turns in pinned)
    phases = [event.body["secondary"] for event in await world.events(EventKind.STATUS)]
    assert phases == [
        *("Downloading", "Evaluating", "Training", "Evaluating", "Training", "Evaluating"),
        *("Uploading", "Completed"),
    ]
    await assert_ledger_is_complete(world)


async def test_an_evaluation_job_measures_the_base_and_trains_nothing(world: World) -> None:
    evaluation = EvaluationSpec(group_size=2, pass_k_values=(1,))
    job = await run(world, make_job(kind=JobKind.EVALUATION, evaluation=evaluation))

    assert (job.status, job.step, world.learner.requests) == (JobStatus.COMPLETED, 0, [])
    [event] = await world.events(EventKind.EVALUATION)
    metrics.check(event.body["values"])
    assert event.body["purpose"] == "evaluation"
    assert event.body["values"]["eval/reward/pass_at_1"] == 0.5
    assert {t.rollout.policy for t in await world.trajectories()} == {Policy()}
    assert await world.groups() == []
    await assert_ledger_is_complete(world)


async def test_an_evaluation_job_pins_its_adapter(world: World, tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    write_adapter_files(folder)
    await run(world, make_job(kind=JobKind.EVALUATION, input_adapter=str(folder)))

    policies = {t.rollout.policy for t in await world.trajectories()}
    assert policies == {Policy(adapter_id=fingerprint(folder))}
    assert world.sampler.adapters == {fingerprint(folder)}


async def test_an_evaluation_of_a_folder_without_adapter_fails_by_name(
    world: World, tmp_path: Path
) -> None:
    job = await run(world, make_job(kind=JobKind.EVALUATION, input_adapter=str(tmp_path)))

    assert job.status is JobStatus.FAILED
    assert job.message.startswith(f"adapter: {str(tmp_path)!r} cannot be read (FileNotFoundError")
