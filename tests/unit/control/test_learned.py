"""What is told of a trained group against what the step itself lays out of the same rollouts."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

import pytest

from tests import builders
from tests.builders import ACCOUNT
from tests.dashboard.rollout_kit import record, take
from tests.unit.control.kit import ADMIN
from turnwise import errors
from turnwise.control.learned import GroupCredit, Learned
from turnwise.domain.access import Principal
from turnwise.domain.algorithm import AlgorithmSpec
from turnwise.domain.job import Job, JobSpec, RolloutSpec, TruncatedTurns
from turnwise.domain.ledger import Bin
from turnwise.domain.rollout import Blame, Fault, FinishReason, GroupStatus, SamplingParams
from turnwise.domain.training import AdvantageMethod
from turnwise.loop.assemble import Assembly, ClosedGroup, assemble
from turnwise.storage.sql import SqlStore

#: Rewards by group and slot; None is a failure. A turn each, but for lists: a turn per number.
REWARDS: Mapping[str, tuple[tuple[float, ...] | None, ...]] = {
    "grp_a": ((1.0,), (0.0,), None, (0.25, 0.5)),
    "grp_b": ((0.5,), (0.5,)),
    "grp_c": ((0.0,), (3.0, 1.0)),
    "grp_d": ((1.0,), None),
}


def a_spec(method: AdvantageMethod, rule: TruncatedTurns = TruncatedTurns.KEEP) -> JobSpec:
    return builders.spec(
        algorithm=AlgorithmSpec(advantage_method=method, turn_discount=0.5, pass_k=2),
        rollout=RolloutSpec(truncated_turns=rule, truncation_penalty=0.125),
    )


async def play(store: SqlStore, spec: JobSpec) -> Job:
    """The rollouts of four groups, whose turns are of different lengths; one was cut off."""
    job = await store.create_job(builders.job(spec=spec))
    for order, (group_id, rewards) in enumerate(REWARDS.items()):
        await store.open_group(builders.group(group_id, order=order, size=len(rewards)))
        for slot, reported in enumerate(rewards):
            rollout = builders.rollout(f"rol_{group_id[-1]}{slot}", group_id=group_id, slot=slot)
            turns = [
                builders.turn_with_nodes(
                    at,
                    completion=range(1, 3 + order + slot + at),
                    finish_reason=FinishReason.LENGTH if slot == 1 else FinishReason.STOP,
                )
                for at in range(len(reported or (0.0,)))
            ]
            fault = None if reported else Fault(blame=Blame.AGENT, code="agent_failed")
            await record(store, rollout, turns, rewards=reported, fault=fault)
    return job


async def laid_out(store: SqlStore, job: Job) -> Assembly:
    closed = [
        ClosedGroup(group=group, attempts=tuple(await store.group_trajectories(ACCOUNT, group_id)))
        for group_id in REWARDS
        for group in await store.groups(ACCOUNT, job.job_id, group_id=group_id)
    ]
    return assemble(job.spec, 0, closed, 1e-4)


async def told(store: SqlStore, job: Job) -> dict[str, GroupCredit]:
    learned = Learned(store)
    found = {each: await learned.of_group(ADMIN, job, each) for each in REWARDS}
    return {group_id: credit for group_id, credit in found.items() if credit is not None}


@pytest.mark.parametrize("rule", list(TruncatedTurns))
@pytest.mark.parametrize("method", list(AdvantageMethod))
async def test_the_advantages_told_are_those_that_the_step_trains_with(
    store: SqlStore, method: AdvantageMethod, rule: TruncatedTurns
):
    job = await play(store, a_spec(method, rule))
    step = await laid_out(store, job)
    await take(store, 0, REWARDS)

    credits = {
        id: its for group in (await told(store, job)).values() for id, its in group.of.items()
    }

    assert step.request is not None
    trained = {
        (sample.rollout_id, float(value))
        for batch in step.request.mini_batches
        for weighted in batch.samples
        for sample in [weighted.sample]
        for value in sample.advantages[sample.trained]
    }
    said = {
        (rollout_id, float(builders.floats(value)[0]))
        for rollout_id, its in credits.items()
        for value, bins in zip(its.advantages, its.bins, strict=False)
        if Bin.TRAINED in bins
    }
    assert said == trained
    assert {
        id: dict(sum((Counter(turn) for turn in its.bins), Counter()))
        for id, its in credits.items()
    } == {id: dict(bins) for id, bins in step.bins.items()}


async def test_a_group_that_no_step_took_has_a_status_and_no_advantages(store: SqlStore):
    job = await play(store, a_spec(AdvantageMethod.RLOO))
    await store.close_group(ACCOUNT, "grp_b")
    learned = Learned(store)

    assert await learned.of_group(ADMIN, job, "grp_a") == GroupCredit(
        status=GroupStatus.OPEN, method=AdvantageMethod.RLOO
    )
    closed = await learned.of_group(ADMIN, job, "grp_b")
    assert closed is not None
    assert (closed.status, closed.of) == (GroupStatus.CLOSED, {})
    assert await learned.of_group(ADMIN, job, "grp_of_validation") is None


async def test_a_failed_attempt_of_a_trained_group_has_its_bins_alone(store: SqlStore):
    job = await play(store, a_spec(AdvantageMethod.GROUP_BASED))
    await take(store, 0, REWARDS)

    failed = (await told(store, job))["grp_a"].of["rol_a2"]

    assert failed.advantages == ()
    assert failed.bins == ({Bin.DROPPED_FAILED: 4},)


async def test_a_greedy_turn_has_an_advantage_and_is_not_trained(store: SqlStore):
    job = await store.create_job(builders.job(spec=a_spec(AdvantageMethod.RLOO)))
    await store.open_group(builders.group())
    for slot, temperature in enumerate((0.0, 1.0)):
        turn = builders.turn_with_nodes(sampling=SamplingParams(temperature=temperature))
        its = replace(builders.rollout(f"rol_{slot}"), slot=slot)
        await record(store, its, [turn], rewards=(float(slot),))
    await take(store, 0, ["grp_a"])

    found = await Learned(store).of_group(ADMIN, job, "grp_a")

    assert found is not None
    assert found.of["rol_0"].advantages == (-1.0,)
    assert found.of["rol_0"].bins == ({Bin.MASKED_GREEDY: 2},)


async def test_a_key_for_other_jobs_is_told_nothing(store: SqlStore):
    job = await play(store, a_spec(AdvantageMethod.RLOO))
    other = Principal(account_id=ACCOUNT, job_ids=frozenset({"job_run"}))

    with pytest.raises(errors.Denied):
        await Learned(store).of_group(other, job, "grp_a")
