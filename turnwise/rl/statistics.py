"""The numbers that describe rollouts, groups, rows and bins, by their names in `domain.metrics`.

A value that does not exist (the mean of nothing) is left out rather than set to 0 or NaN.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from turnwise.domain.ledger import Bin
from turnwise.domain.rollout import Trajectory
from turnwise.domain.training import Mismatch, Sample
from turnwise.rl.advantages import GroupAdvantages
from turnwise.rl.passk import pass_at_k, pass_power_k

Values = dict[str, float]
Numbers = Sequence[float] | npt.NDArray[Any]

#: Which quantiles tell how a quantity of a step is spread.
PERCENTILES = (5, 25, 50, 75, 95)


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredGroup:
    """A closed group: every attempt by (slot, attempt), and its scored ones' advantages."""

    trajectories: tuple[Trajectory, ...]
    advantages: GroupAdvantages  # of `scored`, in that order
    size: int  # slots; one that its group had no time left for has no trajectory

    @property
    def scored(self) -> tuple[Trajectory, ...]:
        """The rollouts that count."""
        return scored(self.trajectories)

    @property
    def rewards(self) -> list[float]:
        """Total rewards of the scored rollouts."""
        return _totals(self.scored)

    @property
    def is_valid(self) -> bool:
        """Whether there is something to train."""
        return not self.advantages.is_zero


def scored(trajectories: Sequence[Trajectory]) -> tuple[Trajectory, ...]:
    """Those with a reward that have not failed."""
    return tuple(t for t in trajectories if t.rollout.is_scored)


def last_attempts(attempts: Sequence[Trajectory]) -> tuple[Trajectory, ...]:
    """The attempt of each slot that counts, by slot, of one group's by (slot, attempt)."""
    return tuple({t.rollout.slot: t for t in attempts}.values())


def rollout_metrics(groups: Sequence[ScoredGroup], *, per_turn: bool = False) -> Values:
    """rollout/* and analysis/* of the groups that one step took.

    `per_turn` says that the job's advantage method reads one reward per turn; then
    rollout/reward/single_number counts the rollouts of several turns that reported only one.
    """
    attempts = [t for group in groups for t in group.trajectories]
    counted = scored(attempts)
    last = [t for group in groups for t in last_attempts(group.trajectories)]
    slots = sum(group.size for group in groups)
    valid = [reward for group in groups if group.is_valid for reward in group.rewards]
    values = {
        **_reward_metrics("rollout", _totals(counted)),
        **_summary("rollout/reward/valid_", valid, ("mean",)),
        **_shape_metrics("rollout", attempts, len(groups)),
        **_advantage_metrics(groups),
        **_group_metrics(groups, slots=slots),
        "rollout/failed": slots - len(counted),
        "rollout/expired": len(_late(last)) + slots - len(last),
        "rollout/retried": len(attempts) - len(last),
    }
    if per_turn:
        single = [t for t in counted if len(t.rollout.rewards or ()) == 1 < len(t.delivered)]
        values["rollout/reward/single_number"] = len(single)
    return values


def validation_metrics(
    groups: Sequence[Sequence[Trajectory]],
    pass_k_values: Sequence[int],
    success_threshold: float,
    *,
    prefix: str = "val",
) -> Values:
    """val/* (or eval/*, by `prefix`) over rows, each with its rollouts by (slot, attempt).

    Only a slot's last rollout counts. If it failed it is counted as failed, not as an attempt
    without success. pass_at_{k} is the mean over the rows with at least k scored rollouts.
    """
    last = [last_attempts(group) for group in groups]
    attempts = [t for group in last for t in group]
    rewards = [_totals(scored(group)) for group in last]
    values = {
        **_reward_metrics(prefix, [reward for group in rewards for reward in group]),
        **_shape_metrics(prefix, attempts, len(groups)),
        f"{prefix}/reward/num_prompts": len(groups),
        f"{prefix}/reward/succeeded_rollouts": len(scored(attempts)),
        f"{prefix}/reward/failed_rollouts": len(attempts) - len(scored(attempts)),
        f"{prefix}/reward/expired_rollouts": len(_late(attempts)),
        f"{prefix}/reward/success_threshold": success_threshold,
    }
    if groups:
        values[f"{prefix}/reward/rollouts_per_prompt"] = len(attempts) / len(groups)
    for name, summarise in _SUMMARIES.items():
        within = [summarise(group) for group in rewards if group]
        if within:
            values[f"{prefix}/reward/{name}_within_groups"] = float(np.mean(within))
    counts = [(len(group), sum(r >= success_threshold for r in group)) for group in rewards]
    for k in pass_k_values:
        values |= _pass_metrics(prefix, counts, k)
    return values


def training_metrics(
    samples: Sequence[Sample], *, step: int, epoch: int, num_groups: int
) -> Values:
    """training/* that describe the step's data, and the ages of its trained tokens."""
    rollouts = len({sample.rollout_id for sample in samples})
    total = sum(len(sample.tokens) for sample in samples)
    trained = sum(sample.num_trained for sample in samples)
    values: Values = {
        "training/epoch": epoch,
        "training/global_step": step,
        "training/num_groups": num_groups,
        "training/num_trajectories": rollouts,
        "training/num_datums": len(samples),
        "training/total_tokens": total,
        "training/trainable_token_positions": trained,
        "training/nontrainable_token_positions": total - trained,
    }
    if samples:
        ages = np.concatenate([step - s.policy_steps[s.trained] for s in samples])
        values |= {
            "training/datums_per_trajectory": len(samples) / rollouts,
            "training/action_tokens_mean": trained / rollouts,
            "training/obs_tokens_mean": (total - trained) / rollouts,
            "training/trainable_token_ratio": trained / total,
            **_summary("staleness/", ages, ("mean", "max")),
        }
    return values


def ledger_metrics(bins: Mapping[Bin, int]) -> Values:
    """ledger/{bin} of a step."""
    return {f"ledger/{bin}": tokens for bin, tokens in bins.items()}


def mismatch_metrics(mismatches: Sequence[Mismatch]) -> Values:
    """mismatch/age_{age}/* of a step."""
    return {
        f"mismatch/age_{each.age}/{name}": value
        for each in mismatches
        for name, value in (
            ("mean", each.mean),
            ("max", each.max),
            ("k3", each.k3),
            ("ess", each.ess),
            ("tokens", each.tokens),
        )
    }


def throughput_metrics(*, sampled_tokens: int, trained_tokens: int, seconds: float) -> Values:
    """throughput/* of a step that took so long; nothing of one that took no time."""
    if seconds <= 0:
        return {}
    return {
        "throughput/sampled_tokens_per_s": sampled_tokens / seconds,
        "throughput/trained_tokens_per_s": trained_tokens / seconds,
    }


def quantiles(prefix: str, values: Numbers) -> Values:
    """{prefix}p5, p25, p50, p75 and p95, linear between neighbours; nothing of no values.

    >>> quantiles("x/", [4.0, 0.0, 1.0, 2.0, 3.0])
    {'x/p5': 0.2, 'x/p25': 1.0, 'x/p50': 2.0, 'x/p75': 3.0, 'x/p95': 3.8}
    """
    if not len(values):
        return {}
    found = np.quantile(np.asarray(values, dtype=np.float64), [p / 100 for p in PERCENTILES])
    return {f"{prefix}p{p}": float(value) for p, value in zip(PERCENTILES, found, strict=True)}


# ── parts ─────────────────────────────────────────────────────────────────────────────────────

_SUMMARIES: Mapping[str, Callable[[Numbers], float]] = {
    "mean": lambda values: float(np.mean(values)),
    "std": lambda values: float(np.std(values)),
    "min": lambda values: float(np.min(values)),
    "max": lambda values: float(np.max(values)),
}
_ALL = tuple(_SUMMARIES)


def _summary(prefix: str, values: Numbers, names: Sequence[str]) -> Values:
    if not len(values):
        return {}
    return {f"{prefix}{name}": _SUMMARIES[name](values) for name in names}


def _totals(trajectories: Sequence[Trajectory]) -> list[float]:
    return [t.rollout.reward for t in trajectories if t.rollout.reward is not None]


def _late(attempts: Sequence[Trajectory]) -> list[Trajectory]:
    """Those that a deadline ended."""
    return [t for t in attempts if (fault := t.rollout.fault) is not None and fault.is_late]


def _reward_metrics(prefix: str, rewards: Sequence[float]) -> Values:
    values = _summary(f"{prefix}/reward/", rewards, _ALL)
    if rewards:
        values[f"{prefix}/reward/zero_frac"] = sum(r == 0 for r in rewards) / len(rewards)
    return values


def _shape_metrics(prefix: str, attempts: Sequence[Trajectory], num_groups: int) -> Values:
    """Turns, tokens and logprobs of the scored rollouts, and the agent's own metrics of all."""
    turned = [t.delivered for t in scored(attempts) if t.delivered]
    sampled = [sum(turn.completion_tokens for turn in turns) for turns in turned]
    return {
        **_summary(f"{prefix}/turns/", [len(turns) for turns in turned], ("mean", "min", "max")),
        **_summary(
            f"{prefix}/tokens/prompt_", [turns[0].prompt_tokens for turns in turned], ("mean",)
        ),
        **_summary(f"{prefix}/tokens/response_", sampled, _ALL),
        **_logprob_metrics(f"{prefix}/logprob/", attempts, num_groups),
        **_agent_metrics(prefix, attempts),
    }


def _logprob_metrics(prefix: str, attempts: Sequence[Trajectory], num_groups: int) -> Values:
    pieces = [
        node.logprobs
        for t in scored(attempts)
        for turn in t.delivered
        if (node := t.nodes[turn.leaf]).logprobs is not None
    ]
    logprobs = np.concatenate(pieces) if pieces else np.zeros(0, dtype=np.float32)
    if not len(logprobs):
        return {}
    zeros = int(np.sum(logprobs == 0))
    return {
        f"{prefix}zero_count": zeros,
        f"{prefix}zero_frac": zeros / len(logprobs),
        f"{prefix}zero_per_group": zeros / num_groups,
        **_summary(f"{prefix}nz_", logprobs[logprobs != 0].astype(np.float64), _ALL),
    }


def _agent_metrics(prefix: str, attempts: Sequence[Trajectory]) -> Values:
    reported: dict[str, list[float]] = {}
    for trajectory in attempts:
        for name, value in trajectory.rollout.metrics.items():
            reported.setdefault(name, []).append(value)
    return {f"{prefix}/metrics/{name}/mean": float(np.mean(v)) for name, v in reported.items()}


def _advantage_metrics(groups: Sequence[ScoredGroup]) -> Values:
    means = [
        float(np.mean(turns)) for group in groups for turns in group.advantages.per_turn if turns
    ]
    return {
        **_summary("rollout/advantage/", means, _ALL),
        **quantiles("rollout/advantage/", means),
        "rollout/advantage/n_positive": sum(value > 0 for value in means),
        "rollout/advantage/n_negative": sum(value < 0 for value in means),
    }


def _group_metrics(groups: Sequence[ScoredGroup], slots: int) -> Values:
    if not slots:
        return {}
    unpaired = [group for group in groups if group.advantages.is_unpaired]
    zero = [g for g in groups if not g.is_valid and not g.advantages.is_unpaired]
    rewarded = [group for group in zero if any(group.rewards)]
    values: Values = {
        "analysis/batch_completion_ratio": sum(len(g.scored) for g in groups) / slots,
        "analysis/batch_valid_ratio": sum(group.is_valid for group in groups) / len(groups),
        "analysis/zero_adv_groups": len(zero),
        "analysis/zero_adv_nonzero_reward": len(rewarded),
        "analysis/zero_adv_zero_reward": len(zero) - len(rewarded),
        "analysis/unpaired_groups": len(unpaired),
    }
    rewards = [group.rewards for group in groups if group.rewards]
    if rewards:
        values |= {
            "analysis/reward_variance_across_groups": float(np.var([np.mean(r) for r in rewards])),
            "analysis/mean_group_reward_spread": float(np.mean([max(r) - min(r) for r in rewards])),
        }
    return values


def _pass_metrics(prefix: str, counts: Sequence[tuple[int, int]], k: int) -> Values:
    """`counts` are (scored attempts, successes) per row."""
    enough = [(n, c) for n, c in counts if n >= k]
    if not enough:
        return {}
    at = float(np.mean([pass_at_k(n, c, k) for n, c in enough]))
    return {
        f"{prefix}/reward/pass_at_{k}": at,
        f"{prefix}/reward/pass_k_{k}": at,
        f"{prefix}/reward/pass_power_{k}": float(
            np.mean([pass_power_k(n, c, k) for n, c in enough])
        ),
    }
