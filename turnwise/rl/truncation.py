"""Rollouts that met a token limit: what learning makes of them, and how many there are.

A turn is truncated if its reply reached the agent cut off, because max_tokens, the rollout's
budget or the context was used up (`Turn.is_truncated`). A job names one rule for such turns:

    keep       they are trained like any other
    mask       their tokens are only read, as context of later turns: they are in no row as
               trained, in no denominator and in no length that an advantage uses, and their bin
               is `masked_truncated`; the rollout's reward and its other turns count as ever
    penalise   each lowers, for learning alone, the reward of its turn where the agent reported
               one per turn, else that of the rollout; so a rollout loses the same in total

A rule changes what is learned and never what was reported: reward metrics, validation and
evaluation show the agent's own numbers.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from turnwise.domain.job import RolloutSpec, TruncatedTurns
from turnwise.domain.rollout import FinishReason, Trajectory

Values = dict[str, float]


def learned_rewards(trajectory: Trajectory, limits: RolloutSpec) -> tuple[float, ...]:
    """What a scored rollout's advantages are computed from, [1 or turns] as it was reported.

    The reported rewards, less `truncation_penalty` for each truncated turn where that is the rule.
    """
    reported = trajectory.rollout.rewards or ()
    if limits.truncated_turns is not TruncatedTurns.PENALISE:
        return reported
    costs = [limits.truncation_penalty * turn.is_truncated for turn in trajectory.delivered]
    if len(reported) != len(costs):
        return tuple(reward - sum(costs) for reward in reported)
    return tuple(reward - cost for reward, cost in zip(reported, costs, strict=True))


def penalty_metrics(scored: Sequence[Trajectory], limits: RolloutSpec) -> Values:
    """How the penalty changed a step's scored rollouts; nothing under another rule."""
    if limits.truncated_turns is not TruncatedTurns.PENALISE or not scored:
        return {}
    learned = [sum(learned_rewards(trajectory, limits)) for trajectory in scored]
    return {
        "rollout/reward/penalised_mean": float(np.mean(learned)),
        "rollout/truncated/penalised": sum(_num_truncated(each) > 0 for each in scored),
    }


def truncation_metrics(prefix: str, attempts: Sequence[Trajectory], limits: RolloutSpec) -> Values:
    """{prefix}/turns/at_cap_frac, {prefix}/truncated/* and {prefix}/turns/timed_out of attempts.

    Shares and counts of truncation are over scored rollouts, as all of {prefix}/turns; what
    budgets and time limits ended is counted over every attempt.
    """
    turned = [t for t in attempts if t.rollout.is_scored and t.delivered]
    values: Values = {
        f"{prefix}/truncated/any_turn": sum(_num_truncated(t) > 0 for t in turned),
        f"{prefix}/truncated/last_turn": sum(t.delivered[-1].is_truncated for t in turned),
        f"{prefix}/truncated/over_budget": sum(is_over_budget(t, limits) for t in attempts),
        f"{prefix}/turns/timed_out": sum(
            turn.finish_reason is FinishReason.TIMEOUT for t in attempts for turn in t.turns
        ),
    }
    if turned:
        truncated = sum(_num_truncated(trajectory) for trajectory in turned)
        values[f"{prefix}/turns/at_cap_frac"] = truncated / sum(len(t.delivered) for t in turned)
    return values


def is_over_budget(trajectory: Trajectory, limits: RolloutSpec) -> bool:
    """Whether it sampled all that `rollout_max_tokens` allows, so that more calls are refused."""
    return 0 < limits.rollout_max_tokens <= trajectory.sampled_tokens


def _num_truncated(trajectory: Trajectory) -> int:
    return sum(turn.is_truncated for turn in trajectory.delivered)
