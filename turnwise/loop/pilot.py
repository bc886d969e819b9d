"""Adaptive group size: a pilot of each group first, the rest only where the pilot disagrees. Pure.

    pilot_size rollouts --equal rewards--> settled: the group closes as it is, nothing to learn
          `--------- rewards differ, or fewer than two scored --> the rest of group_size

So rollouts are spent on groups that are still split. What it costs: two waves instead of one, and
the rare success of a task that fails its whole pilot.
"""

from __future__ import annotations

from collections.abc import Sequence

from turnwise.domain.job import JobSpec
from turnwise.domain.rollout import Trajectory
from turnwise.rl.advantages import is_constant_group
from turnwise.rl.truncation import learned_rewards


def first_slots(spec: JobSpec) -> int:
    """How many rollouts of a training group start at once."""
    return spec.batch.pilot_size or spec.batch.group_size


def is_settled(spec: JobSpec, attempts: Sequence[Trajectory]) -> bool:
    """Whether a group whose pilot has ended so needs no more rollouts."""
    rewards = [learned_rewards(t, spec.rollout) for t in attempts if t.rollout.is_scored]
    return is_constant_group(spec.algorithm.advantage_method, rewards)


def slots_used(spec: JobSpec, attempts: Sequence[Trajectory], size: int) -> int:
    """How many slots a closed group has, of the `size` that it was admitted with."""
    pilot = spec.batch.pilot_size
    is_pilot = pilot and all(attempt.rollout.slot < pilot for attempt in attempts)
    return pilot if is_pilot and is_settled(spec, attempts) else size
