"""What the turns of a step's rollouts were given, from the rollouts and the job's rules alone.

The step itself (`loop.assemble`) and whoever shows later what it did (`control.learned`) ask here,
so that both have the same numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from turnwise.domain.algorithm import AlgorithmSpec
from turnwise.domain.job import RolloutSpec, TruncatedTurns
from turnwise.domain.ledger import Bin
from turnwise.domain.rollout import Trajectory
from turnwise.domain.training import AdvantageMethod
from turnwise.rl import ledger
from turnwise.rl.advantages import GroupAdvantages, Outcomes, step_advantages
from turnwise.rl.rows import trained_tokens
from turnwise.rl.truncation import learned_rewards

_OVER_STEP = (
    AdvantageMethod.GPG,
    AdvantageMethod.REINFORCE_PP,
    AdvantageMethod.REINFORCE_PP_BASELINE,
)


def is_over_step(method: AdvantageMethod) -> bool:
    """Whether a group's advantages depend on the other groups of its step.

    >>> is_over_step(AdvantageMethod.GPG), is_over_step(AdvantageMethod.RLOO)
    (True, False)
    """
    return method in _OVER_STEP


def credit(
    algorithm: AlgorithmSpec, limits: RolloutSpec, groups: Sequence[Sequence[Trajectory]]
) -> tuple[GroupAdvantages, ...]:
    """The advantages of a step's groups, in order; each group is given by its *scored* rollouts."""
    return step_advantages(
        algorithm.advantage_method,
        [_outcomes(scored, limits) for scored in groups],
        discount=algorithm.turn_discount,
        pass_k=algorithm.pass_k,
    )


def turn_bins(
    trajectory: Trajectory, advantages: GroupAdvantages, limits: RolloutSpec
) -> tuple[Mapping[Bin, int], ...]:
    """Where the tokens of each turn ended, [all turns]: `ledger.account` of each by itself.

    `advantages` are those of the rollout's group.
    """
    fate, is_masked = ledger.of_group(advantages), masks_truncated(limits)
    return tuple(
        ledger.account(replace(trajectory, turns=(turn,)), fate, mask_truncated=is_masked)
        for turn in trajectory.turns
    )


def masks_truncated(limits: RolloutSpec) -> bool:
    """Whether a job leaves the tokens of truncated turns untrained."""
    return limits.truncated_turns is TruncatedTurns.MASK


def _outcomes(scored: Sequence[Trajectory], limits: RolloutSpec) -> Outcomes:
    is_masked = masks_truncated(limits)
    return Outcomes(
        rewards=tuple(learned_rewards(trajectory, limits) for trajectory in scored),
        tokens=tuple(trained_tokens(each, mask_truncated=is_masked) for each in scored),
    )
