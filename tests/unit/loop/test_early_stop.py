"""A job ends when a whole epoch gave it nothing to learn from, and says so."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from tests import builders
from tests.unit.loop.fakes import until
from tests.unit.loop.world import (
    LIMITS,
    World,
    assert_ledger_is_complete,
    assert_usage_is_the_ledgers,
    make_job,
    resume,
    rows,
)
from turnwise import errors
from turnwise.agents.scripted import Behaviour
from turnwise.domain.algorithm import AdvantageMethod, AlgorithmSpec
from turnwise.domain.event import EventKind
from turnwise.domain.job import AsyncSpec, BatchSpec, Job, JobStatus, ScheduleSpec, Secondary
from turnwise.domain.rollout import Rollout, RolloutStatus, Trajectory
from turnwise.loop.early_stop import EarlyStop, Tally, tallies
from turnwise.rl.advantages import GroupAdvantages
from turnwise.rl.statistics import ScoredGroup

ONE_TRY = replace(LIMITS, rollout_max_retries=0)
THREE_EPOCHS = ScheduleSpec(max_epochs=3, max_steps=50, val_every=0)  # of two steps, of four rows
EARLY = (JobStatus.COMPLETED, Secondary.EARLY_STOPPED)
COMPLETED = (JobStatus.COMPLETED, Secondary.COMPLETED)


# ── the decision ──────────────────────────────────────────────────────────────────────────────


def alike(epoch: int = 0, *scores: float) -> list[Tally]:
    """Groups that all rollouts scored so."""
    ids = (f"rol_{n}" for n in itertools.count())
    return [Tally(epoch=epoch, groups=1, alike={s: 1}, rollouts=(next(ids),)) for s in scores]


def learnable(epoch: int) -> Tally:
    return Tally(epoch=epoch, groups=1, learnable=1, alike={})


def unscored(epoch: int) -> Tally:
    return Tally(epoch=epoch, groups=1, alike={})


def test_an_epoch_of_equal_scores_stops_the_job_with_the_scores_and_rollouts():
    early = EarlyStop(64)
    early.see(alike(0, *[0.0] * 40))
    assert early.epoch is None
    early.see(alike(0, *[0.0] * 18, *[1.0] * 6))
    assert early.epoch is not None
    assert early.epoch.rollouts == ("rol_0", "rol_1", "rol_2", "rol_3")
    assert early.reason(early.epoch) == (
        "epoch 0 had 64 groups and none with differing rewards (58 scored 0 throughout, 6 scored "
        "1): nothing to learn from; check that the evaluator gives varied scores"
    )


@pytest.mark.parametrize(
    ("seen", "stops"),
    [
        ([*alike(0, 0, 0, 0), learnable(0)], False),
        ([*alike(0, 0, 0, 0, 0), learnable(1)], False),
        ([*alike(0, 0, 0, 0, 0), *alike(1, 0)], True),
        ([learnable(0)] * 4 + alike(1, 1, 1, 1, 1), True),
        ([*alike(0, 0, 0), unscored(0), unscored(0)], True),
        ([*alike(0, 0), *[unscored(0)] * 3], False),
        ([unscored(0)] * 4, False),
        (alike(0, 0, 0, 0), False),  # the rest was trained by the job that this one continues
    ],
)
def test_one_group_to_learn_from_or_too_few_scored_ones_keep_a_job_going(
    seen: list[Tally], stops: bool
):
    assert (EarlyStop(4, seen).epoch is not None) is stops


def test_the_reason_tells_of_earlier_lessons_many_scores_and_what_was_not_scored():
    seen = [learnable(0), *alike(1, 0.5, 0.5, 0.25, 1, 2, 3), unscored(1)]
    early = EarlyStop(7, seen)
    assert early.epoch is not None
    assert early.reason(early.epoch) == (
        "epoch 1 had 7 groups and none with differing rewards (2 scored 0.5 throughout, 1 scored "
        "0.25, 1 scored 1, 2 something else, 1 with fewer than two scored rollouts): nothing left "
        "to learn from; check that the evaluator gives varied scores"
    )
    one = EarlyStop(1, alike(0, -1))
    assert one.epoch is not None
    assert one.reason(one.epoch).startswith(
        "epoch 0 had 1 group and none with differing rewards (1 scored -1 throughout): nothing to"
    )


def scored_group(advantage: float, *rewards: tuple[float, ...] | None) -> ScoredGroup:
    """A group of rollouts with these rewards, None for one that has failed."""
    made = [
        builders.rollout(
            f"rol_{slot}",
            slot=slot,
            rewards=each,
            status=RolloutStatus.FAILED if each is None else RolloutStatus.REWARDED,
        )
        for slot, each in enumerate(rewards)
    ]
    scored = [each for each in rewards if each is not None]
    return ScoredGroup(
        trajectories=tuple(Trajectory(rollout=rollout) for rollout in made),
        advantages=GroupAdvantages(per_turn=tuple((advantage,) for _ in scored)),
        size=len(rewards),
    )


def test_tallies_count_a_steps_groups_by_epoch_and_survive_an_event():
    found = tallies(
        [
            (0, scored_group(0.0, (1.0,), (1.0,), None)),
            (0, scored_group(0.0, (0.5, 0.5), (0.5, 0.5))),
            (0, scored_group(0.0, (1.0, 0.0), (0.0, 1.0))),  # equal sums, different turns
            (0, scored_group(0.0, (1.0,), None)),
            (1, scored_group(0.5, (1.0,), (1.0,))),  # a method that compares across groups
        ]
    )
    shown = ("rol_0", "rol_0")
    assert found == (
        Tally(epoch=0, groups=4, learnable=1, alike={1.0: 2}, rollouts=shown),
        Tally(epoch=1, groups=1, learnable=1, alike={}),
    )
    assert [Tally.from_body(tally.as_body()) for tally in found] == list(found)


# ── the job ───────────────────────────────────────────────────────────────────────────────────


def state(job: Job) -> tuple[JobStatus, Secondary]:
    return job.status, job.secondary


async def run(world: World, **changes: Any) -> Job:
    """A job of at most three epochs of four rows."""
    job = make_job(**({"schedule": THREE_EPOCHS} | changes))
    await world.store.create_job(job)
    await world.loop(job, rows(), rows(1)).run()
    return await world.job()


async def test_a_job_whose_rollouts_all_score_alike_ends_after_its_first_epoch(world: World):
    world.reward = lambda rollout: 0.0
    job = await run(world)
    assert (state(job), job.step) == (EARLY, 2)
    assert job.message == (
        "epoch 0 had 4 groups and none with differing rewards (4 scored 0 throughout): nothing to "
        "learn from; check that the evaluator gives varied scores"
    )
    said = (await world.events(EventKind.STATUS))[-1].body
    rewards = [(await world.store.rollout(each)).reward for each in said["rollouts"]]
    assert rewards == [0.0] * 4
    assert job.output == "walk/2"  # as of any job that has trained two steps
    await assert_ledger_is_complete(world)


async def test_a_job_that_was_to_end_then_anyway_says_so_too(world: World):
    world.reward = lambda rollout: 1.0
    job = await run(world, schedule=ScheduleSpec(max_epochs=1, max_steps=50, val_every=0))
    assert state(job) == EARLY
    assert "(4 scored 1 throughout)" in job.message


async def test_a_job_that_learned_ends_after_the_first_epoch_that_taught_nothing(world: World):
    world.reward = lambda rollout: float(rollout.slot) if rollout.step < 2 else 1.0
    job = await run(world)
    assert (state(job), job.step) == (EARLY, 4)
    assert job.message.startswith("epoch 1 had 4 groups")
    assert "nothing left to learn from" in job.message


@pytest.mark.parametrize(
    ("changes", "reward"),
    [
        ({}, lambda rollout: float(rollout.slot)),
        ({}, lambda rollout: float(rollout.row_index == 1 and rollout.slot)),
        ({"schedule": ScheduleSpec(max_epochs=3, val_every=0, stop_early=False)}, lambda _: 0.0),
    ],
)
async def test_a_job_with_something_to_learn_or_told_not_to_stop_goes_on(
    world: World, changes: dict[str, Any], reward: Callable[[Rollout], float]
):
    world.reward = reward
    job = await run(world, **changes)
    assert (state(job), job.message, job.step) == (COMPLETED, "", 6)


async def test_a_method_that_learns_from_equal_siblings_goes_on(world: World):
    world.reward = lambda rollout: float(rollout.row_index)
    method = AlgorithmSpec(advantage_method=AdvantageMethod.REINFORCE_PP)
    assert (await run(world, algorithm=method)).step == 6


async def test_part_of_an_epoch_is_too_little_to_judge_by(world: World):
    world.reward = lambda rollout: 0.0
    job = await run(world, schedule=ScheduleSpec(max_epochs=3, max_steps=1, val_every=0))
    assert state(job) == COMPLETED


async def test_an_agent_that_scores_nothing_is_not_taken_for_one_that_scores_alike(world: World):
    world.behave = lambda rollout: Behaviour.ANSWER_500
    job = await run(world, rollout=ONE_TRY)
    assert (state(job), job.step) == (COMPLETED, 6)
    assert all("none of its 4 attempts was scored" in each for each in await world.warnings())


async def test_an_agent_that_is_gone_still_fails_the_job(world: World):
    world.behave = lambda rollout: Behaviour.ABORT
    checked = itertools.count()

    def check() -> None:
        if next(checked):
            raise errors.Unavailable("the agent is gone")

    world.check = check
    job = await run(world, rollout=ONE_TRY)
    assert (job.status, job.secondary) == (JobStatus.FAILED, Secondary.FAILED)
    assert "the agent is gone" in job.message


async def test_replaced_groups_count_for_their_epoch(world: World):
    world.reward = lambda rollout: 0.0
    batch = BatchSpec(global_batch_size=2, group_size=2, refill=True)
    job = await run(world, batch=batch)
    assert (state(job), job.step) == (EARLY, 1)  # two groups and the two that replaced them


async def test_rollouts_of_steps_that_will_not_be_are_given_up(world: World):
    world.reward = lambda rollout: 0.0
    world.behave = lambda r: Behaviour.HANG if r.step == 1 and r.row_index else Behaviour.PLAY
    batch = BatchSpec(global_batch_size=4, group_size=2)
    job = await run(world, batch=batch, async_config=AsyncSpec(max_steps_off_policy=1))
    assert (state(job), job.step) == (EARLY, 1)
    assert not any(t.rollout.status.is_open for t in await world.trajectories())
    await assert_usage_is_the_ledgers(world)


async def test_the_last_policy_is_validated_before_an_early_end(world: World):
    world.reward = lambda rollout: 0.0
    await run(world, schedule=ScheduleSpec(max_epochs=3, max_steps=50, val_every=10))
    assert [e.body["step"] for e in await world.events(EventKind.EVALUATION)] == [0, 2]


async def test_a_job_that_is_stopped_and_resumed_remembers_its_epoch(world: World):
    world.reward = lambda rollout: 0.0
    world.behave = lambda rollout: Behaviour.HANG if rollout.step == 1 else Behaviour.PLAY
    job = make_job(schedule=THREE_EPOCHS)
    await world.store.create_job(job)
    loop = world.loop(job, rows())
    running = asyncio.create_task(loop.run())
    await until(lambda: any(r.step == 1 for r in world.gateway.rollouts.values()))
    loop.request_stop()
    await running
    stopped = await world.job()
    assert (stopped.status, stopped.step) == (JobStatus.STOPPED, 1)
    world.behave = lambda rollout: Behaviour.PLAY
    job = await resume(world, job)
    assert (state(job), job.step) == (EARLY, 2)


async def test_a_server_that_dies_before_it_says_so_says_so_after(world: World):
    world.reward = lambda rollout: 0.0
    job = make_job(schedule=THREE_EPOCHS)
    await world.store.create_job(job)
    has_ended, dies = asyncio.Event(), asyncio.Event()

    async def deliver(job: Job) -> None:
        """What a job does last before it says that it has ended."""
        has_ended.set()
        await dies.wait()

    world.deliver = deliver
    running = asyncio.create_task(world.loop(job, rows()).run())
    await has_ended.wait()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert (await world.job()).status is JobStatus.RUNNING
    dies.set()
    await world.loop(job, rows()).run()
    job = await world.job()
    assert (state(job), job.step) == (EARLY, 2)
