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
from turnwise.loop.early_stop import Tally, tallies
from turnwise.loop.pilot import slots_used
from turnwise.rl import ledger, statistics
from turnwise.rl.credit import credit, masks_truncated
from turnwise.rl.rows import rows
from turnwise.rl.statistics import ScoredGroup
from turnwise.rl.truncation import penalty_metrics, truncation_metrics
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
    tallies: tuple[Tally, ...]  # by epoch


def assemble(
    spec: JobSpec, step: int, closed: Sequence[ClosedGroup], learning_rate: float
) -> Assembly:
    """Lay out one step. Rollouts go in by (place in the plan, slot), whenever they closed."""
    ordered = sorted(closed, key=lambda each: each.group.order)
    groups = _score(spec, ordered)
    is_masked = masks_truncated(spec.rollout)
    samples = [s for group in groups if group.is_valid for s in _samples(group, is_masked)]
    bins = {
        trajectory.rollout.rollout_id: ledger.account(
            trajectory, ledger.of_group(group.advantages), mask_truncated=is_masked
        )
        for group in groups
        for trajectory in group.trajectories
    }
    sizes = [each.group.size for each in ordered]
    return Assembly(
        request=_request(spec, step, samples, learning_rate) if samples else None,
        bins={
            rollout_id: {bin.value: tokens for bin, tokens in account.items()}
            for rollout_id, account in bins.items()
        },
        metrics={
            **_rollout_metrics(spec, groups, sizes),
            **statistics.training_metrics(
                samples,
                step=step,
                epoch=max(each.group.epoch for each in ordered),
                num_groups=len(groups),
            ),
            **statistics.ledger_metrics(ledger.total(bins.values())),
        },
        num_scored=sum(len(group.scored) for group in groups),
        tallies=tallies(zip([each.group.epoch for each in ordered], groups, strict=True)),
    )


def _rollout_metrics(
    spec: JobSpec, groups: Sequence[ScoredGroup], sizes: Sequence[int]
) -> dict[str, float]:
    """What the step's rollouts were like; `sizes` are the groups' as they were admitted."""
    attempts = [t for group in groups for t in group.trajectories]
    is_per_turn = spec.algorithm.advantage_method.is_per_turn
    settled = sum(group.size < size for group, size in zip(groups, sizes, strict=True))
    return {
        **statistics.rollout_metrics(groups, per_turn=is_per_turn),
        **truncation_metrics("rollout", attempts, spec.rollout),
        **penalty_metrics([t for group in groups for t in group.scored], spec.rollout),
        "analysis/settled_groups": settled,
    }


def is_zero(spec: JobSpec, closed: ClosedGroup) -> bool:
    """Whether a group by itself has advantages, all of them 0: what `refill` replaces."""
    [group] = _score(spec, [closed])
    return not group.is_valid and not group.advantages.is_unpaired


def _score(spec: JobSpec, closed: Sequence[ClosedGroup]) -> list[ScoredGroup]:
    scored = [statistics.scored(each.attempts) for each in closed]
    found = credit(spec.algorithm, spec.rollout, scored)
    return [
        ScoredGroup(
            trajectories=each.attempts,
            advantages=advantages,
            size=slots_used(spec, each.attempts, each.group.size),
        )
        for each, advantages in zip(closed, found, strict=True)
    ]


def _samples(group: ScoredGroup, is_masked: bool) -> list[Sample]:
    pairs = zip(group.scored, group.advantages.per_turn, strict=True)
    return [s for each, values in pairs for s in rows(each, values, mask_truncated=is_masked)]


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
