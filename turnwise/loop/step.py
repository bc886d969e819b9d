"""One training step, from closed groups to a published adapter:

    assemble -> Learner.step -> Learner.save -> Sampler.load -> (parity) -> Store.finish_step
                                                                         -> Rollouts.publish

The step counts from the moment the store has it, which is before any token is sampled from its
adapter: a crash in between repeats the step or finds it finished, and never half of it.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress

from turnwise import errors
from turnwise.domain.event import EventDraft, EventKind, Level
from turnwise.domain.job import Job
from turnwise.domain.rollout import Policy
from turnwise.domain.training import Checkpoint, DataPosition, StepResult
from turnwise.loop.assemble import Assembly, ClosedGroup, assemble
from turnwise.loop.early_stop import Tally
from turnwise.loop.packages import checkpoint_key, packages_of
from turnwise.loop.parity import check_parity
from turnwise.loop.plan import Plan, learning_rate
from turnwise.loop.prune import prune
from turnwise.loop.resume import Start
from turnwise.loop.sockets import Sockets
from turnwise.ports import FinishedStep, ModelPackage
from turnwise.rl.statistics import mismatch_metrics, throughput_metrics

#: A turn may have read the policy just before a new one was published, and ask for its adapter
#: just after; so the sampler keeps the adapter before the newest too.
_LIVE_ADAPTERS = 2


class Stepper:
    """Trains the steps of one incarnation, one after another."""

    def __init__(
        self, job: Job, start: Start, plan: Plan, sockets: Sockets, next_version: int
    ) -> None:
        self._job = job
        self._plan = plan
        self._sockets = sockets
        self._version = next_version
        self._ended_at = sockets.clock.now()
        self._superseded_tokens = start.superseded_tokens
        self._trained = set(start.trained)
        adapter_id = start.checkpoint.adapter.adapter_id
        self._adapters = deque([adapter_id])
        self.policy = Policy(adapter_id=adapter_id, policy_step=start.pace.step)

    async def step(
        self, closed: Sequence[ClosedGroup], *, waited_s: float, refilled: int = 0
    ) -> Sequence[Tally]:
        """Train on these groups and publish the adapter that comes of it; what they were like.

        `refilled` of them have been replaced and are here for the record.

        Raises `ParityExceeded`, `StorageFull` or `ProcessDied`; then nothing of it counts.
        """
        step = self.policy.policy_step
        timing: dict[str, float] = {"timing_s/wait": waited_s}
        with self._timed(timing, "training"):
            rate = learning_rate(
                self._job.spec.optimizer.learning_rate,
                self._job.spec.schedule,
                step,
                self._plan.num_steps,
            )
            # Laying out a step is long for an event loop that answers agents meanwhile.
            assembly = await asyncio.to_thread(assemble, self._job.spec, step, closed, rate)
            result = await self._learn(step, assembly)
        with self._timed(timing, "save_checkpoint"):
            checkpoint = await self._save(step, closed)
        with self._timed(timing, "publish"):
            await self._load(checkpoint, result)
        now = self._sockets.clock.now()
        timing["timing_s/step"], self._ended_at = now - self._ended_at, now
        timing["timing_s/policy_update"] = result.seconds
        values = {
            **assembly.metrics,
            "analysis/refilled_groups": refilled,
            "training/learning_rate": rate,
            "training/updates": result.updates,
            **result.metrics,
            **mismatch_metrics(result.mismatch),
            **timing,
            **throughput_metrics(
                sampled_tokens=sum(sum(bins.values()) for bins in assembly.bins.values()),
                trained_tokens=result.trained_tokens,
                seconds=timing["timing_s/step"],
            ),
            "ledger/dropped_superseded": self._superseded_tokens,
        }
        await self._finish(closed, assembly, result, checkpoint, values)
        self._superseded_tokens = 0
        await prune(self._job, self._sockets)
        return assembly.tallies

    async def retire_all(self) -> None:
        """Free the job's adapters in the sampler, if it is still there."""
        for adapter_id in set(self._adapters):
            with suppress(errors.TurnwiseError):
                await self._sockets.sampler.retire(adapter_id)

    async def _learn(self, step: int, assembly: Assembly) -> StepResult:
        if assembly.request is None:
            return StepResult(step=step, updates=0, trained_tokens=0)
        return await self._sockets.learner.step(assembly.request)

    async def _save(self, step: int, closed: Sequence[ClosedGroup]) -> Checkpoint:
        folder = self._sockets.blobs.path(checkpoint_key(self._job, step))
        self._trained.update(each.group.order for each in closed)
        position = DataPosition.of(self._trained)
        return await self._sockets.learner.save(step, str(folder), position)

    async def _load(self, checkpoint: Checkpoint, result: StepResult) -> None:
        adapter = checkpoint.adapter
        await self._sockets.sampler.load(adapter.adapter_id, adapter.path)
        was_checked = any(mismatch.age == 0 for mismatch in result.mismatch)
        if result.updates and not was_checked:
            await check_parity(
                self._sockets.sampler,
                self._sockets.learner,
                adapter_id=adapter.adapter_id,
                previous_id=self._adapters[-1],
                limit=self._job.spec.parity.max_mean_difference,
            )

    async def _finish(
        self,
        closed: Sequence[ClosedGroup],
        assembly: Assembly,
        result: StepResult,
        checkpoint: Checkpoint,
        values: Mapping[str, float],
    ) -> None:
        step = self.policy.policy_step
        policy = Policy(adapter_id=checkpoint.adapter.adapter_id, policy_step=step + 1)
        groups = tuple(each.group.group_id for each in closed)
        await self._sockets.store.finish_step(
            self._job.account_id,
            self._job.job_id,
            FinishedStep(
                step=step,
                policy=policy,
                groups=groups,
                bins=assembly.bins,
                checkpoint=checkpoint,
                packages=self._packages(checkpoint, values),
                events=(
                    *_events(groups, policy, result, checkpoint, values, assembly.tallies),
                    *([] if result.updates else [_no_update(step, closed, assembly)]),
                ),
            ),
        )
        self._version += 1
        self.policy = policy
        self._sockets.rollouts.publish(self._job.job_id, policy)
        await self._retire_old(checkpoint.adapter.adapter_id)

    async def _retire_old(self, newest: str) -> None:
        self._adapters.append(newest)
        while len(self._adapters) > _LIVE_ADAPTERS:
            old = self._adapters.popleft()
            if old not in self._adapters:
                await self._sockets.sampler.retire(old)

    def _packages(
        self, checkpoint: Checkpoint, values: Mapping[str, float]
    ) -> tuple[ModelPackage, ...]:
        """The step's two registered versions: what a sampler serves, and what resumes."""
        return packages_of(
            self._job,
            checkpoint,
            values,
            version=self._version,
            new_id=self._sockets.new_id,
            now=self._sockets.clock.now(),
        )

    @contextmanager
    def _timed(self, timing: dict[str, float], part: str) -> Iterator[None]:
        started = self._sockets.clock.now()
        yield
        timing[f"timing_s/{part}"] = self._sockets.clock.now() - started


def _events(
    groups: Sequence[str],
    policy: Policy,
    result: StepResult,
    checkpoint: Checkpoint,
    values: Mapping[str, float],
    tallies: Sequence[Tally],
) -> tuple[EventDraft, ...]:
    step = result.step
    return (
        EventDraft(kind=EventKind.METRICS, body={"step": step, "values": dict(values)}),
        EventDraft(
            kind=EventKind.CHECKPOINT,
            body={
                "step": step,
                "path": checkpoint.path,
                "sha256": checkpoint.sha256,
                "adapter_id": checkpoint.adapter.adapter_id,
            },
        ),
        EventDraft(
            kind=EventKind.STEP,
            body={
                "step": step,
                "policy_step": policy.policy_step,
                "adapter_id": policy.adapter_id,
                "groups": list(groups),
                "trained_tokens": result.trained_tokens,
                "tallies": [tally.as_body() for tally in tallies],
            },
        ),
    )


def _no_update(step: int, closed: Sequence[ClosedGroup], assembly: Assembly) -> EventDraft:
    """A warning that says why a step taught nothing."""
    why = f"none of its {len(closed)} groups has rewards that differ between siblings"
    attempts = [attempt.rollout for each in closed for attempt in each.attempts]
    faults = Counter(rollout.fault.message for rollout in attempts if rollout.fault)
    if faults and not assembly.num_scored:
        [(fault, count)] = faults.most_common(1)
        why = f"none of its {len(attempts)} attempts was scored; {count} failed so: {fault}"
    if greedy := assembly.metrics["ledger/masked_greedy"]:
        why = (
            f"all {greedy} tokens that could have been learned from were sampled at "
            "temperature 0; have the agent leave the temperature to the job"
        )
    elif masked := assembly.metrics["ledger/masked_truncated"]:
        why = (
            f"all {masked} tokens that could have been learned from are of truncated turns, which "
            "rollout.truncated_turns masks; raise max_tokens"
        )
    body = {"message": f"step {step} made no update: {why}", "step": step}
    return EventDraft(kind=EventKind.LOG, body=body, level=Level.WARNING)
