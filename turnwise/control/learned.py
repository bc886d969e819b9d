"""What training made of a group of rollouts: the advantage of each turn, the bin of each token.

Not stored: both follow from what is, by the very functions that the step has called (`rl.credit`),
and nothing that they read changes once a step has taken the group. So what is said here of a
trained group is what the step computed.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from turnwise.domain.access import Action, Principal
from turnwise.domain.job import Job, JobSpec
from turnwise.domain.ledger import Bin
from turnwise.domain.rollout import Group, GroupStatus, Trajectory
from turnwise.domain.training import AdvantageMethod
from turnwise.ports import Store
from turnwise.rl.advantages import GroupAdvantages
from turnwise.rl.credit import credit, is_over_step, turn_bins
from turnwise.rl.statistics import scored

#: Steps whose advantages are remembered, for methods that compare all of a step's rollouts.
REMEMBERED_STEPS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutCredit:
    """What a step gave one scored rollout.

    `advantages` has a value per delivered turn; `bins[i]` says where the tokens of turn i ended,
    delivered or not. A rollout that was not scored has no advantages.
    """

    advantages: tuple[float, ...]  # [delivered turns], or [] if it was not scored
    bins: tuple[Mapping[Bin, int], ...]  # [turns]


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupCredit:
    """What a step made of a group; `of` is by rollout id, and empty unless a step took it."""

    status: GroupStatus
    method: AdvantageMethod
    step: int | None = None
    of: Mapping[str, RolloutCredit] = field(default_factory=dict)


class Learned:
    """Reads groups and computes again what their steps gave them."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._steps: OrderedDict[tuple[str, int], Mapping[str, GroupAdvantages]] = OrderedDict()

    async def of_group(self, principal: Principal, job: Job, group_id: str) -> GroupCredit | None:
        """None for rollouts that are not made for training: no step ever takes their group."""
        principal.require(Action.READ, job_id=job.job_id)
        found = await self._store.groups(job.account_id, job.job_id, group_id=group_id)
        if not found:
            return None
        [group] = found
        method = job.spec.algorithm.advantage_method
        if group.status is not GroupStatus.TRAINED or group.step is None:
            return GroupCredit(status=group.status, method=method)
        attempts = await self._store.group_trajectories(job.account_id, group_id)
        advantages = await self._advantages(job, group, attempts)
        return GroupCredit(
            status=group.status,
            method=method,
            step=group.step,
            of=await asyncio.to_thread(of_rollouts, job.spec, attempts, advantages),
        )

    async def _advantages(
        self, job: Job, group: Group, attempts: Sequence[Trajectory]
    ) -> GroupAdvantages:
        algorithm, limits = job.spec.algorithm, job.spec.rollout
        if is_over_step(algorithm.advantage_method):
            assert group.step is not None  # a trained group has one
            return (await self._step(job, group.step))[group.group_id]
        [found] = await asyncio.to_thread(credit, algorithm, limits, [scored(attempts)])
        return found

    async def _step(self, job: Job, step: int) -> Mapping[str, GroupAdvantages]:
        """The advantages of all groups of a step, by id."""
        key = (job.job_id, step)
        if key not in self._steps:
            groups = await self._store.groups(
                job.account_id, job.job_id, status=GroupStatus.TRAINED, step=step
            )
            ids = [group.group_id for group in groups]
            its = [
                scored(await self._store.group_trajectories(job.account_id, each)) for each in ids
            ]
            found = await asyncio.to_thread(credit, job.spec.algorithm, job.spec.rollout, its)
            self._steps[key] = dict(zip(ids, found, strict=True))
            while len(self._steps) > REMEMBERED_STEPS:
                self._steps.popitem(last=False)
        return self._steps[key]


def of_rollouts(
    spec: JobSpec, attempts: Sequence[Trajectory], advantages: GroupAdvantages
) -> dict[str, RolloutCredit]:
    """By rollout id: a trained group's attempts with what they were given."""
    values = iter(advantages.per_turn)
    return {
        each.rollout.rollout_id: RolloutCredit(
            advantages=next(values) if each.rollout.is_scored else (),
            bins=turn_bins(each, advantages, spec.rollout),
        )
        for each in attempts
    }
