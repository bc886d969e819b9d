from __future__ import annotations

from typing import Any

import pytest

from tests import builders
from tests.unit.loop.world import World, make_job, run
from turnwise.agents.scripted import Behaviour
from turnwise.domain.job import JobKind, JobStatus
from turnwise.domain.rollout import Blame, Fault, RolloutStatus, Trajectory
from turnwise.loop.collect import is_worth_another, new_secret, overdue

FAILED = RolloutStatus.FAILED


def trajectory(*, turns: int = 0, **changes: Any) -> Trajectory:
    made = [builders.turn_with_nodes(index) for index in range(turns)]
    return Trajectory(
        rollout=builders.rollout(**changes),
        nodes=tuple(node for nodes, _ in made for node in nodes),
        turns=tuple(turn for _, turn in made),
    )


@pytest.mark.parametrize(
    ("late", "blame", "code", "message"),
    [
        (
            trajectory(),
            "agent",
            "no_turns",
            "No sampling requests were received for this rollout",
        ),
        (trajectory(turns=2), "agent", "deadline", "not completed within 600 s"),
        (
            trajectory(turns=2, status=RolloutStatus.READY),
            "reward",
            "no_reward",
            "The rollout completed but no reward was received in time",
        ),
    ],
)
def test_an_overdue_rollout_says_what_it_lacked(
    late: Trajectory, blame: str, code: str, message: str
) -> None:
    fault = overdue(late)
    assert (fault.blame, fault.code, fault.message) == (blame, code, message)


@pytest.mark.parametrize("retryable", [True, False])
def test_only_failures_that_may_pass_are_worth_another_attempt(retryable: bool) -> None:
    fault = Fault(blame=Blame.AGENT, code="http_error", retryable=retryable)
    assert is_worth_another(trajectory(status=FAILED, fault=fault)) is retryable
    assert not is_worth_another(trajectory(status=RolloutStatus.REWARDED, rewards=(0.0,)))


def test_secrets_are_letters_for_they_stand_in_urls() -> None:
    one, other = new_secret(), new_secret()
    assert one != other
    assert len(one) == 32
    assert one.isalpha()
    assert one.islower()


async def test_an_agent_that_refuses_to_be_called_ends_its_job_at_once(world: World) -> None:
    world.behave = lambda rollout: Behaviour.DENY if rollout.slot else Behaviour.PLAY

    job = await run(world, make_job())

    assert (job.status, job.step) == (JobStatus.FAILED, 0)
    assert job.message == (
        "the agent refuses to be called: the agent answered 403: scripted; "
        "let it accept this service's calls"
    )
    ended = [trajectory.rollout for trajectory in await world.trajectories()]
    assert not any(rollout.status.is_open for rollout in ended)
    refused = [rollout for rollout in ended if rollout.fault and rollout.fault.is_fatal]
    assert refused
    assert {rollout.attempt for rollout in refused} == {0}  # none was tried again


async def test_an_evaluation_whose_agent_refuses_to_be_called_fails_at_once(world: World) -> None:
    world.behave = lambda rollout: Behaviour.DENY
    job = await run(world, make_job(kind=JobKind.EVALUATION))
    assert job.status is JobStatus.FAILED
    assert job.message.startswith("the agent refuses to be called: ")
    assert {t.rollout.attempt for t in await world.trajectories()} == {0}
