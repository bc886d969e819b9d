"""Refill and adaptive group size, through the loop alone: fakes all around (see test_loop)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from tests.unit.loop.world import (
    LIMITS,
    World,
    assert_ledger_is_complete,
    make_job,
    resume,
    rows,
)
from turnwise import errors
from turnwise.agents.scripted import Behaviour
from turnwise.domain.event import EventKind
from turnwise.domain.job import AsyncSpec, BatchSpec, JobStatus, ScheduleSpec
from turnwise.domain.rollout import GroupStatus, Rollout

TWO_STEPS = ScheduleSpec(max_epochs=9, max_steps=2, val_every=0, stop_early=False)


async def train(world: World, **changes: Any) -> list[dict[str, float]]:
    """The metrics of each step of a job over eight rows."""
    await world.store.create_job(make_job(**({"schedule": TWO_STEPS} | changes)))
    await world.loop(await world.job(), rows(8)).run()
    job = await world.job()
    assert (job.status, job.message) == (JobStatus.COMPLETED, "")
    await assert_ledger_is_complete(world)
    return [event.body["values"] for event in await world.events(EventKind.METRICS)]


def equal_in_rows(*constant: int) -> Callable[[Rollout], float]:
    """Rewards that differ between siblings, but for the groups of these rows."""
    return lambda rollout: 1.0 if rollout.row_index in constant else float(rollout.slot)


async def test_a_refilled_step_trains_a_full_batch_and_counts_what_it_replaced(
    world: World,
) -> None:
    world.reward = equal_in_rows(0, 1, 2, 3)
    refilling = BatchSpec(global_batch_size=4, group_size=2, refill=True)

    steps = await train(world, batch=refilling)

    names = ("refilled_groups", "zero_adv_groups", "batch_valid_ratio")
    taken = [[values[f"analysis/{name}"] for name in names] for values in steps]
    groups = Counter(group.step for group in await world.groups())
    assert taken == [[n - 4, n - 4, 4 / n] for n in (groups[0], groups[1])]
    assert groups[0] + groups[1] == 16  # two rounds of eight rows, half of them constant
    assert [values["training/num_trajectories"] for values in steps] == [8, 8]
    assert all(group.status is GroupStatus.TRAINED for group in await world.groups())


async def test_a_step_refills_at_most_one_batch(world: World) -> None:
    world.reward = lambda rollout: 1.0

    steps = await train(world, batch=BatchSpec(global_batch_size=2, group_size=2, refill=True))

    assert [values["analysis/refilled_groups"] for values in steps] == [2, 2]
    assert Counter(group.step for group in await world.groups()) == {0: 4, 1: 4}
    assert len(await world.warnings()) == 2  # each says that its step made no update


async def test_refilling_goes_on_over_several_policies_within_the_bound(
    world: World,
) -> None:
    world.reward = equal_in_rows(1, 4, 6)

    steps = await train(
        world,
        batch=BatchSpec(global_batch_size=2, group_size=2, refill=True),
        schedule=ScheduleSpec(max_epochs=9, max_steps=6, val_every=0),
        async_config=AsyncSpec(max_steps_off_policy=2),
    )

    assert len(steps) == 6
    assert max(values["staleness/max"] for values in steps) <= 2
    assert all(values["analysis/batch_valid_ratio"] > 0 for values in steps)


async def test_a_group_whose_pilot_agrees_ends_with_it(world: World) -> None:
    world.reward = equal_in_rows(0, 1, 2, 3)
    pilots = BatchSpec(global_batch_size=4, group_size=4, pilot_size=2)

    steps = await train(world, batch=pilots)

    rollouts = Counter(t.rollout.group_id for t in await world.trajectories())
    sizes = {group.group_id: 2 if group.row_index < 4 else 4 for group in await world.groups()}
    assert rollouts == sizes
    assert sum(values["analysis/settled_groups"] for values in steps) == 4
    # A slot that was not needed did not fail.
    assert [values["analysis/batch_completion_ratio"] for values in steps] == [1.0, 1.0]
    assert [values["rollout/failed"] for values in steps] == [0, 0]


async def test_a_pilot_of_which_too_few_were_scored_decides_nothing(
    world: World,
) -> None:
    world.behave = lambda rollout: Behaviour.ABORT if rollout.slot == 0 else Behaviour.PLAY
    world.reward = lambda rollout: 1.0 if rollout.slot < 2 else float(rollout.slot)

    steps = await train(
        world,
        batch=BatchSpec(global_batch_size=4, group_size=4, pilot_size=2),
        rollout=replace(LIMITS, rollout_max_retries=0),
    )

    assert [values["analysis/settled_groups"] for values in steps] == [0, 0]
    assert [values["rollout/failed"] for values in steps] == [4, 4]


async def test_a_job_that_refills_resumes_with_the_places_that_are_left(
    world: World,
) -> None:
    world.reward = equal_in_rows(0, 3, 5)
    job = make_job(
        batch=BatchSpec(global_batch_size=2, group_size=2, refill=True),
        schedule=ScheduleSpec(max_epochs=1, max_steps=9, val_every=0),
    )
    await world.store.create_job(job)
    loop = world.loop(job, rows(8))
    world.learner.breaks[1] = errors.StorageFull("no room")
    await loop.run()
    assert (await world.job()).status is JobStatus.FAILED

    resumed = await resume(world, job, rows(8))

    assert (resumed.status, resumed.message) == (JobStatus.COMPLETED, "")
    groups = await world.groups()
    trained = [group.row_index for group in groups if group.status is GroupStatus.TRAINED]
    assert sorted(trained) == list(range(8))
    await assert_ledger_is_complete(world)
