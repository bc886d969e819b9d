from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given

from tests.unit.rl.graphs import Graph, chain, think_drop, trajectories
from turnwise import errors
from turnwise.domain.rollout import Delivery, Trajectory
from turnwise.domain.training import Sample
from turnwise.rl.rows import is_trainable, rows
from turnwise.rl.rows import trained_tokens as lengths


def trained_tokens(samples: list[Sample]) -> list[int]:
    return [token for sample in samples for token in sample.tokens[sample.trained].tolist()]


def advantages_of(trajectory: Trajectory) -> list[float]:
    return [float(turn.index + 1) for turn in trajectory.delivered]


def test_turns_that_extend_each_other_share_one_row() -> None:
    (row,) = rows(chain(3), [1.0, 2.0, 3.0])

    assert row.tokens.tolist() == list(range(100, 112))
    assert row.trained.tolist() == [False, False, True, True] * 3
    assert row.advantages.tolist() == [0, 0, 1, 1, 0, 0, 2, 2, 0, 0, 3, 3]
    assert row.logprobs.tolist() == [
        *(0, 0, -0.125, -0.25),
        *(0, 0, -1.125, -1.25),
        *(0, 0, -2.125, -2.25),
    ]


def test_a_shared_completion_is_trained_in_the_first_row_and_read_in_the_others() -> None:
    graph = Graph()
    first = graph.turn(None)
    graph.turn(first)
    graph.turn(first)

    one, two = rows(graph.trajectory(), [1.0, 1.0, 1.0])

    assert one.tokens.tolist() == [100, 101, 102, 103, 104, 105, 106, 107]
    assert one.trained.tolist() == [False, False, True, True, False, False, True, True]
    assert two.tokens.tolist() == [100, 101, 102, 103, 108, 109, 110, 111]
    assert two.trained.tolist() == [False] * 6 + [True, True]


def test_each_token_keeps_its_turns_temperature_and_policy_step() -> None:
    graph = Graph()
    first = graph.turn(None, temperature=0.5, policy_step=3)
    graph.turn(first, temperature=0.75, policy_step=4)

    (row,) = rows(graph.trajectory(), [1.0, 1.0])

    assert row.temperatures.tolist() == [1, 1, 0.5, 0.5, 1, 1, 0.75, 0.75]
    assert row.policy_steps.tolist() == [0, 0, 3, 3, 0, 0, 4, 4]


def test_undelivered_and_greedy_turns_are_not_trained() -> None:
    graph = Graph()
    first = graph.turn(None)
    graph.turn(first, delivery=Delivery.UNDELIVERED)
    greedy = graph.turn(first, temperature=0.0)
    graph.turn(greedy)

    (row,) = rows(graph.trajectory(), [1.0, 1.0, 1.0])

    assert row.tokens.tolist() == [100, 101, 102, 103, *range(108, 116)]
    assert row.tokens[row.trained].tolist() == [102, 103, 114, 115]


def test_a_row_ends_at_its_last_trainable_turn() -> None:
    graph = Graph()
    graph.turn(graph.turn(None), temperature=0.0)

    (row,) = rows(graph.trajectory(), [1.0, 1.0])

    assert row.tokens.tolist() == [100, 101, 102, 103]


def test_the_first_position_is_not_trained() -> None:
    graph = Graph()
    graph.turn(None, prompt=0, completion=3)
    graph.turn(None, prompt=0, completion=1)

    (row,) = rows(graph.trajectory(), [1.0, 1.0])

    assert row.trained.tolist() == [False, True, True]
    assert row.logprobs.tolist() == [0.0, -0.25, -0.375]
    assert lengths(graph.trajectory()) == (2, 0)  # as many as the advantages weigh by


def test_dropped_thinking_still_trains_every_sampled_token() -> None:
    trajectory = think_drop(turns=8, think=200, answer=60)

    samples = rows(trajectory, [1.0] * 8)

    assert len(samples) == 8
    assert sum(sample.num_trained for sample in samples) == trajectory.sampled_tokens == 2080


def test_a_wrong_number_of_advantages_is_refused() -> None:
    with pytest.raises(errors.InvalidInput) as refused:
        rows(chain(3), [1.0])

    assert str(refused.value) == "advantages: [1.0] must have 3 values, one per turn"


@given(trajectories())
def test_each_trainable_token_is_trained_exactly_once(trajectory: Trajectory) -> None:
    samples = rows(trajectory, advantages_of(trajectory))

    expected = [
        int(token)
        for turn in trajectory.turns
        if is_trainable(turn)
        for token in _after_first_position(trajectory, turn.leaf)
    ]
    assert Counter(trained_tokens(samples)) == Counter(expected)


@given(trajectories())
def test_every_row_is_a_path_and_no_row_is_part_of_another(trajectory: Trajectory) -> None:
    samples = rows(trajectory, advantages_of(trajectory))

    paths = {
        tuple(np.concatenate([n.tokens for n in trajectory.path(turn.leaf)]).tolist())
        for turn in trajectory.delivered
    }
    laid_out = [tuple(sample.tokens.tolist()) for sample in samples]
    assert set(laid_out) <= paths
    for i, row in enumerate(laid_out):
        others = laid_out[:i] + laid_out[i + 1 :]
        assert not any(other[: len(row)] == row for other in others)


@given(trajectories())
def test_each_trained_token_has_the_values_of_its_own_turn(trajectory: Trajectory) -> None:
    values = {}
    for turn, advantage in zip(trajectory.delivered, advantages_of(trajectory), strict=True):
        node = trajectory.nodes[turn.leaf]
        assert node.logprobs is not None
        for token, logprob in zip(node.tokens.tolist(), node.logprobs.tolist(), strict=True):
            temperature = np.float32(turn.sampling.temperature)
            values[token] = (logprob, advantage, temperature, turn.policy.policy_step)

    for sample in rows(trajectory, advantages_of(trajectory)):
        for at in np.flatnonzero(sample.trained):
            found = (
                sample.logprobs[at],
                sample.advantages[at],
                sample.temperatures[at],
                sample.policy_steps[at],
            )
            assert found == values[int(sample.tokens[at])]
        read = ~sample.trained
        assert not sample.logprobs[read].any()
        assert not sample.advantages[read].any()
        assert (sample.temperatures[read] == 1).all()


def _after_first_position(trajectory: Trajectory, leaf: int) -> np.ndarray:
    *before, node = trajectory.path(leaf)
    return node.tokens if any(len(n.tokens) for n in before) else node.tokens[1:]
