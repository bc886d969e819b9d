from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Sequence
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from turnwise import errors
from turnwise.domain.training import AdvantageMethod
from turnwise.rl.advantages import (
    GroupAdvantages,
    Outcomes,
    advantages,
    grpo_passk,
    is_constant_group,
    opo,
    pkpo,
    rloo,
    step_advantages,
)

ALL = list(AdvantageMethod)
PER_TURN = AdvantageMethod.GROUP_BASED_PER_TURN
WHITENED = [AdvantageMethod.REINFORCE_PP, AdvantageMethod.REINFORCE_PP_BASELINE]
OF_RETURNS = [AdvantageMethod.REINFORCE_PP, AdvantageMethod.MONTE_CARLO]
#: Those in which a group of equal rewards has nothing to learn, with or without other groups.
RELATIVE = [method for method in ALL if method not in (*WHITENED, AdvantageMethod.MONTE_CARLO)]
PASS_K = 3

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
    spread = [
        reported if len(reported) == turns else [Fraction(0)] * (turns - 1) + reported
        for reported, turns in zip(exact, num_turns, strict=True)
    ]
    if method in OF_RETURNS:
        gamma = Fraction(discount)
        return [
            [float(sum(gamma ** (m - j) * r[m] for m in range(j, len(r)))) for j in range(len(r))]
            for r in spread
        ]
    if method is not PER_TURN:
        values = of_rollouts(method, [sum(reported) for reported in exact], num_turns)
        return [[values[i]] * turns for i, turns in enumerate(num_turns)]
    if all(reported == exact[0] for reported in exact):
        return [[0.0] * turns for turns in num_turns]
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


def of_rollouts(method: AdvantageMethod, scores: list[Fraction], lengths: list[int]) -> list[float]:
    if method is AdvantageMethod.GROUP_BASED:
        return grpo(scores)
    if method is AdvantageMethod.RLOO:
        return leave_one_out(scores)
    if method is AdvantageMethod.OPO:
        every_token = [score for n, score in zip(lengths, scores, strict=True) for _ in range(n)]
        return [float(score - statistics.mean(every_token)) for score in scores]
    if method in (AdvantageMethod.PKPO, AdvantageMethod.GRPO_PASSK):
        return best_of(scores, PASS_K if method is AdvantageMethod.PKPO else len(scores))
    return [float(score - statistics.mean(scores)) for score in scores]


def best_of(scores: list[Fraction], k: int) -> list[float]:
    """What each adds to the best of k: the mean over every set that has it, set by set."""
    found = []
    for i in range(len(scores)):
        sets = [
            set_
            for set_ in itertools.combinations(range(len(scores)), min(k, len(scores)))
            if i in set_
        ]
        added = [
            max(scores[j] for j in set_) - max(scores[j] for j in set_ if j != i) for set_ in sets
        ]
        found.append(float(sum(added) / len(sets)))
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

    found = advantages(
        method, rewards, num_turns, discount, lengths=num_turns, pass_k=PASS_K
    ).per_turn

    expected = oracle(method, rewards, num_turns, discount)
    assert [len(turns) for turns in found] == num_turns
    for turns, book in zip(found, expected, strict=True):
        assert list(turns) == pytest.approx(book, rel=1e-6, abs=1e-8)


def outcomes(rewards: Rewards, tokens: Sequence[Sequence[int]]) -> Outcomes:
    return Outcomes(rewards=tuple(rewards), tokens=tuple(map(tuple, tokens)))


def of_step(
    method: AdvantageMethod, groups: Sequence[Outcomes], discount: float = 0.9
) -> tuple[GroupAdvantages, ...]:
    return step_advantages(method, groups, discount=discount, pass_k=PASS_K)


@st.composite
def steps(draw: st.DrawFn) -> list[Outcomes]:
    """One to three groups, with trained tokens per turn; a turn may train none."""
    found = []
    for _ in range(draw(st.integers(1, 3))):
        rewards, num_turns = draw(groups(least=1))
        tokens = [
            draw(st.lists(st.integers(0, 5), min_size=turns, max_size=turns)) for turns in num_turns
        ]
        found.append(outcomes(rewards, tokens))
    return found


@pytest.mark.parametrize("method", ALL)
@given(steps(), st.randoms(use_true_random=False))
def test_permuting_siblings_and_groups_permutes_their_advantages_bit_for_bit(
    method: AdvantageMethod, step: list[Outcomes], random: object
) -> None:
    first = step[0]
    order = list(range(len(first.rewards)))
    random.shuffle(order)
    permuted = outcomes([first.rewards[i] for i in order], [first.tokens[i] for i in order])

    found = of_step(method, step)
    *others, of_permuted = of_step(method, [*step[1:], permuted])

    assert of_permuted.per_turn == tuple(found[0].per_turn[i] for i in order)
    assert tuple(others) == found[1:]


@pytest.mark.parametrize("method", RELATIVE)
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


@pytest.mark.parametrize("method", RELATIVE)
def test_a_constant_group_gets_exactly_zero_beside_others(method: AdvantageMethod) -> None:
    constant = outcomes([(0.1,), (0.1,), (0.1,)], [[2], [3, 1], [4]])
    varied = outcomes([(1.0,), (0.0,), (0.3,)], [[2], [3], [1]])

    found = of_step(method, [constant, varied])

    assert [group.is_zero for group in found] == [True, False]


REPORTED = st.sampled_from([(0.0,), (1.0,), (0.1,) * 3, (0.3, 0.0, 0.0), (0.0, 0.0, 1.0)])


@pytest.mark.parametrize("method", AdvantageMethod)
@given(reported=st.lists(REPORTED, max_size=4))
def test_a_group_called_constant_has_nothing_to_train_where_that_is_promised(
    method: AdvantageMethod, reported: list[tuple[float, ...]]
) -> None:
    group = advantages(method, reported, [3] * len(reported), pass_k=2)

    if len(reported) < 2:
        assert not is_constant_group(method, reported)
    elif is_constant_group(method, reported) and method.is_zero_for_constant_groups:
        assert group.is_zero


def test_what_is_constant_depends_on_what_the_method_can_tell_apart() -> None:
    reported = [(0.0, 1.0), (1.0, 0.0)]

    assert is_constant_group(AdvantageMethod.RLOO, reported)
    assert not is_constant_group(PER_TURN, reported)
    assert is_constant_group(PER_TURN, [(0.0, 1.0)] * 2)
    assert not is_constant_group(AdvantageMethod.RLOO, [(0.0,), (1.0,)])


def test_where_nothing_is_compared_within_the_group_a_constant_one_keeps_the_formula() -> None:
    rewarded = outcomes([(2.0,), (2.0,)], [[1, 1], [1]])
    unrewarded = outcomes([(0.0,), (0.0,)], [[1], [1]])

    found = of_step(AdvantageMethod.MONTE_CARLO, [rewarded, unrewarded], discount=0.5)
    assert [group.per_turn for group in found] == [((1.0, 2.0), (2.0,)), ((0.0,), (0.0,))]
    for_step = of_step(AdvantageMethod.REINFORCE_PP, [rewarded, unrewarded], discount=1.0)
    assert for_step[0].per_turn[0][0] > 0 > for_step[1].per_turn[0][0]


@pytest.mark.parametrize("method", WHITENED)
@pytest.mark.parametrize("tokens", [0, 3])
def test_a_step_in_which_all_tokens_are_equally_good_gets_exactly_zero(
    method: AdvantageMethod, tokens: int
) -> None:
    group = outcomes([(0.1,), (0.1,)], [[tokens], [tokens]])

    assert of_step(method, [group, group]) == (GroupAdvantages(per_turn=((0.0,), (0.0,))),) * 2


@pytest.mark.parametrize("method", WHITENED)
@given(steps())
def test_a_step_is_whitened_token_by_token(method: AdvantageMethod, step: list[Outcomes]) -> None:
    found = of_step(method, step)

    before = [
        advantages(method, group.rewards, list(map(len, group.tokens)), 0.9).per_turn
        for group in step
    ]
    paired = [g for g, group in enumerate(step) if len(group.rewards) > 1]
    every_token = [
        Fraction(value)
        for g in paired
        for values, counts in zip(before[g], step[g].tokens, strict=True)
        for value, count in zip(values, counts, strict=True)
        for _ in range(count)
    ]
    for g, group in enumerate(found):
        assert [len(turns) for turns in group.per_turn] == [len(t) for t in step[g].tokens]
        for values, turns in zip(before[g], group.per_turn, strict=True):
            if g not in paired or len(set(every_token)) < 2:
                assert not any(turns)
                continue
            mean, variance = statistics.mean(every_token), statistics.variance(every_token)
            book = [float(Fraction(v) - mean) / math.sqrt(variance + 1e-8) for v in values]
            assert list(turns) == pytest.approx(book, rel=1e-6, abs=1e-6)


@given(steps())
def test_gpg_weighs_a_step_by_how_few_rollouts_earn_anything(step: list[Outcomes]) -> None:
    found = of_step(AdvantageMethod.GPG, step)

    scores = [[float(sum(map(Fraction, r))) for r in group.rewards] for group in step]
    paired = [score for group in scores if len(group) > 1 for score in group]
    alpha = len(paired) / (sum(score != 0 for score in paired) or 1)
    for group, values in zip(found, scores, strict=True):
        book = [alpha * (v - statistics.fmean(values)) if len(values) > 1 else 0 for v in values]
        for turns, value in zip(group.per_turn, book, strict=True):
            assert list(turns) == pytest.approx([value] * len(turns), rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("size", range(2, 7))
def test_the_best_of_k_is_learned_without_bias(size: int) -> None:
    """Every sample of `size` from a policy over three answers, by its probability."""
    chances, worth = (0.5, 0.3, 0.2), (0.0, 0.4, 1.0)
    for k in range(1, size + 1):
        estimate = [0.0, 0.0, 0.0]
        for answers in itertools.product(range(3), repeat=size):
            chance = math.prod(chances[answer] for answer in answers)
            values = pkpo([worth[answer] for answer in answers], k)
            for answer, value in zip(answers, values, strict=True):
                for logit in range(3):  # d log p(answer) / d logit
                    slope = (answer == logit) - chances[logit]
                    estimate[logit] += chance * k * value / size * slope
        assert estimate == pytest.approx(slope_of_best(chances, worth, k), abs=1e-12)


def slope_of_best(chances: tuple[float, ...], worth: tuple[float, ...], k: int) -> list[float]:
    """By the logits: E[best of k] = sum over answers, rising in worth, of w (F(a)^k - F(a-1)^k)."""
    total = [0.0, 0.0, 0.0]
    below, slope_below = 0.0, [0.0, 0.0, 0.0]
    for answer, value in enumerate(worth):
        slope = [
            s + chances[answer] * ((answer == logit) - chances[logit])
            for logit, s in enumerate(slope_below)
        ]
        reached = below + chances[answer]
        for logit in range(3):
            now = k * reached ** (k - 1) * slope[logit]
            before = k * below ** (k - 1) * slope_below[logit]
            total[logit] += value * (now - before)
        below, slope_below = reached, slope
    return total


@given(st.lists(st.floats(-10, 10, width=32), min_size=2, max_size=6), st.integers(0, 3))
def test_pkpo_is_rloo_for_one_and_grpo_passk_for_the_whole_group(
    rewards: list[float], above: int
) -> None:
    assert pkpo(rewards, 1) == rloo(rewards)
    assert pkpo(rewards, len(rewards) + above) == pytest.approx(grpo_passk(rewards), abs=1e-12)


def test_a_tie_for_the_best_adds_nothing_to_the_best_of_all() -> None:
    assert grpo_passk([1.0, 0.0, 1.0]) == (0.0, 0.0, 0.0)


def test_the_longer_rollout_pulls_opos_baseline_and_no_tokens_leave_nothing() -> None:
    assert opo([1.0, 0.0], [9, 1]) == pytest.approx((0.1, -0.9))
    assert opo([1.0, 0.0], [0, 0]) == (0.0, 0.0)


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
