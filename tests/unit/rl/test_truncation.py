from __future__ import annotations

from dataclasses import replace

import pytest

from tests.unit.rl.graphs import Graph, chain
from turnwise.domain import metrics
from turnwise.domain.job import RolloutSpec, TruncatedTurns
from turnwise.domain.rollout import Delivery, FinishReason, RolloutStatus, Trajectory
from turnwise.rl.rows import rows
from turnwise.rl.truncation import (
    is_over_budget,
    learned_rewards,
    penalty_metrics,
    truncation_metrics,
)

KEEP = RolloutSpec()
PENALISE = RolloutSpec(truncated_turns=TruncatedTurns.PENALISE, truncation_penalty=0.25)


def cut(*is_cut: bool, rewards: tuple[float, ...] = (1.0,)) -> Trajectory:
    """Turns of two tokens that extend each other, some of them cut off."""
    graph = Graph()
    leaf = None
    for each in is_cut:
        leaf = graph.turn(leaf, is_cut=each)
    return graph.trajectory(rewards=rewards)


def test_a_masked_turn_is_context_of_the_turns_after_it() -> None:
    (row,) = rows(cut(False, True, False), [1.0, 2.0, 3.0], mask_truncated=True)

    assert row.tokens.tolist() == list(range(100, 112))
    assert row.tokens[row.trained].tolist() == [102, 103, 110, 111]
    assert row.advantages[row.trained].tolist() == [1, 1, 3, 3]


def test_a_masked_last_turn_ends_its_row_before_it() -> None:
    (row,) = rows(cut(False, True), [1.0, 2.0], mask_truncated=True)

    assert row.tokens.tolist() == [100, 101, 102, 103]


def test_a_rollout_of_masked_turns_alone_has_no_row() -> None:
    assert rows(cut(True, True), [1.0, 1.0], mask_truncated=True) == []


@pytest.mark.parametrize(
    ("reported", "learned"),
    [((1.0,), (0.5,)), ((0.0, 1.0, 2.0), (-0.25, 1.0, 1.75))],
    ids=["one number", "one per turn"],
)
def test_each_truncated_turn_costs_the_penalty_once(
    reported: tuple[float, ...], learned: tuple[float, ...]
) -> None:
    trajectory = cut(True, False, True, rewards=reported)

    assert learned_rewards(trajectory, PENALISE) == learned
    assert learned_rewards(trajectory, KEEP) == trajectory.rollout.rewards == reported


def test_a_reply_that_no_agent_got_costs_nothing() -> None:
    graph = Graph()
    graph.turn(None, is_cut=True, delivery=Delivery.UNDELIVERED)

    assert learned_rewards(graph.trajectory(), PENALISE) == (1.0,)


def test_the_penalty_is_told_beside_the_reported_reward() -> None:
    scored = [cut(True, True), cut(False)]

    metrics.check(values := penalty_metrics(scored, PENALISE))
    assert values == {
        "rollout/reward/penalised_mean": 0.75,
        "rollout/truncated/penalised": 1,
    }
    assert penalty_metrics(scored, KEEP) == penalty_metrics([], PENALISE) == {}


def timed_out() -> Trajectory:
    """A failed rollout whose one call took too long."""
    graph = Graph()
    graph.turn(None, completion=9, delivery=Delivery.UNDELIVERED)
    found = graph.trajectory(status=RolloutStatus.FAILED, rewards=None)
    (turn,) = found.turns
    return replace(found, turns=(replace(turn, finish_reason=FinishReason.TIMEOUT),))


def test_what_limits_ended_is_counted() -> None:
    attempts = [cut(True, False, False), cut(False, True), chain(3), timed_out()]

    metrics.check(values := truncation_metrics("val", attempts, RolloutSpec(rollout_max_tokens=6)))
    assert values == {
        "val/turns/at_cap_frac": 2 / 8,
        "val/truncated/any_turn": 2,
        "val/truncated/last_turn": 1,
        "val/truncated/over_budget": 3,  # of three turns, and the failed one with its 9 tokens
        "val/turns/timed_out": 1,
    }


def test_shares_of_turns_are_of_scored_rollouts_alone() -> None:
    failed = replace(cut(True), rollout=timed_out().rollout)

    values = truncation_metrics("rollout", [failed, chain(2)], KEEP)

    assert values["rollout/turns/at_cap_frac"] == 0.0
    assert values["rollout/truncated/any_turn"] == values["rollout/truncated/last_turn"] == 0


def test_without_a_budget_nothing_is_over_it() -> None:
    assert not is_over_budget(chain(9), KEEP)


def test_without_a_scored_rollout_there_is_no_share() -> None:
    assert "eval/turns/at_cap_frac" not in truncation_metrics("eval", [timed_out()], KEEP)
