"""From closed groups to what the learner gets, and to where every sampled token went. Pure.

groups --advantages--> scored groups --rows--> samples --weights--> mini-batches
                            |                     |
                            `-- ledger: bins -----'-- statistics: metrics
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from turnwise.domain.job import JobSpec
from turnwise.domain.rollout import Group, Trajectory
from turnwise.domain.training import LossSpec, Sample, StepRequest
from turnwise.loop.pilot import slots_used
from turnwise.rl import ledger, statistics
from turnwise.rl.advantages import Outcomes, step_advantages
from turnwise.rl.rows import rows, trained_tokens
from turnwise.rl.statistics import ScoredGroup
from turnwise.rl.weights import mini_batches


@dataclass(frozen=True, slots=True, kw_only=True)
class ClosedGroup:
    """A group with every attempt of its slots, by (slot, attempt)."""

    group: Group
    attempts: tuple[Trajectory, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Assembly:
    """A step before it is trained. `request` is None where nothing can be trained."""

    request: StepRequest | None
    bins: Mapping[str, Mapping[str, int]]  # rollout_id -> {bin: tokens}
    metrics: Mapping[str, float]
    num_scored: int


def assemble(
    spec: JobSpec, step: int, closed: Sequence[ClosedGroup], learning_rate: float
) -> Assembly:
    """Lay out one step. Rollouts go in by (place in the plan, slot), whenever they closed."""
    ordered = sorted(closed, key=lambda each: each.group.order)
    groups = _score(spec, ordered)
    samples = [sample for group in groups if group.is_valid for sample in _samples(group)]
    bins = {
        trajectory.rollout.rollout_id: ledger.account(trajectory, ledger.of_group(group.advantages))
        for group in groups
        for trajectory in group.trajectories
    }
    is_per_turn = spec.algorithm.advantage_method.is_per_turn
    return Assembly(
        request=_request(spec, step, samples, learning_rate) if samples else None,
        bins={
            rollout_id: {bin.value: tokens for bin, tokens in account.items()}
            for rollout_id, account in bins.items()
        },
        metrics={
            **statistics.rollout_metrics(groups, per_turn=is_per_turn),
            **statistics.training_metrics(
                samples,
                step=step,
                epoch=max(each.group.epoch for each in ordered),
                num_groups=len(groups),
            ),
            **statistics.ledger_metrics(ledger.total(bins.values())),
            "analysis/settled_groups": sum(
                group.size < each.group.size for group, each in zip(groups, ordered, strict=True)
            ),
        },
        num_scored=sum(len(group.scored) for group in groups),
    )


def is_zero(spec: JobSpec, closed: ClosedGroup) -> bool:
    """Whether a group by itself has advantages, all of them 0: what `refill` replaces."""
    [group] = _score(spec, [closed])
    return not group.is_valid and not group.advantages.is_unpaired


def _score(spec: JobSpec, closed: Sequence[ClosedGroup]) -> list[ScoredGroup]:
    scored = [statistics.scored(each.attempts) for each in closed]
    found = step_advantages(
        spec.algorithm.advantage_method,
        [_outcomes(trajectories) for trajectories in scored],
        discount=spec.algorithm.turn_discount,
        pass_k=spec.algorithm.pass_k,
    )
    return [
        ScoredGroup(
            trajectories=each.attempts,
            advantages=advantages,
            size=slots_used(spec, each.attempts, each.group.size),
        )
        for each, advantages in zip(closed, found, strict=True)
    ]


def _outcomes(scored: Sequence[Trajectory]) -> Outcomes:
    return Outcomes(
        rewards=tuple(trajectory.rollout.rewards or () for trajectory in scored),
        tokens=tuple(trained_tokens(trajectory) for trajectory in scored),
    )


def _samples(group: ScoredGroup) -> list[Sample]:
    pairs = zip(group.scored, group.advantages.per_turn, strict=True)
    return [sample for trajectory, values in pairs for sample in rows(trajectory, values)]


def _request(
    spec: JobSpec, step: int, samples: Sequence[Sample], learning_rate: float
) -> StepRequest:
    algorithm = spec.algorithm
    return StepRequest(
        step=step,
        mini_batches=mini_batches(
            samples,
            algorithm.aggregation,
            updates=spec.batch.updates_per_step,
            seed=spec.seed,
            step=step,
            norm=spec.batch.rollouts_per_update * spec.sampling_params.max_tokens,
        ),
        loss=LossSpec(
            name=algorithm.loss_fn,
            clip_low=algorithm.clip_low_threshold,
            clip_high=algorithm.clip_high_threshold,
            tis_cap=algorithm.tis_cap,
            kl_coef=algorithm.kl_coef,
        ),
        learning_rate=learning_rate,
        parity_limit=spec.parity.max_mean_difference,
    )
