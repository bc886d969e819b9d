from __future__ import annotations

from dataclasses import replace
from typing import Any

from tests import builders
from tests.unit.rl.graphs import Graph, chain
from turnwise.domain.job import BatchSpec, JobSpec, RolloutSpec, TruncatedTurns
from turnwise.domain.rollout import Blame, Fault, RolloutStatus, Trajectory
from turnwise.loop.pilot import first_slots, is_settled, slots_used

FAILED = Fault(blame=Blame.AGENT, code="http_error")


def spec(pilot: int = 2, **changes: Any) -> JobSpec:
    return builders.spec(batch=BatchSpec(group_size=4, pilot_size=pilot), **changes)


def attempts(*rewards: float) -> list[Trajectory]:
    """Scored rollouts, one per slot."""
    return [chain(1, slot=slot, rewards=(reward,)) for slot, reward in enumerate(rewards)]


def failed(slot: int, reward: float) -> Trajectory:
    """A rollout whose reward came after it had failed."""
    return chain(1, slot=slot, status=RolloutStatus.FAILED, rewards=(reward,), fault=FAILED)


def test_a_pilot_settles_what_it_agrees_on() -> None:
    assert is_settled(spec(), attempts(1.0, 1.0))
    assert not is_settled(spec(), attempts(1.0, 0.0))


def test_rollouts_that_failed_neither_agree_nor_disagree() -> None:
    assert is_settled(spec(pilot=3), [*attempts(1.0, 1.0), failed(2, 0.0)])
    assert not is_settled(spec(), [*attempts(1.0), failed(1, 1.0)])
    assert not is_settled(spec(), [failed(0, 1.0), failed(1, 1.0)])


def test_a_pilot_agrees_on_what_learning_makes_of_rewards() -> None:
    graph = Graph()
    graph.turn(None, is_cut=True)
    pilot = [chain(1, slot=0), graph.trajectory(slot=1)]  # both reported 1
    limits = RolloutSpec(truncated_turns=TruncatedTurns.PENALISE, truncation_penalty=0.5)

    assert is_settled(spec(), pilot)
    assert not is_settled(spec(rollout=limits), pilot)


def test_a_settled_group_has_the_slots_of_its_pilot() -> None:
    assert slots_used(spec(), attempts(1.0, 1.0), 4) == 2
    assert slots_used(spec(), attempts(1.0, 1.0, 1.0, 1.0), 4) == 4  # resumed from before a pilot
    retried = [failed(0, 0.0), *attempts(1.0, 1.0)]
    assert slots_used(spec(), retried, 4) == 2


def test_a_group_whose_time_was_over_before_its_rest_began_lacks_that_rest() -> None:
    assert slots_used(spec(), attempts(1.0, 0.0), 4) == 4
    assert slots_used(spec(), attempts(1.0), 4) == 4


def test_a_third_rollout_is_no_part_of_a_pilot_of_two() -> None:
    third = replace(chain(1, rewards=(1.0,)).rollout, slot=2)

    assert slots_used(spec(), [*attempts(1.0, 1.0), replace(chain(1), rollout=third)], 4) == 4


def test_without_a_pilot_all_slots_start_at_once() -> None:
    assert (first_slots(spec()), first_slots(spec(pilot=0))) == (2, 4)
    assert slots_used(spec(pilot=0), attempts(1.0, 1.0), 2) == 2
