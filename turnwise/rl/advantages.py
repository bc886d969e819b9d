"""How much better a rollout, or one of its turns, did than its siblings.

Input are the *scored* rollouts of one group: failed and unscored ones are left out before, never
counted as 0. All sums are correctly rounded (`math.fsum`), so results do not depend on the order
of siblings, and a constant group is recognised by equal rewards rather than by a small spread.

    method                 unit     compared with  paper
    group_based            rollout  group          GRPO, arXiv 2402.03300
    rloo                   rollout  group          RLOO, arXiv 2402.14740
    dr_grpo                rollout  group          Dr. GRPO, arXiv 2503.20783
    grpo_passk             rollout  group          pass@k with k = G, arXiv 2503.19595
    pkpo                   rollout  group          pass@k for any k, PKPO, arXiv 2505.15201
    opo                    rollout  group          OPO, arXiv 2505.23585
    group_based_per_turn   turn     group          GTPO, arXiv 2511.14846 (within the turn index)
    gpg                    rollout  group, step    GPG, arXiv 2504.02546
    reinforce_pp_baseline  rollout  group, step    REINFORCE++ with baseline, arXiv 2501.03262
    reinforce_pp           turn     step           REINFORCE++, arXiv 2501.03262
    monte_carlo            turn     nothing        REINFORCE

`step_advantages` gives those of all groups of a step: `advantages` for each group and then, for
the three that compare with the step, `whitened` or `gpg_scaled` over all of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from turnwise import errors
from turnwise.domain.training import AdvantageMethod

#: Added to the standard deviation, as in verl; keeps a group of nearly equal rewards finite.
EPSILON = 1e-6

#: Added to the variance by which a step is whitened, as in verl.
WHITEN_EPSILON = 1e-8


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcomes:
    """What is known of a group's G scored rollouts.

    `rewards[i]` is what rollout i reported: one number, or one per delivered turn. `tokens[i][j]`
    says how many tokens of its j-th delivered turn are trained, over whichever rows.
    """

    rewards: tuple[tuple[float, ...], ...]  # [G][1 or turns of i]
    tokens: tuple[tuple[int, ...], ...]  # [G][turns of i]


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupAdvantages:
    """The advantages of a group's G scored rollouts.

    `per_turn[i][j]` belongs to the j-th delivered turn of rollout i; methods whose unit is the
    rollout repeat one value. Every sampled token of a turn gets its turn's advantage.
    """

    per_turn: tuple[tuple[float, ...], ...]  # [G][turns of i]

    @property
    def is_unpaired(self) -> bool:
        """Whether fewer than two siblings were scored, so that there is nothing to compare."""
        return len(self.per_turn) < 2

    @property
    def is_zero(self) -> bool:
        """Whether every advantage is 0: nothing is trained, and the denominator leaves it out."""
        return not any(value for turns in self.per_turn for value in turns)


def step_advantages(
    method: AdvantageMethod, groups: Sequence[Outcomes], *, discount: float = 1.0, pass_k: int = 1
) -> tuple[GroupAdvantages, ...]:
    """The advantages of every group of a step, in order. Options as for `advantages`.

    Groups of fewer than two rollouts get 0 and take no part in what is computed over the step.
    """
    found = [
        advantages(
            method,
            group.rewards,
            [len(turns) for turns in group.tokens],
            discount,
            lengths=[sum(turns) for turns in group.tokens],
            pass_k=pass_k,
        )
        for group in groups
    ]
    if method is AdvantageMethod.GPG:
        return gpg_scaled(found, [group.rewards for group in groups])
    if method in (AdvantageMethod.REINFORCE_PP, AdvantageMethod.REINFORCE_PP_BASELINE):
        return whitened(found, [group.tokens for group in groups])
    return tuple(found)


def advantages(
    method: AdvantageMethod,
    rewards: Sequence[tuple[float, ...]],
    num_turns: Sequence[int],
    discount: float = 1.0,
    *,
    lengths: Sequence[int] | None = None,
    pass_k: int = 1,
) -> GroupAdvantages:
    """The advantages of one group by itself, by the method of that name.

    `rewards[i]` is what scored rollout i reported: one number, or one per delivered turn, of which
    it has `num_turns[i]`. `discount` matters to the methods whose unit is the turn, `lengths[i]`
    (trained tokens of rollout i; None: all alike) to opo, `pass_k` to pkpo. Fewer than two
    rollouts get 0, whatever the method. For gpg, reinforce_pp and reinforce_pp_baseline this is
    what the step's stage starts from (see `step_advantages`).

    >>> advantages(AdvantageMethod.RLOO, [(1.0,), (0.0,), (0.5, 0.0)], [1, 1, 2]).per_turn
    ((0.75,), (-0.75,), (0.0, 0.0))
    """
    if len(rewards) < 2:
        return GroupAdvantages(per_turn=tuple((0.0,) * turns for turns in num_turns))
    if method is AdvantageMethod.GROUP_BASED_PER_TURN:
        return GroupAdvantages(per_turn=group_based_per_turn(rewards, num_turns, discount))
    if method.is_per_turn:
        return GroupAdvantages(per_turn=monte_carlo(rewards, num_turns, discount))
    totals = [math.fsum(reported) for reported in rewards]
    if method is AdvantageMethod.OPO:
        of_rollouts = opo(totals, [1] * len(totals) if lengths is None else lengths)
    elif method is AdvantageMethod.PKPO:
        of_rollouts = pkpo(totals, pass_k)
    else:
        of_rollouts = _OF_ROLLOUTS[method](totals)
    values = zip(of_rollouts, num_turns, strict=True)
    return GroupAdvantages(per_turn=tuple((value,) * turns for value, turns in values))


def is_constant_group(method: AdvantageMethod, rewards: Sequence[tuple[float, ...]]) -> bool:
    """Whether two or more scored rollouts did equally well, as far as the method tells them apart.

    `rewards` as for `advantages`. Methods whose unit is the turn see each turn's, others the sum.

    >>> is_constant_group(AdvantageMethod.RLOO, [(1.0,), (0.5, 0.5)])
    True
    """
    if method.is_per_turn:
        return len(rewards) > 1 and len(set(rewards)) == 1
    return len(rewards) > 1 and _is_constant([math.fsum(reported) for reported in rewards])


# ── within a group, per rollout ───────────────────────────────────────────────────────────────


def group_based(rewards: Sequence[float]) -> tuple[float, ...]:
    """GRPO, per rollout: (R_i - mean) / (std + 1e-6), with the sample deviation (ddof 1).

    [G] in, [G] out, G >= 2. Equal rewards give exactly 0. arXiv 2402.03300.

    >>> [round(value, 3) for value in group_based([1.0, 0.0, 0.0, 1.0])]
    [0.866, -0.866, -0.866, 0.866]
    """
    if _is_constant(rewards):
        return (0.0,) * len(rewards)
    mean = math.fsum(rewards) / len(rewards)
    squares = math.fsum((reward - mean) ** 2 for reward in rewards)
    scale = math.sqrt(squares / (len(rewards) - 1)) + EPSILON
    return tuple((reward - mean) / scale for reward in rewards)


def rloo(rewards: Sequence[float]) -> tuple[float, ...]:
    """Leave-one-out, per rollout: R_i minus the mean of its siblings, = G/(G-1) (R_i - mean).

    [G] in, [G] out, G >= 2. Equal rewards give exactly 0. arXiv 2402.14740.
    """
    if _is_constant(rewards):
        return (0.0,) * len(rewards)
    mean = math.fsum(rewards) / len(rewards)
    return tuple(len(rewards) / (len(rewards) - 1) * (reward - mean) for reward in rewards)


def centred(rewards: Sequence[float]) -> tuple[float, ...]:
    """R_i - mean, per rollout: dr_grpo, and what gpg and reinforce_pp_baseline start from.

    [G] in, [G] out, G >= 2. Equal rewards give exactly 0. Not divided by the deviation, so that
    tasks of little spread do not weigh more; the paper's other half is the constant denominator
    of the aggregation `token-sum-norm`. Dr. GRPO, arXiv 2503.20783.

    >>> centred([1.0, 0.0, 0.0, 1.0])
    (0.5, -0.5, -0.5, 0.5)
    """
    if _is_constant(rewards):
        return (0.0,) * len(rewards)
    mean = math.fsum(rewards) / len(rewards)
    return tuple(reward - mean for reward in rewards)


def opo(rewards: Sequence[float], lengths: Sequence[int]) -> tuple[float, ...]:
    """R_i - sum(L_j R_j) / sum(L_j), per rollout: the baseline of least variance by length.

    Rewards and trained tokens [G] in, [G] out, G >= 2. Equal rewards give exactly 0, and so does
    a group that trains no token. arXiv 2505.23585.

    >>> opo([1.0, 0.0], [3, 1])
    (0.25, -0.75)
    """
    if _is_constant(rewards) or not any(lengths):
        return (0.0,) * len(rewards)
    weighted = math.fsum(n * reward for n, reward in zip(lengths, rewards, strict=True))
    return tuple(reward - weighted / sum(lengths) for reward in rewards)


def grpo_passk(rewards: Sequence[float]) -> tuple[float, ...]:
    """What the best adds to pass@G, per rollout: best minus second best; the others get 0.

    [G] in, [G] out, G >= 2. A tie for the best gives all exactly 0. Not divided by the deviation.
    `pkpo` with k = G. arXiv 2503.19595.

    >>> grpo_passk([0.25, 1.0, 0.5])
    (0.0, 0.5, 0.0)
    """
    second, best = sorted(rewards)[-2:]
    return tuple(best - second if reward == best else 0.0 for reward in rewards)


def pkpo(rewards: Sequence[float], k: int) -> tuple[float, ...]:
    """What a rollout adds to the best of k, per rollout: pass@k for rewards of 0 and 1.

        A_i = mean over the sets J of k - 1 siblings of max(R_i - max of J, 0)

    [G] in, [G] out, G >= 2. k times the mean over rollouts of A_i grad log p_i estimates the
    gradient of the expected best of k without bias. k = 1, where J is empty, takes the siblings'
    mean as the baseline: `rloo`. A k above G counts as G (siblings may have failed). Equal rewards
    give exactly 0. arXiv 2505.15201, with the baseline that leaves rollout i out of its own set.

    >>> pkpo([1.0, 1.0, 0.0, 0.0], k=2)  # a success counts beside the two failures of 3 siblings
    (0.6666666666666666, 0.6666666666666666, 0.0, 0.0)
    """
    if k == 1:
        return rloo(rewards)
    size = min(k, len(rewards)) - 1
    sets = math.comb(len(rewards) - 1, size)

    def added(i: int) -> float:
        others = sorted([*rewards[:i], *rewards[i + 1 :]])
        # Of all sets, C(rank, size - 1) have the sibling of this rank, from 0, as their best.
        return math.fsum(
            math.comb(rank, size - 1) / sets * max(rewards[i] - other, 0.0)
            for rank, other in enumerate(others)
        )

    return tuple(added(i) for i in range(len(rewards)))


_OF_ROLLOUTS: dict[AdvantageMethod, Callable[[Sequence[float]], tuple[float, ...]]] = {
    AdvantageMethod.GROUP_BASED: group_based,
    AdvantageMethod.RLOO: rloo,
    AdvantageMethod.DR_GRPO: centred,
    AdvantageMethod.GRPO_PASSK: grpo_passk,
    AdvantageMethod.GPG: centred,
    AdvantageMethod.REINFORCE_PP_BASELINE: centred,
}


# ── per turn ──────────────────────────────────────────────────────────────────────────────────


def group_based_per_turn(
    rewards: Sequence[tuple[float, ...]], num_turns: Sequence[int], discount: float
) -> tuple[tuple[float, ...], ...]:
    """GRPO within each turn index: siblings that reached turn j are compared on their returns.

    The return of turn j is G_ij = sum over l >= j of discount^(l-j) r_il; a single number is the
    last turn's reward. A turn that only one sibling reached has no peer there and takes that
    rollout's advantage in the group (`group_based` over total rewards). Siblings that all
    reported the same get exactly 0, also where a discount makes their returns differ: length
    alone is no reward. Ragged [G][turns] out, G >= 2. arXiv 2511.14846.

    Raises `InvalidInput` for a list of another length than the rollout's turns.

    >>> group_based_per_turn([(1.0,), (1.0,)], [1, 3], discount=0.9)
    ((0.0,), (0.0, 0.0, 0.0))
    """
    if len(set(rewards)) == 1:
        return tuple((0.0,) * turns for turns in num_turns)
    whole = group_based([math.fsum(reported) for reported in rewards])
    returns = [
        _returns(reported, turns, discount)
        for reported, turns in zip(rewards, num_turns, strict=True)
    ]
    found: list[list[float]] = [[] for _ in rewards]
    for turn in range(max(num_turns)):
        reached = [i for i, turns in enumerate(num_turns) if turns > turn]
        if len(reached) == 1:
            found[reached[0]].append(whole[reached[0]])
            continue
        values = group_based([returns[i][turn] for i in reached])
        for i, value in zip(reached, values, strict=True):
            found[i].append(value)
    return tuple(tuple(values) for values in found)


def monte_carlo(
    rewards: Sequence[tuple[float, ...]], num_turns: Sequence[int], discount: float
) -> tuple[tuple[float, ...], ...]:
    """The return of each turn, with no baseline: G_ij = sum over l >= j of discount^(l-j) r_il.

    A single number is the last turn's reward. Time is counted in turns: all tokens of a turn have
    one return, which at discount 1 is the one that counting tokens gives. A constant group is
    trained unless its rewards are 0. Ragged [G][turns] out. REINFORCE, Williams 1992; also what
    reinforce_pp starts from.

    Raises `InvalidInput` for a list of another length than the rollout's turns.

    >>> monte_carlo([(1.0,), (0.0, 4.0)], [3, 2], discount=0.5)
    ((0.25, 0.5, 1.0), (2.0, 4.0))
    """
    return tuple(
        tuple(_returns(reported, turns, discount)[:turns])
        for reported, turns in zip(rewards, num_turns, strict=True)
    )


# ── over the groups of a step ─────────────────────────────────────────────────────────────────


def gpg_scaled(
    groups: Sequence[GroupAdvantages], rewards: Sequence[Sequence[tuple[float, ...]]]
) -> tuple[GroupAdvantages, ...]:
    """gpg: alpha (R_i - mean of the group), with alpha = rollouts / rollouts of non-zero reward.

    `groups` are `centred`. Both counts are over the step's groups of two or more, so that the
    fewer rollouts earn anything, the more those count. The paper's F is 1. Constant groups stay
    exactly 0. arXiv 2504.02546, with alpha as verl computes it.
    """
    totals = [
        math.fsum(reported)
        for group, scored in zip(groups, rewards, strict=True)
        if not group.is_unpaired
        for reported in scored
    ]
    alpha = len(totals) / max(sum(total != 0 for total in totals), 1)
    return _mapped(groups, lambda value: alpha * value)


def whitened(
    groups: Sequence[GroupAdvantages], tokens: Sequence[Sequence[Sequence[int]]]
) -> tuple[GroupAdvantages, ...]:
    """(value - mean) / sqrt(variance + 1e-8) over all trained tokens of a step's groups.

    reinforce_pp from returns, reinforce_pp_baseline from `centred`. `tokens[g][i][j]` says how
    many tokens have that value, which makes it independent of rows; the variance is that of a
    sample (n - 1). Groups of fewer than two stay 0 and are not counted; if all tokens have one
    value, everything is exactly 0. A constant group is compared with the step like any other.
    arXiv 2501.03262, without the KL penalty in its reward.
    """
    pairs = [
        (value, count)
        for group, counts in zip(groups, tokens, strict=True)
        if not group.is_unpaired
        for values, of_turns in zip(group.per_turn, counts, strict=True)
        for value, count in zip(values, of_turns, strict=True)
        if count
    ]
    if len({value for value, _ in pairs}) < 2:
        return _mapped(groups, lambda _: 0.0)
    total = sum(count for _, count in pairs)
    mean = math.fsum(count * value for value, count in pairs) / total
    squares = math.fsum(count * (value - mean) ** 2 for value, count in pairs)
    scale = math.sqrt(squares / (total - 1) + WHITEN_EPSILON)
    return _mapped(groups, lambda value: (value - mean) / scale)


def _mapped(
    groups: Sequence[GroupAdvantages], change: Callable[[float], float]
) -> tuple[GroupAdvantages, ...]:
    """Every value of every group of two or more, changed."""
    return tuple(
        group
        if group.is_unpaired
        else GroupAdvantages(per_turn=tuple(tuple(map(change, turns)) for turns in group.per_turn))
        for group in groups
    )


# ── parts ─────────────────────────────────────────────────────────────────────────────────────


def _returns(reported: tuple[float, ...], turns: int, discount: float) -> list[float]:
    """Discounted returns [turns] of one rollout."""
    if len(reported) not in (1, turns):
        raise errors.InvalidInput(
            "rewards", reported, f"must hold one number or one per turn, here {turns}"
        )
    per_turn = reported if len(reported) == turns else (0.0,) * (turns - 1) + reported
    found: list[float] = []
    following = 0.0
    for reward in reversed(per_turn):
        following = reward + discount * following
        found.append(following)
    return found[::-1]


def _is_constant(rewards: Sequence[float]) -> bool:
    return all(reward == rewards[0] for reward in rewards)
