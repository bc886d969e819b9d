from __future__ import annotations

import statistics
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from turnwise import errors
from turnwise.domain.training import AdvantageMethod
from turnwise.rl.advantages import GroupAdvantages, advantages

ALL = list(AdvantageMethod)
PER_TURN = AdvantageMethod.GROUP_BASED_PER_TURN

Rewards = list[tuple[float, ...]]


@st.composite
def groups(draw: st.DrawFn, least: int = 2) -> tuple[Rewards, list[int]]:
    """Rewards of a group, single numbers and lists mixed, and how many turns each rollout had."""
    reward = st.one_of(st.sampled_from([0.0, 0.5, 1.0]), st.floats(-10, 10, width=32))
    num_turns = draw(st.lists(st.integers(1, 4), min_size=least, max_size=6))
    rewards = [
        tuple(draw(st.lists(reward, min_size=size, max_size=size)))
        for size in (draw(st.sampled_from([1, turns])) for turns in num_turns)
    ]
    return rewards, num_turns


def oracle(
    method: AdvantageMethod, rewards: Rewards, num_turns: list[int], discount: float
) -> list[list[float]]:
    """The formulas by the book, in exact fractions but for the square root."""
    exact = [[Fraction(r) for r in reported] for reported in rewards]
    if method is not PER_TURN:
        scores = [sum(reported) for reported in exact]
        values = grpo(scores) if method is AdvantageMethod.GROUP_BASED else leave_one_out(scores)
        return [[values[i]] * turns for i, turns in enumerate(num_turns)]
    if all(reported == exact[0] for reported in exact):
        return [[0.0] * turns for turns in num_turns]
    spread = [
        reported if len(reported) == turns else [Fraction(0)] * (turns - 1) + reported
        for reported, turns in zip(exact, num_turns, strict=True)
    ]
    whole = grpo([sum(reported) for reported in exact])
    found = []
    for i, mine in enumerate(spread):
        found.append([])
        for j in range(num_turns[i]):
            peers = {
                k: sum(Fraction(discount) ** (m - j) * theirs[m] for m in range(j, len(theirs)))
                for k, theirs in enumerate(spread)
                if len(theirs) > j
            }
            at = list(peers).index(i)
            found[i].append(whole[i] if len(peers) == 1 else grpo(list(peers.values()))[at])
        assert len(found[i]) == len(mine)
    return found


def grpo(scores: list[Fraction]) -> list[float]:
    mean = sum(scores) / len(scores)
    return [float(score - mean) / (statistics.stdev(scores) + 1e-6) for score in scores]


def leave_one_out(scores: list[Fraction]) -> list[float]:
    others = [(sum(scores) - score) / (len(scores) - 1) for score in scores]
    return [float(score - other) for score, other in zip(scores, others, strict=True)]


@pytest.mark.parametrize("method", ALL)
@given(groups(), st.sampled_from([1.0, 0.9, 0.0]))
def test_advantages_agree_with_the_book(
    method: AdvantageMethod, group: tuple[Rewards, list[int]], discount: float
) -> None:
    rewards, num_turns = group

    found = advantages(method, rewards, num_turns, discount).per_turn

    expected = oracle(method, rewards, num_turns, discount)
    assert [len(turns) for turns in found] == num_turns
    for turns, book in zip(found, expected, strict=True):
        assert list(turns) == pytest.approx(book, rel=1e-6, abs=1e-8)


@pytest.mark.parametrize("method", ALL)
@given(groups(), st.randoms(use_true_random=False))
def test_permuting_siblings_permutes_their_advantages_bit_for_bit(
    method: AdvantageMethod, group: tuple[Rewards, list[int]], random: object
) -> None:
    rewards, num_turns = group
    order = list(range(len(rewards)))
    random.shuffle(order)

    found = advantages(method, rewards, num_turns, 0.9).per_turn
    permuted = advantages(
        method, [rewards[i] for i in order], [num_turns[i] for i in order], 0.9
    ).per_turn

    assert permuted == tuple(found[i] for i in order)


@pytest.mark.parametrize("method", ALL)
@given(
    st.floats(-1e6, 1e6),
    st.lists(st.integers(1, 4), min_size=2, max_size=8),
    st.sampled_from([1.0, 0.9]),
)
def test_a_constant_group_gets_exactly_zero(
    method: AdvantageMethod, reward: float, num_turns: list[int], discount: float
) -> None:
    group = advantages(method, [(reward,)] * len(num_turns), num_turns, discount)

    assert group == GroupAdvantages(per_turn=tuple((0.0,) * turns for turns in num_turns))
    assert group.is_zero


@pytest.mark.parametrize("method", ALL)
def test_fewer_than_two_scored_siblings_get_zero(method: AdvantageMethod) -> None:
    alone = advantages(method, [(1.0,)], [2])
    nobody = advantages(method, [], [])

    assert alone == GroupAdvantages(per_turn=((0.0, 0.0),))
    assert nobody == GroupAdvantages(per_turn=())
    assert (alone.is_unpaired, alone.is_zero) == (True, True)
    assert (nobody.is_unpaired, nobody.is_zero) == (True, True)


def test_the_deviation_of_group_based_is_that_of_a_sample() -> None:
    group = advantages(AdvantageMethod.GROUP_BASED, [(0.0,), (1.0,)], [1, 2])

    value = 0.5 / (0.5**0.5 + 1e-6)
    assert group.per_turn == ((-value,), (value, value))


def test_a_single_number_is_the_last_turns_reward() -> None:
    single = advantages(PER_TURN, [(1.0,), (0.0, 1.0, 3.0)], [3, 3], discount=0.5)
    listed = advantages(PER_TURN, [(0.0, 0.0, 1.0), (0.0, 1.0, 3.0)], [3, 3], discount=0.5)

    assert single == listed


def test_a_turn_without_peers_takes_its_rollouts_advantage() -> None:
    rewards = [(1.0,), (0.0,)]

    whole = advantages(AdvantageMethod.GROUP_BASED, rewards, [3, 1]).per_turn
    per_turn = advantages(PER_TURN, rewards, [3, 1]).per_turn

    assert per_turn[0][1:] == whole[0][1:]


def test_equal_totals_earned_at_different_turns_are_told_apart_per_turn() -> None:
    rewards = [(1.0, 0.0), (0.0, 1.0)]

    assert advantages(AdvantageMethod.GROUP_BASED, rewards, [2, 2]).is_zero
    first, second = advantages(PER_TURN, rewards, [2, 2]).per_turn
    assert (first[0], second[0]) == (0.0, 0.0)
    assert first[1] < 0 < second[1]


def test_a_wrong_number_of_rewards_is_refused_where_turns_matter() -> None:
    with pytest.raises(errors.InvalidInput) as refused:
        advantages(PER_TURN, [(1.0,), (1.0, 2.0)], [1, 3])

    assert str(refused.value) == "rewards: (1.0, 2.0) must hold one number or one per turn, here 3"
    assert advantages(AdvantageMethod.RLOO, [(1.0,), (1.0, 2.0)], [1, 3]).per_turn == (
        (-2.0,),
        (2.0, 2.0, 2.0),
    )


def test_a_scored_rollout_without_turns_counts_for_its_siblings() -> None:
    group = advantages(PER_TURN, [(1.0,), (0.0,), (1.0,)], [0, 1, 1])

    assert [len(turns) for turns in group.per_turn] == [0, 1, 1]
    assert group.per_turn[1][0] == -group.per_turn[2][0] < 0
