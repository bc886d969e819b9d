"""How much better a rollout, or one of its turns, did than its siblings.

Input are the *scored* rollouts of one group: failed and unscored ones are left out before, never
counted as 0. All sums are correctly rounded (`math.fsum`), so results do not depend on the order
of siblings, and a constant group is recognised by equal rewards rather than by a small spread.

    method                unit     paper
    group_based           rollout  GRPO, arXiv 2402.03300
    rloo                  rollout  RLOO, arXiv 2402.14740
    group_based_per_turn  turn     GTPO, arXiv 2511.14846 (return-based, within the turn index)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from turnwise import errors
from turnwise.domain.training import AdvantageMethod

#: Added to the standard deviation, as in verl; keeps a group of nearly equal rewards finite.
EPSILON = 1e-6


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


def advantages(
    method: AdvantageMethod,
    rewards: Sequence[tuple[float, ...]],
    num_turns: Sequence[int],
    discount: float = 1.0,
) -> GroupAdvantages:
    """The advantages of one group, by the method of that name.

    `rewards[i]` is what scored rollout i reported: one number, or one per delivered turn, of which
    it has `num_turns[i]`. `discount` matters to group_based_per_turn alone. Fewer than two
    rollouts get 0, whatever the method.

    >>> advantages(AdvantageMethod.RLOO, [(1.0,), (0.0,), (0.5, 0.0)], [1, 1, 2]).per_turn
    ((0.75,), (-0.75,), (0.0, 0.0))
    """
    if len(rewards) < 2:
        return GroupAdvantages(per_turn=tuple((0.0,) * turns for turns in num_turns))
    if method is AdvantageMethod.GROUP_BASED_PER_TURN:
        return GroupAdvantages(per_turn=group_based_per_turn(rewards, num_turns, discount))
    of_rollouts = group_based if method is AdvantageMethod.GROUP_BASED else rloo
    totals = [math.fsum(reported) for reported in rewards]
    values = zip(of_rollouts(totals), num_turns, strict=True)
    return GroupAdvantages(per_turn=tuple((value,) * turns for value, turns in values))


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
